"""Loading and saving the weights of a model, safely: no pickled code is ever run."""

from __future__ import annotations

import inspect
import io
import json
import pickle
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from handlers.errors import TorchbeamError, UsageError, one_line
from handlers.functions import import_function
from handlers.spec import Format, ModelSpec

PICKLE_ADVICE = "it holds pickled code; load it where that code is and save it again with ModelDir.save"


@dataclass(frozen=True)
class TensorInfo:
    """What a model itself tells of one input: its dtype and the shape of one row; None where it does not say."""

    name: str
    dtype: torch.dtype | None = None
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory, and how it is called.

    Attributes:
        module: takes the inputs and gives a tensor, or a tuple, list or mapping of tensors.
        parameters: names of the inputs in the order of `forward`; empty where it takes any (`*args`).
        inputs: what the model itself tells of them; empty where it tells nothing.
        rows: the number of rows that every call must have, for a program exported with a fixed batch; else None.
    """

    module: Callable[..., Any]
    parameters: tuple[str, ...] = ()
    inputs: tuple[TensorInfo, ...] = ()
    rows: int | None = None
    keywords: frozenset[str] = field(default_factory=frozenset)

    def __call__(self, tensors: Mapping[str, torch.Tensor]) -> Any:
        """Calls the model with its inputs by name; a single input goes in whatever it is called."""
        if len(tensors) == 1 and not self.keywords:
            return self.module(next(iter(tensors.values())))
        names = self.parameters or tuple(tensors)
        positional = [tensors[name] for name in names if name in tensors and name not in self.keywords]
        return self.module(*positional, **{name: tensors[name] for name in names if name in self.keywords})


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
            if example is None:
                raise UsageError("format torch_export needs example: one tensor an input, with at least two rows")
            rows = torch.export.Dim.DYNAMIC
            program = torch.export.export(module, example, dynamic_shapes=tuple({0: rows} for _ in example))
            torch.export.save(program, file := folder / "model.pt2")
    finally:
        module.train(training)
    return file


def _call(function: Callable[..., Any], what: str, *args: Any, **kwargs: Any) -> Any:
    try:
        return function(*args, **kwargs)
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
    parameters = [
        name
        for name, parameter in inspect.signature(forward).parameters.items()
        if parameter.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)
    ]
    return LoadedModel(module, tuple(parameters))


def _safe_load(file: Path | io.BytesIO) -> Any:
    try:
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
    _refuse_pickles(file)
    program = torch.export.load(file)
    user_inputs = [name for name in program.graph_signature.user_inputs if isinstance(name, str)]
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    tensors = {name: values[name] for name in user_inputs if isinstance(values.get(name), torch.Tensor)}
    if len(tensors) != len(program.graph_signature.user_inputs):
        raise UsageError(f"{file} takes inputs that are no tensors; export it with tensors alone")
    rows = {int(tensor.shape[0]) for tensor in tensors.values() if isinstance(tensor.shape[0], int)}
    infos = []
    for name, tensor in tensors.items():
        shape = tensor.shape[1:]
        static = all(isinstance(size, int) for size in shape)
        infos.append(TensorInfo(name, tensor.dtype, tuple(map(int, shape)) if static else None))
    in_spec = program.call_spec.in_spec
    keyword_count = 0 if in_spec is None else len(in_spec.child(1).context or ())
    keywords = frozenset(user_inputs[len(user_inputs) - keyword_count :]) if keyword_count else frozenset()
    return LoadedModel(program.module(), tuple(user_inputs), tuple(infos), next(iter(rows), None), keywords)


def _refuse_pickles(file: Path) -> None:
    """Refuses a `.pt2` archive of which any part could run code while torch.export.load unpickles it.

    torch.export.load falls back to full unpickling for sample inputs and for constants that are no tensors
    (torch/_export/serde/serialize.py and torch/export/pt2_archive/_package.py of 2.15).
    """
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            if name.endswith(".so") or "/aotinductor/" in name:
                raise UsageError(
                    f"{file} is refused: it holds compiled code ({name}); export it with torch.export.save"
                )
            if name.endswith(".pt") and archive.getinfo(name).file_size:
                _check_tensors(file, name, archive.read(name))
            if name.endswith("_config.json") and ("/weights/" in name or "/constants/" in name):
                config = json.loads(archive.read(name)).get("config", {})
                for payload in config.values():
                    if payload.get("use_pickle"):
                        member = f"{name.rsplit('/', 1)[0]}/{payload['path_name']}"
                        _check_tensors(file, member, archive.read(member))


def _check_tensors(file: Path, member: str, content: bytes) -> None:
    try:
        torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception:
        raise UsageError(f"{file} is refused ({member}): {PICKLE_ADVICE}") from None
