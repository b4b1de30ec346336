"""Labels and predictions out of a chunk: the rows that have both, in arrays that metrics are computed from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from transforms.evaluation.plan import CONFIDENCE, EvaluationPlan


@dataclass(frozen=True)
class Missing:
    """Rows that cannot be evaluated: without a label (null or NaN), and with one but without a prediction."""

    label: int = 0
    prediction: int = 0

    def __add__(self, other: Missing) -> Missing:
        return Missing(self.label + other.label, self.prediction + other.prediction)


@dataclass(frozen=True)
class ClassRows:
    """Rows of a classification, all arrays of (rows, …).

    Attributes:
        truth: the true classes, as text.
        predicted: the predicted classes, as text.
        codes: int32: the index of the true class among those with scores; -1 for another class.
        probabilities: (rows, classes with scores), in the dtype of the columns; None where there are none.
        confidence: float64: probability of the predicted class; None where it is not known.
        loss: float64: -ln of the probability of the true class; without probabilities what is wrong, by confidence.
    """

    truth: pa.Array
    predicted: pa.Array
    codes: np.ndarray
    probabilities: np.ndarray | None
    confidence: np.ndarray | None
    loss: np.ndarray

    def __len__(self) -> int:
        return len(self.loss)

    @property
    def correct(self) -> np.ndarray:
        """bool: whether the prediction is right."""
        found: np.ndarray = pc.equal(self.truth, self.predicted).to_numpy(zero_copy_only=False)
        return found

    def take(self, index: np.ndarray) -> ClassRows:
        """Some of the rows."""
        chosen = pa.array(index)
        return replace(
            self,
            truth=self.truth.take(chosen),
            predicted=self.predicted.take(chosen),
            codes=self.codes[index],
            probabilities=None if self.probabilities is None else self.probabilities[index],
            confidence=None if self.confidence is None else self.confidence[index],
            loss=self.loss[index],
        )


@dataclass(frozen=True)
class LabelRows:
    """Rows of task multilabel: the true and the predicted labels, lists of text; `loss` float64: labels that are wrong."""

    truth: pa.ListArray
    predicted: pa.ListArray
    loss: np.ndarray

    def __len__(self) -> int:
        return len(self.loss)

    @property
    def correct(self) -> np.ndarray:
        """bool: whether all labels are right."""
        found: np.ndarray = self.loss == 0
        return found

    def take(self, index: np.ndarray) -> LabelRows:
        """Some of the rows."""
        chosen = pa.array(index)
        return LabelRows(self.truth.take(chosen), self.predicted.take(chosen), self.loss[index])


@dataclass(frozen=True)
class NumberRows:
    """Rows of a regression or forecast: float64 of (rows, outputs). A baseline has NaN where it is unknown."""

    truth: np.ndarray
    predicted: np.ndarray
    baselines: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.truth)

    @property
    def loss(self) -> np.ndarray:
        """float64 of (rows,): the mean absolute error of a row."""
        found: np.ndarray = np.abs(self.truth - self.predicted).mean(axis=1)
        return found

    def take(self, index: np.ndarray) -> NumberRows:
        """Some of the rows."""
        return NumberRows(
            self.truth[index],
            self.predicted[index],
            {name: values[index] for name, values in self.baselines.items()},
        )


TaskRows = ClassRows | LabelRows | NumberRows


def extract(plan: EvaluationPlan, chunk: pa.RecordBatch) -> tuple[TaskRows, np.ndarray, Missing]:
    """The rows of `chunk` that have a label and a prediction, their indices in it, and how many have not."""
    if plan.task == "classification":
        return _classes(plan, chunk)
    return _labels(plan, chunk) if plan.task == "multilabel" else _numbers(plan, chunk)


def as_text(array: pa.Array, *, flags_as_numbers: bool = False) -> pa.Array:
    """Classes as text: 3, 3.0 and "3" are the same class. NaN is null."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        array = array.dictionary_decode()
        kind = array.type
    if pa.types.is_boolean(kind) and flags_as_numbers:
        array = array.cast(pa.int8())
    elif pa.types.is_floating(kind):
        array = array.cast(pa.float64())
        array = pc.if_else(pc.is_nan(array), pa.scalar(None, pa.float64()), array)
        if (
            pc.all(pc.equal(pc.floor(array), array)).as_py() is not False
            and (pc.max(pc.abs(array)).as_py() or 0) < 2**53
        ):
            array = array.cast(pa.int64())
    elif pa.types.is_decimal(kind):
        return as_text(array.cast(pa.float64(), safe=False))
    return array.cast(pa.string())


def _present(label: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, Missing]:
    good = np.flatnonzero(label & predicted)
    return good, Missing(int((~label).sum()), int((label & ~predicted).sum()))


def _valid(array: pa.Array) -> np.ndarray:
    found: np.ndarray = array.is_valid().to_numpy(zero_copy_only=False)
    return found


def _classes(plan: EvaluationPlan, chunk: pa.RecordBatch) -> tuple[ClassRows, np.ndarray, Missing]:
    truth = as_text(chunk.column(plan.label), flags_as_numbers=plan.flags_as_numbers)
    predicted = as_text(chunk.column(plan.predicted))
    with_answer = _valid(predicted)
    probabilities = confidence = None
    if plan.probabilities:
        columns = [chunk.column(name).to_numpy(zero_copy_only=False) for name in plan.score_columns]
        probabilities = np.column_stack(columns)
        if not np.issubdtype(probabilities.dtype, np.floating):
            probabilities = probabilities.astype(np.float64)
        with_answer = with_answer & np.all((probabilities >= 0) & (probabilities <= 1), axis=1)  # false for NaN, too
    if plan.confidence:
        confidence = chunk.column(CONFIDENCE).cast(pa.float64()).to_numpy(zero_copy_only=False)
        with_answer = with_answer & (confidence >= 0) & (confidence <= 1)
    good, missing = _present(_valid(truth), with_answer)
    chosen = pa.array(good)
    truth, predicted = truth.take(chosen), predicted.take(chosen)
    probabilities = None if probabilities is None else probabilities[good]
    confidence = None if confidence is None else confidence[good]
    codes = np.full(len(good), -1, np.int32)
    if plan.classes:
        codes = (
            pc.fill_null(pc.index_in(truth, pa.array(plan.classes)), -1).to_numpy(zero_copy_only=False).astype(np.int32)
        )
        if probabilities is None and confidence is not None and len(plan.classes) == 2:
            probabilities = _of_two(plan, predicted, confidence)
        if probabilities is not None and confidence is None:
            answers = pc.fill_null(pc.index_in(predicted, pa.array(plan.classes)), 0).to_numpy(zero_copy_only=False)
            confidence = probabilities[np.arange(len(good)), answers].astype(np.float64)
    wrong = pc.not_equal(truth, predicted).to_numpy(zero_copy_only=False)
    loss = _loss(codes, probabilities, confidence, wrong)
    return ClassRows(truth, predicted, codes, probabilities, confidence, loss), good, missing


def _of_two(plan: EvaluationPlan, predicted: pa.Array, confidence: np.ndarray) -> np.ndarray:
    """Probabilities of two classes from that of the predicted one."""
    first = pc.equal(predicted, plan.classes[0]).to_numpy(zero_copy_only=False)
    of_first = np.where(first, confidence, 1 - confidence)
    return np.column_stack([of_first, 1 - of_first])


def _loss(
    codes: np.ndarray, probabilities: np.ndarray | None, confidence: np.ndarray | None, wrong: np.ndarray
) -> np.ndarray:
    if probabilities is None:
        certain = np.ones(len(wrong)) if confidence is None else confidence
        return np.where(wrong, certain, 1 - certain)
    epsilon = np.finfo(probabilities.dtype).eps
    likely = probabilities[np.arange(len(codes)), np.maximum(codes, 0)].astype(np.float64)
    likely[codes < 0] = 0  # a class that the model does not know
    found: np.ndarray = -np.log(np.clip(likely, epsilon, 1 - epsilon))
    return found


def _labels(plan: EvaluationPlan, chunk: pa.RecordBatch) -> tuple[LabelRows, np.ndarray, Missing]:
    truth, predicted = (chunk.column(name).cast(pa.list_(pa.string())) for name in (plan.label, plan.predicted))
    good, missing = _present(_valid(truth), _valid(predicted))
    truth, predicted = truth.take(pa.array(good)), predicted.take(pa.array(good))
    left, right = pairs(truth, predicted)
    wrong = np.setxor1d(left, right)
    loss = np.bincount(wrong // (pairs_base(truth, predicted)), minlength=len(good)).astype(np.float64)
    return LabelRows(truth, predicted, loss), good, missing


def label_names(truth: pa.ListArray, predicted: pa.ListArray) -> pa.Array:
    """The labels that occur in either."""
    return pc.unique(pa.concat_arrays([truth.flatten(), predicted.flatten()])).drop_null()


def pairs_base(truth: pa.ListArray, predicted: pa.ListArray) -> int:
    """What the row of a pair is multiplied with; see `pairs`."""
    return max(len(label_names(truth, predicted)), 1)


def pairs(truth: pa.ListArray, predicted: pa.ListArray) -> tuple[np.ndarray, np.ndarray]:
    """Of each side the (row, label) that there are, as row × base + index of the label, once each."""
    names = label_names(truth, predicted)
    base = max(len(names), 1)

    def coded(lists: pa.ListArray) -> np.ndarray:
        known = pc.index_in(lists.flatten(), names)
        kept = _valid(known) & _valid(lists.flatten())
        rows = pc.list_parent_indices(lists).to_numpy()[kept].astype(np.int64)
        return np.unique(rows * base + known.to_numpy(zero_copy_only=False)[kept].astype(np.int64))

    return coded(truth), coded(predicted)


def _numbers(plan: EvaluationPlan, chunk: pa.RecordBatch) -> tuple[NumberRows, np.ndarray, Missing]:
    truth, predicted = (_matrix(chunk.column(name)) for name in (plan.label, plan.predicted))
    width = max(truth.shape[1], predicted.shape[1])
    truth, predicted = (_widened(values, width) for values in (truth, predicted))
    good, missing = _present(np.isfinite(truth).all(axis=1), np.isfinite(predicted).all(axis=1))
    baselines = {name: _widened(_matrix(chunk.column(name)), width)[good] for name in plan.baselines}
    return NumberRows(truth[good], predicted[good], baselines), good, missing


def _widened(values: np.ndarray, width: int) -> np.ndarray:
    """`values` with outputs that are not there as NaN, so that rows without them count as rows without a value."""
    return np.pad(values, ((0, 0), (0, width - values.shape[1])), constant_values=np.nan)


def _matrix(array: pa.Array) -> np.ndarray:
    """Numbers as float64 of (rows, outputs), NaN for null; of lists all must be as long as the longest, others are NaN."""
    if not (
        pa.types.is_list(array.type) or pa.types.is_large_list(array.type) or pa.types.is_fixed_size_list(array.type)
    ):
        values = array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        return np.asarray(values, dtype=np.float64).reshape(-1, 1)
    lists = array.cast(pa.list_(pa.float64()))
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    width = int(lengths.max(initial=1)) or 1
    found = np.full((len(array), width), np.nan)
    full = np.flatnonzero(lengths == width)
    flat = lists.take(pa.array(full)).flatten().to_numpy(zero_copy_only=False)
    found[full] = np.asarray(flat, dtype=np.float64).reshape(len(full), width)
    return found
