"""The summary of a model directory: size, inputs, outputs, cost. A mapping of plain values, for people and JSON."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy  # noqa: F401 - before torch, which ignores every error while it imports numpy, Ctrl-C included
import torch
from torch.utils.flop_counter import FlopCounterMode

from handlers.encode.specs import InputSpec, TextInput
from handlers.model.directory import ModelDir
from handlers.model.formats.hub_config import read_json
from handlers.model.spec import head_of
from handlers.predict.backend import Backend
from handlers.predict.loaded import LoadedModel
from handlers.predict.placement import Placement
from handlers.predict.predictor import Predictor

TOKENS = 128  # tokens of the example text, or fewer if the model takes fewer
_LICENSE = re.compile(r"^license:\s*(\S.*)$", re.MULTILINE)


def summary(model: ModelDir) -> dict[str, Any]:
    """Loads a model on the CPU and summarises it.

    Returns:
        `parameters` (total, trainable, by top-level module), `bytes` (of parameters and buffers), `flops_per_row` (of
        multiplications and additions; None where it is unknown), `inputs`, `outputs`, `labels`, `version`, `license`;
        `registry`, such as `credit@3`, for a version in a registry.

    Raises:
        UsageError: where the model cannot be loaded.
    """
    loaded = model.load()
    module = loaded.module
    counts = _parameters(module) if isinstance(module, torch.nn.Module) else {}
    if isinstance(module, Backend):
        counts = {"bytes": module.nbytes}
    outputs, flops = _measured(loaded, model)
    return {
        "name": model.spec.name,
        "task": model.spec.task,
        "format": model.spec.format or f"loader {model.spec.loader}",
        "version": model.version,
        **({"registry": model.registered} if model.registered else {}),
        "model": module.summary if isinstance(module, Backend) else None,
        "license": _license(Path(model.path)),
        **counts,
        "flops_per_row": flops,
        "inputs": [_input(spec, loaded) for spec in model.spec.inputs] or [_info(info) for info in loaded.inputs],
        "sequences": model.spec.sequences.given() if model.spec.sequences else {},
        "features": dict(model.spec.features),
        "outputs": outputs,
        "labels": list(head_of(model.spec, loaded).labels or ()),
        "preprocess": list(model.spec.preprocess),
        "postprocess": list(model.spec.postprocess),
    }


def _parameters(module: torch.nn.Module) -> dict[str, Any]:
    tensors = [*module.parameters(), *module.buffers()]
    by_module = {name: sum(each.numel() for each in child.parameters()) for name, child in module.named_children()}
    return {
        "parameters": sum(each.numel() for each in module.parameters()),
        "trainable_parameters": sum(each.numel() for each in module.parameters() if each.requires_grad),
        "parameters_by_module": {name: count for name, count in by_module.items() if count},
        "bytes": sum(each.nbytes for each in tensors),
    }


def _input(spec: InputSpec, loaded: LoadedModel) -> dict[str, Any]:
    info = next((each for each in loaded.inputs if each.name == spec.name), None)
    declared = {} if info is None else _info(info)
    return {"columns": list(spec.patterns), **declared, **spec.given(), "encoder": spec.encoder}


def _info(info: Any) -> dict[str, Any]:
    dtype = None if info.dtype is None else str(info.dtype).removeprefix("torch.")
    declared = {"name": info.name, "dtype": dtype, "shape": None if info.shape is None else list(info.shape)}
    if info.frame:
        declared["encoder"] = "frame"
    return declared | ({"columns": list(info.columns)} if info.columns else {})


def _measured(loaded: LoadedModel, model: ModelDir) -> tuple[list[dict[str, Any]], int | None]:
    """The outputs and FLOPs of an example row, where the shapes of the inputs are known."""
    rows = loaded.rows or 2
    inputs = _example(loaded, model, rows)
    if inputs is None:
        return [], None
    with FlopCounterMode(display=False) as counter:
        prediction = Predictor(loaded, Placement("cpu")).predict(inputs)
    if prediction.failures:  # a model may refuse the example row; then its outputs are unknown
        return [], None
    found = [
        {"name": name, "dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape[1:])}
        for name, tensor in prediction.outputs.items()
        if isinstance(tensor, torch.Tensor)
    ]
    return found, (counter.get_total_flops() // rows) or None


def _example(loaded: LoadedModel, model: ModelDir, rows: int) -> Mapping[str, torch.Tensor] | None:
    shapes: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    if any(spec.encoder == "frame" for spec in model.spec.inputs):
        return None
    for info in loaded.inputs:
        if info.shape is None:
            return None
        shapes[info.name] = (info.dtype or torch.float32, info.shape)
    texts = [spec for spec in model.spec.inputs if isinstance(spec, TextInput)]
    if not shapes and texts:
        tokens = min(TOKENS, texts[0].max_length or TOKENS)
        names = [name for name in ("input_ids", "attention_mask") if name in loaded.parameters]
        shapes = dict.fromkeys(names, (torch.int64, (tokens,)))
    if not shapes:
        for spec in model.spec.inputs:
            size = getattr(spec, "shape", None)
            if size is None and any(set("*?[") & set(pattern) for pattern in spec.patterns):
                return None
            known = not loaded.parameters or spec.name in loaded.parameters or len(model.spec.inputs) > 1
            name = spec.name if known else loaded.parameters[0]
            dtype = getattr(
                torch, getattr(spec, "dtype", None) or ("int64" if spec.encoder == "categorical" else "float32")
            )
            shapes[name] = (dtype, tuple(size) if size is not None else (len(spec.patterns),))
    return {name: torch.ones(rows, *shape, dtype=dtype) for name, (dtype, shape) in shapes.items()} or None


def _license(folder: Path) -> str | None:
    """What the card of the model (README.md) or its configuration says."""
    card = folder / "README.md"
    if card.is_file() and (match := _LICENSE.search(card.read_text(errors="replace")[:10_000])):
        return match.group(1).strip()
    found = read_json(folder / "config.json").get("license") if folder.is_dir() else None
    return str(found) if found else None
