"""The label column: what task it makes, its classes, and its values as tensors."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from handlers.encode.binding import bind_inputs
from handlers.encode.categorical import category_text
from handlers.encode.specs import CategoricalInput, InputSpec, NumericInput
from handlers.encode.values import innermost, is_list, is_number, is_text
from handlers.errors import UsageError
from handlers.train.prepared import Prepared, Shards

MAX_CLASSES = 1000  # as many as `evaluate` takes
FEW_VALUES = 20  # whole numbers of so few values are classes
SCAN_ROWS = 65_536
TASKS = ("classification", "multilabel", "regression")
_TARGET = "label"


@dataclass(frozen=True)
class Labels:
    """The label column of a training.

    Attributes:
        column: its name.
        task: `classification`, `multilabel` or `regression`.
        names: the classes or labels, in the order of the model's outputs; empty for a regression.
        counts: how many training rows have each of them.
        width: numbers of a row of a regression; 1 unless the column holds lists.
        rows: training rows.
    """

    column: str
    task: str
    names: tuple[str, ...] = ()
    counts: tuple[int, ...] = ()
    width: int = 1
    rows: int = 0

    @property
    def outputs(self) -> int:
        """How many numbers the model gives for a row."""
        return len(self.names) or self.width

    def targets(self, batch: pa.RecordBatch) -> torch.Tensor:
        """The labels of rows.

        Returns:
            Of a classification int64 codes of (rows,); of multilabel float32 of (rows, labels), 0 or 1; of a regression
            float32 of (rows, width).

        Raises:
            UsageError: for a label that is null, not a number, or not one of the classes.
        """
        if self.task == "multilabel":
            return _flags(batch.column(self.column), self.names, self.column)
        spec: InputSpec = NumericInput(name=_TARGET, columns=(self.column,), shape=(self.width,))
        if self.task == "classification":
            spec = CategoricalInput(name=_TARGET, columns=(self.column,), categories=self.names, shape=())
        bound = bind_inputs([spec], (), batch)[0]
        encoded = bound.encode(batch)
        if encoded.failures:
            message = next(iter(encoded.failures.values())).message.partition("; the model input")[0]
            raise UsageError(f"--label: {message}; training needs a label in every row")
        target = encoded.tensors[_TARGET]
        assert isinstance(target, torch.Tensor)  # noqa: S101 - of a matrix input
        return target


def find_labels(prepared: Prepared, task: str | None = None, names: Sequence[str] | None = None) -> Labels:
    """What the label column of prepared rows makes.

    Args:
        prepared: the rows.
        task: if the user names it; else text, flags and whole numbers of few values are classes, other numbers a
            regression, and lists of text multilabel.
        names: the classes or labels, if the user names them; else all that the rows have, sorted.

    Raises:
        UsageError: for a column from which nothing can be learned, or that does not fit `task`.
    """
    column, schema = prepared.label, prepared.train.schema
    check_label(column, schema)
    kind = schema.field(column).type
    _check_nulls(prepared)
    found = task or _infer(prepared)
    if found not in TASKS:
        raise UsageError(f"--task={found} cannot be trained; use one of {', '.join(TASKS)}")
    text = is_text(innermost(kind))
    if found == "regression":
        if text or not (is_number(innermost(kind)) or pa.types.is_boolean(innermost(kind))):
            raise UsageError(
                f'--task=regression: column "{column}" holds {_shown(kind)}, and a regression needs numbers; convert it in '
                "features, or use --task=classification"
            )
        return _numbers(prepared)
    if found == "multilabel" and not (is_list(kind) and text):
        raise UsageError(f'--task=multilabel: column "{column}" holds {_shown(kind)}; it must hold lists of text')
    if found == "classification" and is_list(kind):
        raise UsageError(f'--task=classification: column "{column}" holds {_shown(kind)}; a class is a single value')
    return _classes(prepared, found, names)


def check_label(column: str, schema: pa.Schema) -> None:
    """Refuses a label that is no column; the message names similar ones."""
    if column in schema.names:
        return
    near = difflib.get_close_matches(column, schema.names, 1, 0.6)
    known = ", ".join(schema.names[:20]) + (", …" if len(schema.names) > 20 else "")
    hint = f'did you mean "{near[0]}"? ' if near else ""
    raise UsageError(f'--label: there is no column "{column}"; {hint}there are: {known}')


def _infer(prepared: Prepared) -> str:
    column = prepared.label
    kind = prepared.train.schema.field(column).type
    inner = innermost(kind)
    if is_list(kind):
        if is_text(inner):
            return "multilabel"
        if is_number(inner):
            return "regression"
    elif is_text(inner) or pa.types.is_boolean(inner):
        return "classification"
    elif pa.types.is_integer(inner):
        values: set[str] = set()
        for array in _columns(prepared):
            values.update(pc.unique(category_text(array)).to_pylist())
            if len(values) > FEW_VALUES:
                return "regression"
        return "classification"
    elif is_number(inner):
        return "regression"
    raise UsageError(
        f'--label: column "{column}" holds {_shown(kind)}; a label is text, a flag, a number or a list of text'
    )


def _check_nulls(prepared: Prepared) -> None:
    nulls = rows = 0
    for array in _columns(prepared):
        rows += len(array)
        nulls += array.null_count
        if pa.types.is_floating(array.type):
            nulls += pc.sum(pc.is_nan(array)).as_py() or 0
    if nulls:
        every = "in every row" if nulls == rows else f"in {nulls:,} of {rows:,} rows"
        raise UsageError(
            f'--label: column "{prepared.label}" is null or NaN {every}; leave such rows out of the input, or fill it in features'
        )


def _classes(prepared: Prepared, task: str, names: Sequence[str] | None) -> Labels:
    column = prepared.label
    counts: Counter[str] = Counter()
    in_training: Counter[str] = Counter()
    for part in (prepared.train, prepared.validation):
        for array in _parts(part, column):
            flat = array.flatten() if is_list(array.type) else array
            for value in pc.value_counts(category_text(flat)).to_pylist():
                counts[value["values"]] += value["counts"]
                if part is prepared.train:
                    in_training[value["values"]] += value["counts"]
            if len(counts) > MAX_CLASSES:
                raise UsageError(
                    f'--label: column "{column}" has more than {MAX_CLASSES:,} classes, the most that can be trained; is it an id, '
                    "or a number for --task=regression?"
                )
    rows = len(prepared.train) + len(prepared.validation)
    if task == "classification" and len(counts) > max(2, rows // 2):
        raise UsageError(
            f'--label: column "{column}" has {len(counts)} classes in {rows} rows, too few rows of each to learn it; is it an id?'
        )
    if names is not None:
        if unknown := [value for value in counts if value not in set(names)]:
            raise UsageError(
                f'--label: column "{column}" holds "{unknown[0]}", which is not among labels of the config'
            )
    elif len(counts) < 2:
        only = f'"{next(iter(counts))}" in every row' if counts else "empty in every row"
        raise UsageError(f'--label: column "{column}" is {only}; there is nothing to learn')
    found = tuple(names) if names is not None else _sorted(counts, prepared.train.schema.field(column).type)
    return Labels(column, task, found, tuple(in_training[name] for name in found), rows=len(prepared.train))


def _numbers(prepared: Prepared) -> Labels:
    column = prepared.label
    widths: set[int] = set()
    limits: list[float] = []
    for array in _columns(prepared):
        if is_list(array.type):
            widths.update(pc.unique(pc.list_value_length(array)).to_pylist())
            array = array.flatten()
        found = pc.min_max(array.cast(pa.float64())).as_py() if len(array) else {}
        limits += [value for value in found.values() if value is not None]
    if len(widths) > 1:
        raise UsageError(f'--label: column "{column}" holds lists of unequal length ({min(widths)} to {max(widths)})')
    if not np.isfinite(limits).all():
        raise UsageError(f'--label: column "{column}" holds an infinite number; leave such rows out of the input')
    if len(set(limits)) < 2:
        only = f"{limits[0]:g}" if limits else "empty"
        raise UsageError(f'--label: column "{column}" is {only} in every row; there is nothing to learn')
    return Labels(column, "regression", width=widths.pop() if widths else 1, rows=len(prepared.train))


def _flags(array: pa.Array, names: Sequence[str], column: str) -> torch.Tensor:
    """Lists of labels as flags, float32 of (rows, labels)."""
    flat = array.flatten()
    codes = pc.index_in(category_text(flat), pa.array(names, pa.string()))
    if codes.null_count:
        value = flat.filter(codes.is_null())[0].as_py()
        raise UsageError(f'--label: column "{column}" holds a list with {value!r}, which is not one of the labels')
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
    flags = torch.zeros(len(array), len(names))
    rows = torch.from_numpy(np.repeat(np.arange(len(array)), lengths))
    flags[rows, torch.from_numpy(codes.to_numpy(zero_copy_only=False).astype(np.int64))] = 1
    return flags


def _sorted(values: Counter[str], kind: pa.DataType) -> tuple[str, ...]:
    """Classes in order: numbers by value, others by text."""
    return tuple(sorted(values, key=float if is_number(innermost(kind)) else str))


def _columns(prepared: Prepared) -> Iterator[pa.Array]:
    """The label column of all rows."""
    for part in (prepared.train, prepared.validation):
        yield from _parts(part, prepared.label)


def _parts(shards: Shards, column: str) -> Iterator[pa.Array]:
    for batch in shards.batches(SCAN_ROWS):
        array = batch.column(column)
        yield array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _shown(kind: pa.DataType) -> str:
    return "text" if is_text(kind) else str(kind)
