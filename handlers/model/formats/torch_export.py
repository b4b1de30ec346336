"""Format torch_export: a program of torch.export, in a `.pt2` archive that is checked for pickles first."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import torch

from handlers.errors import UsageError
from handlers.model.formats.modules import program
from handlers.model.formats.pt2_archive import check_archive
from handlers.model.spec import ModelSpec
from handlers.model_code import ModelCode
from handlers.predict.loaded import LoadedModel
from handlers.tensors import TensorInfo

_ENVIRONMENT = threading.Lock()


def load(_spec: ModelSpec, weights: Path, _code: ModelCode) -> LoadedModel:
    """Loads the program."""
    return program(weights, "torch_export", _load)


def save(module: torch.nn.Module, folder: Path, example: tuple[torch.Tensor, ...] | None) -> Path:
    """Exports `module` for any number of rows; `example` has one tensor an input, of two rows or more."""
    if not example or any(not tensor.dim() or len(tensor) < 2 for tensor in example):
        raise UsageError("format torch_export needs example: one tensor per input, with at least two rows")
    rows = torch.export.Dim.DYNAMIC
    exported = torch.export.export(module, example, dynamic_shapes=tuple({0: rows} for _ in example))
    torch.export.save(exported, file := folder / "model.pt2")
    return file


def _load(file: Path) -> LoadedModel:
    with file.open("rb") as stream:  # opened once: what is checked is what is loaded
        check_archive(file, stream)
        stream.seek(0)
        with _weights_only():
            exported = torch.export.load(stream)
    signature, in_spec = exported.graph_signature, exported.call_spec.in_spec
    names = [name for name in signature.user_inputs if isinstance(name, str)]
    values = {node.name: node.meta.get("val") for node in exported.graph.nodes if node.op == "placeholder"}
    tensors = {name: values[name] for name in names if isinstance(values.get(name), torch.Tensor)}
    if len(tensors) != len(signature.user_inputs) or any(not tensor.dim() for tensor in tensors.values()):
        raise UsageError(f"{file} takes inputs that are not tensors of rows; export it with such tensors only")
    parts = [] if in_spec is None else [in_spec.child(0), in_spec.child(1)]  # positional and keyword inputs
    if any(part.num_leaves != part.num_children for part in parts):
        raise UsageError(f"{file} takes tensors inside lists or mappings; export it with one argument per tensor")
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
