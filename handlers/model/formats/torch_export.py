"""Format torch_export: a program of torch.export, in a `.pt2` archive that is searched for pickles first."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from handlers.errors import UsageError
from handlers.model.formats.modules import PICKLE_ADVICE, program
from handlers.model.spec import ModelSpec
from handlers.model_code import ModelCode
from handlers.predict.loaded import LoadedModel
from handlers.tensors import TensorInfo

_ENVIRONMENT = threading.Lock()

# What may stand in a symbolic size beside numbers, names, words and calls of sympy's classes.
ARITHMETIC = (
    *(ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.Tuple, ast.keyword, ast.Name),
    *(ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.expr_context),
)


def load(_spec: ModelSpec, weights: Path, _code: ModelCode) -> LoadedModel:
    """Loads the program."""
    return program(weights, "torch_export", _load)


def save(module: torch.nn.Module, folder: Path, example: tuple[torch.Tensor, ...] | None) -> Path:
    """Exports `module` for any number of rows; `example` has one tensor an input, of two rows or more."""
    if not example or any(not tensor.dim() or len(tensor) < 2 for tensor in example):
        raise UsageError("format torch_export needs example: one tensor an input, with at least two rows")
    rows = torch.export.Dim.DYNAMIC
    exported = torch.export.export(module, example, dynamic_shapes=tuple({0: rows} for _ in example))
    torch.export.save(exported, file := folder / "model.pt2")
    return file


def _load(file: Path) -> LoadedModel:
    _check_archive(file)
    with _weights_only():
        exported = torch.export.load(str(file))
    signature, in_spec = exported.graph_signature, exported.call_spec.in_spec
    names = [name for name in signature.user_inputs if isinstance(name, str)]
    values = {node.name: node.meta.get("val") for node in exported.graph.nodes if node.op == "placeholder"}
    tensors = {name: values[name] for name in names if isinstance(values.get(name), torch.Tensor)}
    if len(tensors) != len(signature.user_inputs) or any(not tensor.dim() for tensor in tensors.values()):
        raise UsageError(f"{file} takes inputs that are no tensors of rows; export it with such tensors alone")
    parts = [] if in_spec is None else [in_spec.child(0), in_spec.child(1)]  # those by position, and those by name
    if any(part.num_leaves != part.num_children for part in parts):
        raise UsageError(f"{file} takes tensors inside lists or mappings; export it with one argument a tensor")
    fixed = {tensor.shape[0] for tensor in tensors.values() if isinstance(tensor.shape[0], int)}
    if len(fixed) > 1:
        raise UsageError(
            f"{file} is exported for {' and '.join(map(str, sorted(fixed)))} rows at once; export it with one number"
        )
    infos = []
    for name, tensor in tensors.items():
        shape = tensor.shape[1:]
        static = all(isinstance(size, int) for size in shape)
        infos.append(TensorInfo(name, tensor.dtype, tuple(map(int, shape)) if static else None))
    by_name = len(parts[1].context or ()) if parts else 0
    return LoadedModel(
        exported.module(),
        tuple(names),
        tuple(infos),
        next(iter(fixed), None),
        frozenset(names[len(names) - by_name :]),
    )


@contextlib.contextmanager
def _weights_only() -> Iterator[None]:
    """Makes every `torch.load` in this process refuse pickled code, those inside torch.export.load among them.

    torch.export.load falls back to full unpickling for sample inputs, constants and weights (torch/export/pt2_archive/
    _package.py and torch/_export/serde/serialize.py of 2.15), and has no argument against that.
    """
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    with _ENVIRONMENT:
        before = os.environ.get(name)
        os.environ[name] = "1"
        try:
            yield
        finally:
            if before is None:
                del os.environ[name]
            else:
                os.environ[name] = before


def _check_archive(file: Path) -> None:
    """Refuses a `.pt2` archive of which a part could run code while it is loaded, beside what `_weights_only` prevents.

    The archive is read with the reader that torch.export.load will use, so that both see the same parts.
    """
    reader = torch._C.PyTorchFileReader(str(file))
    records = reader.get_all_records()
    if "archive_format" not in records:  # what came before it is a zip file of another layout, read by other code
        raise UsageError(f"{file} is no program of torch.export.save, or of a torch before 2.8; export it again")
    for record in records:
        if record.startswith("data/aotinductor/") or record.endswith(".so"):
            raise UsageError(f"{file} is refused: it holds compiled code ({record}); export it with torch.export.save")
        if record.startswith("data/") and record.endswith("_config.json"):
            for payload in json.loads(reader.get_record(record))["config"].values():
                if str(payload["path_name"]).startswith(("opaque_obj_", "custom_obj_")):
                    raise UsageError(f"{file} is refused ({payload['path_name']}): {PICKLE_ADVICE}")
        if record.startswith("models/"):
            json.loads(reader.get_record(record), object_hook=lambda item: _check_symbols(file, item))


def _is_arithmetic(function: str) -> bool:
    """Whether sympy's `function` builds a number: its classes do, whose names are capitalised; parsers and plots are not."""
    return function[0].isupper() or function in ("floor", "ceiling")


def _check_symbols(file: Path, item: dict[str, Any]) -> None:
    """Refuses a size that is no arithmetic: torch hands it to sympy, which evaluates it as Python."""
    text = item.get("expr_str")
    if text is None:
        return
    for node in ast.walk(ast.parse(str(text), mode="eval")):
        named = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and _is_arithmetic(node.func.id)
        plain = isinstance(node, ast.Constant) and re.fullmatch(r"\w*", str(node.value).replace(".", "")) is not None
        if not (named or plain or isinstance(node, ARITHMETIC)):
            raise UsageError(f"{file} is refused: the size {str(text)[:80]!r} in it is no arithmetic")
