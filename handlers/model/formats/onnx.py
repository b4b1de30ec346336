"""Format onnx: a graph of ONNX operators, run by ONNX Runtime. Needs `onnxruntime`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from handlers.errors import UsageError, one_line
from handlers.model.formats.modules import program
from handlers.model.spec import ModelSpec
from handlers.model_code import ModelCode
from handlers.predict.backend import Backend, import_extra, tensor_of
from handlers.predict.loaded import LoadedModel
from handlers.tensors import Frame, TensorInfo

_DTYPES = {
    "tensor(float)": torch.float32,
    "tensor(double)": torch.float64,
    "tensor(float16)": torch.float16,
    **{f"tensor(int{bits})": getattr(torch, f"int{bits}") for bits in (8, 16, 32, 64)},
    "tensor(uint8)": torch.uint8,
    "tensor(bool)": torch.bool,
}
_TEXT = "tensor(string)"
_CUDA = "CUDAExecutionProvider"
# What exporters of scikit-learn call the probabilities of the classes.
_PROBABILITIES = ("probabilities", "output_probability")


class Onnx(Backend):
    """A session of ONNX Runtime."""

    FORMAT = "onnx"

    def __init__(self, file: Path, task: str) -> None:
        self._onnxruntime = _onnxruntime()
        self._file = file
        self._session = self._started("CPUExecutionProvider")
        self.inputs: list[Any] = self._session.get_inputs()
        self._ranks = {each.name: len(each.shape) for each in self.inputs}
        self.outputs = _outputs(self._session.get_outputs(), task, file)
        self.nbytes = file.stat().st_size
        about = self._session.get_modelmeta()
        self.summary = f"ONNX graph of {about.producer_name or 'an unknown producer'}, ONNX Runtime " + str(
            self._onnxruntime.__version__
        )

    def cuda_problem(self) -> str | None:
        """See `Backend`."""
        if _CUDA in self._onnxruntime.get_available_providers():
            return None
        return "the installed onnxruntime has no CUDA provider (pip install onnxruntime-gpu, and not onnxruntime)"

    def to(self, device: torch.device) -> None:
        """See `Backend`."""
        if device.type == "cpu":
            return
        self._session = self._started((_CUDA, {"device_id": str(device.index or 0)}), "CPUExecutionProvider")
        if self._session.get_providers()[0] != _CUDA:  # it goes on on the CPU without an error
            raise UsageError(
                f"ONNX Runtime cannot use {device}: its CUDA provider did not start; see its log, or use --device=cpu"
            )

    def __call__(self, inputs: Mapping[str, torch.Tensor | Frame]) -> dict[str, torch.Tensor]:
        """See `Backend`."""
        given: Mapping[str, torch.Tensor | Frame] = inputs
        if len(self.inputs) == 1:
            given = {self.inputs[0].name: next(iter(inputs.values()))}
        feeds = {
            name: _texts(value, self._ranks[name]) if isinstance(value, Frame) else value.numpy()
            for name, value in given.items()
        }
        found = self._session.run(self.outputs, feeds)
        return {name: tensor_of(values) for name, values in zip(self.outputs, found, strict=True)}

    def _started(self, *providers: Any) -> Any:
        options = self._onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # as OMP_WAIT_POLICY=PASSIVE
        return self._onnxruntime.InferenceSession(str(self._file), options, providers=list(providers))


def load(spec: ModelSpec, weights: Path, _code: ModelCode) -> LoadedModel:
    """Loads the graph; raises `UsageError` for inputs and outputs that are not tensors of rows."""
    return program(weights, "onnx", lambda file: _load(spec, file))


def save(model: Any, folder: Path, _example: object) -> Path:
    """Writes a `ModelProto`, or an `ONNXProgram` of `torch.onnx.export`."""
    file = folder / "model.onnx"
    model = getattr(model, "model_proto", model)
    try:
        file.write_bytes(model.SerializeToString())
    except Exception as error:  # of more than 2 GB
        raise UsageError(f"the model cannot be saved: {one_line(error)}; export it to a file, and save that") from None
    return file


def task_of(_loaded: LoadedModel) -> str:
    """`raw`: a graph does not say what its outputs mean."""
    return "raw"


def _load(spec: ModelSpec, file: Path) -> LoadedModel:
    backend = Onnx(file, spec.task)
    infos = [_info(each, file) for each in backend.inputs]
    fixed = {each.shape[0] for each in backend.inputs if isinstance(each.shape[0], int)}
    if len(fixed) > 1:
        raise UsageError(f"{file.name} is exported for {' and '.join(map(str, sorted(fixed)))} rows at once")
    output: Any = "probabilities" if backend.outputs[0] in _PROBABILITIES else None
    return LoadedModel(
        backend, tuple(info.name for info in infos), tuple(infos), next(iter(fixed), None), output=output
    )


def _info(found: Any, file: Path) -> TensorInfo:
    if not found.shape:
        raise UsageError(
            f'{file.name} takes "{found.name}", which has no axis of rows; export it with a first axis of rows'
        )
    if found.type == _TEXT:
        if len(found.shape) > 1 and found.shape[1:] not in ([1], [None]):
            raise UsageError(f'{file.name} takes several texts as "{found.name}"; export it with one input a column')
        return TensorInfo(found.name, columns=(found.name,), frame=True)
    if found.type not in _DTYPES:
        raise UsageError(f'{file.name} takes "{found.name}" as {found.type}, which a table has no values for')
    shape = found.shape[1:]
    static = all(isinstance(size, int) for size in shape)
    return TensorInfo(found.name, _DTYPES[found.type], tuple(shape) if static else None)


def _outputs(found: list[Any], task: str, file: Path) -> list[str]:
    """The names of the outputs that the task takes; texts, such as the labels of scikit-learn, are not among them."""
    names = [each.name for each in found if each.type in _DTYPES]
    if maps := [each.name for each in found if "map(" in each.type]:
        raise UsageError(
            f'{file.name} gives "{maps[0]}" as a list of maps (ZipMap); export it with options={{"zipmap": False}} of skl2onnx'
        )
    if not names:
        raise UsageError(f"{file.name} gives no tensor of numbers")
    if task in ("classification", "multilabel"):
        return [name for name in names if name in _PROBABILITIES] or names
    return names


def _texts(frame: Frame, rank: int) -> np.ndarray:
    """The only column of `frame` as text of (rows,) or (rows, 1)."""
    column = frame.batch.column(0)
    if column.null_count:
        raise ValueError(f'column "{frame.batch.schema.names[0]}" is null, and the graph takes text')
    values = np.asarray(column.cast("string").to_numpy(zero_copy_only=False), object)
    return values if rank == 1 else values.reshape(-1, 1)


def _onnxruntime() -> Any:
    def load() -> Any:
        # Releases from 1.32 on send usage data to Microsoft from the import on, and write a file to TMPDIR for that.
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        import onnxruntime

        return onnxruntime

    return import_extra(load, "onnx", "onnxruntime", "onnx")
