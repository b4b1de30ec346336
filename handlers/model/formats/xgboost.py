"""Format xgboost: a model in XGBoost's own JSON or UBJSON, which holds data alone. Needs `xgboost`."""

from __future__ import annotations

import json
import re
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

# XGBoost puts the time and a line of its own source before its messages.
_SOURCE_LINE = re.compile(r"^\[[\d:]+\] \S+: ")
_NUMBERS = ("reg:", "count:", "survival:", "rank:")


class XGBoost(Backend):
    """A booster. Null and NaN are missing values, which XGBoost has a branch for."""

    FORMAT = "xgboost"

    def __init__(self, booster: Any, task: str, file: Path) -> None:
        xgboost = _xgboost()
        self._booster = booster
        config = json.loads(booster.save_config())["learner"]
        self.objective: str = config["objective"]["name"]
        self._matrix = xgboost.DMatrix
        self._has_cuda = bool(xgboost.build_info().get("USE_CUDA"))
        self._on_cpu = True
        # Margins where XGBoost gives classes alone.
        self._margin = task == "classification" and self.objective in ("multi:softmax", "binary:hinge")
        best = booster.attr("best_iteration")
        # As predict does: estimators stop at the best iteration, and boosters use all.
        self._range = (0, int(best) + 1) if best is not None and booster.attr("scikit_learn") is not None else (0, 0)
        self.nbytes = file.stat().st_size
        self.summary = f"XGBoost, objective {self.objective}, {booster.num_boosted_rounds():,} rounds"

    @property
    def gives_logits(self) -> bool:
        """Whether the outputs are margins."""
        return self._margin or self.objective == "binary:logitraw"

    def cuda_problem(self) -> str | None:
        """See `Backend`."""
        return None if self._has_cuda else "the installed xgboost is built without CUDA"

    def to(self, device: torch.device) -> None:
        """See `Backend`."""
        self._on_cpu = device.type == "cpu"
        self._booster.set_param({"device": str(device), "nthread": torch.get_num_threads()})

    def __call__(self, inputs: Mapping[str, torch.Tensor | Frame]) -> dict[str, torch.Tensor]:
        """See `Backend`."""
        value: Any = next(iter(inputs.values()))
        values = value.numpy()
        if np.isinf(values).any():  # in matrices XGBoost refuses it, in arrays it does not
            raise ValueError(
                "the row holds a number that is not finite as float32; only NaN and null are missing values"
            )
        options = {"iteration_range": self._range, "validate_features": False}
        if self._on_cpu:
            kind = "margin" if self._margin else "value"
            found = self._booster.inplace_predict(values, predict_type=kind, **options)
        else:
            found = self._booster.predict(self._matrix(values), output_margin=self._margin, **options)
        return {"output": tensor_of(found)}


def load(spec: ModelSpec, weights: Path, _code: ModelCode) -> LoadedModel:
    """Loads a booster; raises `UsageError` where it is of another format, or its objective does not fit the task."""
    if weights.suffix not in (".json", ".ubj"):
        raise UsageError(f"{weights} must be a .json or .ubj file, as save_model of XGBoost writes it")
    return program(weights, "xgboost", lambda file: _load(spec, file))


def save(model: Any, folder: Path, _example: object) -> Path:
    """Writes a `Booster` or a fitted estimator of XGBoost."""
    try:
        model.save_model(file := folder / "model.ubj")
    except Exception as error:
        raise UsageError(f"the {type(model).__name__} cannot be saved: {one_line(error)}") from None
    return file


def task_of(loaded: LoadedModel) -> str:
    """The task that the objective of a model is for."""
    model: Any = loaded.module
    objective = str(model.objective)
    if objective.startswith(("binary:", "multi:")):
        return "classification"
    return "regression" if objective.startswith(_NUMBERS) else "raw"


def _load(spec: ModelSpec, file: Path) -> LoadedModel:
    xgboost = _xgboost()
    try:
        booster = xgboost.Booster(model_file=file)
    except xgboost.core.XGBoostError as error:
        raise ValueError(_SOURCE_LINE.sub("", str(error).partition("Stack trace:")[0])) from None
    if "c" in (booster.feature_types or ()):
        raise UsageError(
            f"{file.name} was trained with categorical features, whose codes a table does not hold; train it on codes or "
            "one-hot columns, or export it with a preprocessing pipeline to ONNX"
        )
    backend = XGBoost(booster, spec.task, file)
    classes = backend.objective.startswith(("binary:", "multi:"))
    if spec.task in ("classification", "multilabel") and not classes and backend.objective != "reg:logistic":
        raise UsageError(f"{file.name} has the objective {backend.objective}; write task: regression")
    if spec.task == "regression" and classes:
        raise UsageError(f"{file.name} has the objective {backend.objective}; write task: classification")
    if spec.task == "embedding":
        raise UsageError(
            f"{file.name} has the objective {backend.objective}, which gives no embedding; write task: raw"
        )
    info = TensorInfo(
        "x", torch.float32, (booster.num_features(),), tuple(booster.feature_names or ()), allows_missing=True
    )
    output: Any = "logits" if backend.gives_logits else "probabilities"
    return LoadedModel(backend, ("x",), (info,), output=output)


def _xgboost() -> Any:
    def load() -> Any:
        import xgboost

        return xgboost

    return import_extra(load, "xgboost", "xgboost", "xgboost")
