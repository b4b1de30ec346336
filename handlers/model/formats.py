"""Loading and saving the weights of a model, safely: no pickled code is ever run."""

from __future__ import annotations

import ast
import contextlib
import inspect
import json
import os
import pickle
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from handlers.errors import TorchbeamError, UsageError, one_line
from handlers.functions import import_function
from handlers.isolation import contained
from handlers.model.spec import Format, ModelSpec
from handlers.predict.loaded import LoadedModel
from handlers.tensors import TensorInfo

_ENVIRONMENT = threading.Lock()

# What may stand in a symbolic size beside numbers, names, words and calls of sympy's classes.
ARITHMETIC = (
    *(ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.Tuple, ast.keyword, ast.Name),
    *(ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.expr_context),
)

PICKLE_ADVICE = "it holds pickled code; load it where that code is and save it again with ModelDir.save"


def load_model(spec: ModelSpec, local: Path) -> LoadedModel:
    """Loads a model on the CPU, in evaluation mode.

    Args:
        spec: the contents of its `model.yaml`.
        local: the model directory, or the bare file. Its `code/` must be importable already.

    Raises:
        UsageError: where the weights cannot be loaded safely, or do not fit the architecture.
    """
    if spec.loader:
        return _of_module(_call(import_function(spec.loader, "loader"), f'loader "{spec.loader}"', local))
    weights = local if local.is_file() else local / str(spec.weights)
    if spec.format in ("torch_export", "torchscript"):
        load = _load_export if spec.format == "torch_export" else _load_torchscript
        try:
            return load(weights)
        except TorchbeamError:
            raise
        except pickle.UnpicklingError:
            raise UsageError(f"{weights} is refused: {PICKLE_ADVICE}") from None
        except Exception as error:
            raise UsageError(f"{weights} cannot be loaded as {spec.format}: {one_line(error)}") from None
    factory = import_function(str(spec.architecture), "architecture")
    module = _call(factory, f'architecture "{spec.architecture}"', **spec.arguments)
    if not isinstance(module, torch.nn.Module):
        raise UsageError(f'architecture "{spec.architecture}" gives a {type(module).__name__}, not a torch.nn.Module')
    try:
        if spec.format == "safetensors":
            import safetensors.torch

            safetensors.torch.load_model(module, weights, strict=True)
        else:
            module.load_state_dict(_safe_load(weights), strict=True)
    except TorchbeamError:
        raise
    except Exception as error:
        raise UsageError(f'{weights} does not fit architecture "{spec.architecture}": {one_line(error)}') from None
    return _of_module(module)


def save_weights(
    module: torch.nn.Module, folder: Path, format: Format, example: tuple[torch.Tensor, ...] | None
) -> Path:
    """Writes the weights of `module` into `folder` in `format`; gives the file."""
    training = module.training
    module.eval()
    try:
        if format == "safetensors":
            import safetensors.torch

            safetensors.torch.save_model(module, str(file := folder / "weights.safetensors"))
        elif format == "state_dict":
            torch.save(module.state_dict(), file := folder / "weights.pt")
        elif format == "torchscript":
            with warnings.catch_warnings(action="ignore"):
                torch.jit.script(module).save(str(file := folder / "model.pt"))
        else:
            if not example or any(not tensor.dim() or len(tensor) < 2 for tensor in example):
                raise UsageError("format torch_export needs example: one tensor an input, with at least two rows")
            rows = torch.export.Dim.DYNAMIC
            program = torch.export.export(module, example, dynamic_shapes=tuple({0: rows} for _ in example))
            torch.export.save(program, file := folder / "model.pt2")
    finally:
        module.train(training)
    return file


def _call(function: Callable[..., Any], what: str, *args: Any, **kwargs: Any) -> Any:
    try:
        return contained(lambda: function(*args, **kwargs))
    except TorchbeamError:
        raise
    except Exception as error:
        raise UsageError(f"{what} failed: {type(error).__name__}: {one_line(error)}") from None


def _of_module(module: Any) -> LoadedModel:
    if not callable(module):
        raise UsageError(f"the loader gave a {type(module).__name__}, which cannot be called")
    if isinstance(module, torch.nn.Module):
        module.eval()
    forward = getattr(module, "forward", module)
    kinds = inspect.Parameter
    try:
        parameters = inspect.signature(forward).parameters.values()
    except (TypeError, ValueError):  # a callable of C++ may not tell
        return LoadedModel(module)
    by_place = (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)
    # An optional parameter that is taken by name only need not be known here: its input is passed by name anyhow.
    by_name = [each.name for each in parameters if each.kind == kinds.KEYWORD_ONLY and each.default is each.empty]
    return LoadedModel(
        module,
        (*(each.name for each in parameters if each.kind in by_place), *by_name),
        keywords=frozenset(by_name),
    )


def _safe_load(file: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch says twice what a pickle of its own format is
            return torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        if "weights_only" in str(error) or "Weights only" in str(error):
            raise UsageError(f"{file} is refused: {PICKLE_ADVICE}") from None
        raise


def _load_torchscript(file: Path) -> LoadedModel:
    with warnings.catch_warnings(action="ignore"):  # that TorchScript is deprecated is in docs/model-directory.md
        module = torch.jit.load(str(file), map_location="cpu").eval()
    names = tuple(argument.name for argument in module.forward.schema.arguments[1:])
    return LoadedModel(module, names, tuple(TensorInfo(name) for name in names))


def _load_export(file: Path) -> LoadedModel:
    _check_archive(file)
    with _weights_only():
        program = torch.export.load(str(file))
    signature, in_spec = program.graph_signature, program.call_spec.in_spec
    names = [name for name in signature.user_inputs if isinstance(name, str)]
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    tensors = {name: values[name] for name in names if isinstance(values.get(name), torch.Tensor)}
    if len(tensors) != len(signature.user_inputs) or any(not tensor.dim() for tensor in tensors.values()):
        raise UsageError(f"{file} takes inputs that are no tensors of rows; export it with such tensors alone")
    parts = [] if in_spec is None else [in_spec.child(0), in_spec.child(1)]  # those by place, and those by name
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
        program.module(),
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
