"""Format sklearn: an estimator or pipeline of scikit-learn in a skops file. Needs `scikit-learn` and `skops`.

Nothing is unpickled: skops creates objects of trusted types alone; see `handlers.model.formats.sklearn_trust`.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from handlers.errors import UsageError, one_line
from handlers.model.formats.modules import program
from handlers.model.formats.sklearn_trust import check_trees, refused
from handlers.model.spec import ModelSpec
from handlers.model_code import ModelCode
from handlers.predict.backend import Backend, import_extra, tensor_of
from handlers.predict.loaded import LoadedModel
from handlers.tensors import Frame, TensorInfo

# What a compressed file may unpack to: more than this only if it is large itself.
MAX_BYTES = 1 << 30
MAX_RATIO = 100


class Sklearn(Backend):
    """A fitted estimator. What it answers with follows from the task: `predict_proba`, `predict` or `transform`."""

    FORMAT = "sklearn"

    def __init__(self, estimator: Any, task: str, nbytes: int) -> None:
        import sklearn
        from sklearn.utils import get_tags

        self.estimator = estimator
        self._task = task
        method = {"classification": "predict_proba", "multilabel": "predict_proba", "embedding": "transform"}
        self.method = method.get(task, "predict" if hasattr(estimator, "predict") else "transform")
        self._columns = getattr(estimator, "feature_names_in_", None)
        tags = get_tags(_first(estimator)).input_tags
        self._takes_texts = bool(tags.string and not tags.two_d_array)
        self.nbytes = nbytes
        self.summary = f"scikit-learn {sklearn.__version__}, {_summary(estimator)}"

    def cuda_problem(self) -> str | None:
        """See `Backend`."""
        return "scikit-learn runs on the CPU only"

    def to(self, device: torch.device) -> None:
        """See `Backend`."""

    def __call__(self, inputs: Mapping[str, torch.Tensor | Frame]) -> dict[str, torch.Tensor]:
        """See `Backend`."""
        value = next(iter(inputs.values()))
        rows = self._frame(value) if isinstance(value, Frame) else self._matrix(value.numpy())
        found = getattr(self.estimator, self.method)(rows)
        if isinstance(found, list):  # of several labels, the probabilities of no and yes each
            found = np.stack([np.asarray(each)[:, 1] for each in found], axis=1)
        if hasattr(found, "toarray"):
            found = found.toarray()
        if self.method == "predict" and (classes := getattr(self.estimator, "classes_", None)) is not None:
            found = np.searchsorted(classes, found)  # as indices: they may be text
        name = "embedding" if self.method == "transform" else "output"
        return {name: tensor_of(found)}

    def _matrix(self, values: np.ndarray) -> Any:
        if self._columns is None:
            return values
        import pandas as pd

        return pd.DataFrame(values, columns=self._columns, copy=False)

    def _frame(self, frame: Frame) -> Any:
        table = frame.batch.to_pandas()
        for name, kind in table.dtypes.items():
            if kind.kind == "O" and table[name].isna().any():  # pandas before 3: None, where fits have seen NaN
                table[name] = table[name].where(table[name].notna(), np.nan)
        return table.iloc[:, 0].tolist() if self._takes_texts else table


def load(spec: ModelSpec, weights: Path, _code: ModelCode) -> LoadedModel:
    """Loads an estimator; raises `UsageError` for a pickle, for types that are not trusted, and for another task."""
    return program(weights, "sklearn", lambda file: _load(spec, file))


def save(model: Any, folder: Path, _example: object) -> Path:
    """Writes a fitted estimator; raises `UsageError` where it holds what would not be loaded again."""
    skops = _skops()
    file = folder / "model.skops"
    try:
        skops.dump(model, file)
    except Exception as error:
        raise UsageError(f"skops cannot save the {type(model).__name__}: {one_line(error)}") from None
    _checked(file, skops)
    return file


def task_of(loaded: LoadedModel) -> str:
    """The task that an estimator is made for."""
    from sklearn.base import is_classifier, is_regressor

    model: Any = loaded.module
    estimator = model.estimator
    if is_classifier(estimator):
        return "classification" if hasattr(estimator, "predict_proba") else "raw"
    if is_regressor(estimator):
        return "regression"
    return "raw" if hasattr(estimator, "predict") else "embedding"


def _load(spec: ModelSpec, file: Path) -> LoadedModel:
    skops = _skops()
    estimator = skops.load(file, trusted=_checked(file, skops))
    check_trees(estimator, file)
    if not hasattr(estimator, "fit"):
        raise UsageError(f"{file.name} holds a {type(estimator).__name__}, which is not an estimator")
    _check_fitted(estimator, file)
    backend = Sklearn(estimator, spec.task, file.stat().st_size)
    _check_task(estimator, spec.task, backend.method, file)
    info = _info(estimator)
    output: Any = "probabilities" if backend.method == "predict_proba" else None
    labels = _labels(estimator) if spec.task == "classification" else None
    return LoadedModel(backend, (info.name,), (info,), labels=labels, output=output)


def _checked(file: Path, skops: Any) -> list[str]:
    """The types of a file to trust beyond the usual; raises `UsageError` with those that are not trusted."""
    with zipfile.ZipFile(file) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > max(MAX_BYTES, MAX_RATIO * file.stat().st_size):
        raise UsageError(f"{file.name} is refused: it would unpack to {size:,} bytes; write it without compression")
    found = skops.get_untrusted_types(file=file)
    if others := refused(found):
        shown = ", ".join(others[:5]) + (", …" if len(others) > 5 else "")
        raise UsageError(
            f"{file.name} is refused: it holds {shown}, which is not trusted; use estimators and functions of "
            "scikit-learn and numpy alone, or a loader of your own"
        )
    return list(found)


def _check_fitted(estimator: Any, file: Path) -> None:
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    try:
        check_is_fitted(estimator)
    except NotFittedError:
        raise UsageError(f"{file.name} holds a {_summary(estimator)} that was not fitted; fit it first") from None


def _check_task(estimator: Any, task: str, method: str, file: Path) -> None:
    kind = _summary(estimator)
    if not hasattr(estimator, method):
        hint = "; wrap it in CalibratedClassifierCV, or write task: raw" if method == "predict_proba" else ""
        raise UsageError(f"{file.name} holds a {kind} without {method}, which task {task} needs{hint}")
    from sklearn.base import is_classifier

    if task == "regression" and is_classifier(estimator):
        raise UsageError(f"{file.name} holds a classifier ({kind}); write task: classification")


def _info(estimator: Any) -> TensorInfo:
    """What an estimator declares: a data frame where a step of it takes columns by name or text, else a matrix."""
    from sklearn.utils import get_tags

    columns = tuple(map(str, getattr(estimator, "feature_names_in_", ())))
    count = getattr(estimator, "n_features_in_", None)
    first = _first(estimator)
    tags = get_tags(first).input_tags
    by_name = type(first).__name__ in ("ColumnTransformer", "FeatureUnion")
    if (tags.string and not tags.two_d_array) or ((by_name or tags.categorical or tags.string) and columns):
        return TensorInfo("x" if columns else "text", columns=columns, frame=True, numbers=_numbers(first))
    shape = None if count is None else (int(count),)
    return TensorInfo("x", torch.float64, shape, columns, allows_missing=_allows_missing(estimator))


def _numbers(first: Any) -> frozenset[str]:
    """The columns of a ColumnTransformer that hold numbers, as far as it is known."""
    from sklearn.utils import get_tags

    found: set[str] = set()
    for _, part, columns in getattr(first, "transformers_", ()):
        step = _first(part)
        names = [columns] if isinstance(columns, str) else columns
        if isinstance(step, str) or not isinstance(names, list | tuple | np.ndarray):
            continue
        tags = get_tags(step).input_tags
        kinds = [each.dtype.kind for each in getattr(step, "categories_", ())]
        if (statistics := getattr(step, "statistics_", None)) is not None:  # of an imputer
            kinds = [statistics.dtype.kind] * len(names)
        elif not kinds and type(step).__module__.startswith("sklearn.preprocessing."):
            numeric = not tags.categorical and not tags.string and type(step).__name__ != "FunctionTransformer"
            kinds = ["f" if numeric else "O"] * len(names)
        found |= {str(name) for name, kind in zip(names, kinds, strict=False) if kind in "iuf"}
    return frozenset(found)


def _steps(estimator: Any) -> list[Any]:
    return [step for _, step in getattr(estimator, "steps", ())] or [estimator]


def _first(estimator: Any) -> Any:
    while hasattr(estimator, "steps"):
        estimator = _steps(estimator)[0]
    return estimator


def _allows_missing(estimator: Any) -> bool:
    """Whether NaN may go in: as far as an imputer, or all the way."""
    from sklearn.utils import get_tags

    for step in _steps(estimator):
        if step in ("passthrough", None):
            continue
        if not get_tags(step).input_tags.allow_nan:
            return False
        if type(step).__module__.startswith("sklearn.impute."):
            return True
    return True


def _labels(estimator: Any) -> tuple[str, ...] | None:
    """The names of the classes; None where they are the numbers from 0, which need none."""
    classes = list(getattr(estimator, "classes_", ()))
    if not classes or classes == list(range(len(classes))):
        return None
    return tuple(str(each) for each in classes)


def _summary(estimator: Any) -> str:
    steps = _steps(estimator)
    name = type(estimator).__name__
    return name if steps == [estimator] else f"{name}({', '.join(type(step).__name__ for step in steps)})"


def _skops() -> Any:
    def load() -> Any:
        import skops.io
        import skops.io.exceptions

        return skops.io

    return import_extra(load, "sklearn", "scikit-learn and skops", "sklearn")
