"""Formats of weights: how a model is loaded and saved, safely: no pickled code is ever run.

A new format is a module here, and its line in `FORMATS`. `handlers.model.loading` imports it when it is used.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Format:
    """A format of weights.

    Attributes:
        module: has `load(spec, weights, code) -> LoadedModel` and `save(module, folder, example) -> Path`.
        needs_architecture: whether the class of the module must be named.
        tells_inputs: whether the model itself declares its inputs.
        can_be_placed: whether its layers can be on several devices and the disk (`placement`).
        is_directory: whether the weights are the directory itself, so that no file is named.
        takes_frames: whether its models may take data frames (encoder `frame`).
        extensions: of files that hold such a model of another framework.
    """

    module: str
    needs_architecture: bool = False
    tells_inputs: bool = False
    is_directory: bool = False
    takes_frames: bool = False
    extensions: tuple[str, ...] = ()
    can_be_placed: bool = False


FORMATS = {
    "safetensors": Format("handlers.model.formats.safetensors", needs_architecture=True, can_be_placed=True),
    "state_dict": Format("handlers.model.formats.state_dict", needs_architecture=True),
    "torch_export": Format("handlers.model.formats.torch_export", tells_inputs=True),
    "huggingface": Format(
        "handlers.model.formats.huggingface", tells_inputs=True, is_directory=True, can_be_placed=True
    ),
    "torchscript": Format("handlers.model.formats.torchscript", tells_inputs=True),
    "sklearn": Format("handlers.model.formats.sklearn", tells_inputs=True, takes_frames=True, extensions=(".skops",)),
    "onnx": Format("handlers.model.formats.onnx", tells_inputs=True, takes_frames=True, extensions=(".onnx",)),
    "xgboost": Format("handlers.model.formats.xgboost", tells_inputs=True, extensions=(".ubj", ".json")),
}
