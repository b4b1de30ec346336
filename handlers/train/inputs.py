"""The inputs of a model that names none: found in the columns of the training rows."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from handlers.encode.categorical import category_text
from handlers.encode.specs import CategoricalInput, InputSpec, NumericInput, SequenceInput
from handlers.encode.values import innermost, is_list, is_number, is_text, list_lengths
from handlers.errors import UsageError
from handlers.train.prepared import Shards

MAX_CATEGORIES = 1000
ROWS_PER_CATEGORY = 4  # on average; below, a column of text is taken for names or ids
SCAN_ROWS = 65_536
NUMBERS, SOME_MISSING, STEPS, LENGTHS = "numbers", "numbers_or_null", "steps", "lengths"
MISSING = "(missing)"  # the category of null
_RESERVED = {"self", "args", "inputs", NUMBERS, SOME_MISSING, STEPS, LENGTHS}
_ID_NAMES = ("id", "key", "uuid", "index", "row")


@dataclass
class Column:
    """What the training rows show of a column.

    Attributes:
        name: of the column.
        kind: its type.
        rows: how many rows were seen.
        missing: those that are null or NaN.
        values: distinct values of text, or of whole numbers, as text; at most one more than `MAX_CATEGORIES`.
        least: of its numbers; NaN if there are none.
        greatest: of its numbers.
        lengths: distinct lengths of its lists.
    """

    name: str
    kind: pa.DataType
    rows: int = 0
    missing: int = 0
    values: set[str] = field(default_factory=set)
    least: float = np.nan
    greatest: float = np.nan
    lengths: set[int] = field(default_factory=set)

    def add(self, array: pa.Array) -> None:
        """Takes in further rows."""
        if pa.types.is_dictionary(array.type):
            array = array.dictionary_decode()
        self.rows += len(array)
        self.missing += array.null_count
        if is_list(array.type):
            known = array.drop_null()
            self.lengths.update(np.unique(list_lengths(known)).tolist())
            return
        if pa.types.is_floating(array.type):
            self.missing += pc.sum(pc.is_nan(array)).as_py() or 0
        if (is_text(array.type) or pa.types.is_integer(array.type)) and len(self.values) <= MAX_CATEGORIES:
            self.values.update(pc.unique(category_text(array).drop_null()).slice(0, MAX_CATEGORIES + 1).to_pylist())
        if is_number(array.type) or pa.types.is_boolean(array.type):
            numbers = array.cast(pa.float64(), safe=False)
            limits = pc.min_max(pc.if_else(pc.is_nan(numbers), None, numbers)).as_py()
            if limits["min"] is not None:
                self.least = float(np.fmin(self.least, limits["min"]))
                self.greatest = float(np.fmax(self.greatest, limits["max"]))


@dataclass(frozen=True)
class Found:
    """The inputs that were found, and why other columns were left out, by name."""

    inputs: tuple[InputSpec, ...]
    left_out: dict[str, str]


def find_inputs(shards: Shards, label: str, *, sequences: bool = False, leave_out: Iterable[str] = ()) -> Found:
    """The inputs of a built-in network.

    There is one of all numbers, one of numbers of which some are missing, one for each column of categories, one for each
    column of vectors and, with `sequences`, one of list columns of any length.

    Args:
        shards: the training rows.
        label: the label column.
        sequences: whether lists of unequal length are the steps of a sequence.
        leave_out: columns that are no inputs, as the key that the rows are split by.

    Raises:
        UsageError: where no column can be an input.
    """
    columns = _scan(shards, {label, *leave_out})
    left_out = dict.fromkeys(sorted(set(leave_out) - {label}), "rows are split by it")
    numbers: list[str] = []
    missing: list[str] = []
    steps: list[str] = []
    others: list[InputSpec] = []
    lengths: set[int] = set()
    for column in columns:
        inner = innermost(column.kind)
        if (reason := _useless(column)) is not None:
            left_out[column.name] = reason
        elif is_list(column.kind):
            if is_list(column.kind.value_type) or not (is_number(inner) or pa.types.is_boolean(inner)):
                left_out[column.name] = f"holds {column.kind}"
            elif sequences and (not steps or column.lengths == lengths):
                steps.append(column.name)
                lengths = column.lengths
            elif len(column.lengths) > 1:
                left_out[column.name] = "lists of unequal length, which --architecture=lstm takes"
            else:
                name = _input_name(column.name, len(others))
                others.append(NumericInput(name=name, columns=(column.name,), shape=(next(iter(column.lengths)),)))
        elif is_text(inner):
            if _too_many(column):
                left_out[column.name] = f"text of {_count(column)} values, too many for categories"
            else:
                others.append(_categories(column, len(others)))
        elif is_number(inner) or pa.types.is_boolean(inner):
            (missing if column.missing else numbers).append(column.name)
        else:
            left_out[column.name] = f"holds {column.kind}; compute numbers from it in features"
    inputs: list[InputSpec] = []
    if steps:
        inputs.append(SequenceInput(name=STEPS, columns=tuple(steps), mask=LENGTHS))
    if numbers:
        inputs.append(NumericInput(name=NUMBERS, columns=tuple(numbers)))
    if missing:
        inputs.append(NumericInput(name=SOME_MISSING, columns=tuple(missing), fill=float("nan"), allow_nonfinite=True))
    inputs += others
    if not inputs or (sequences and not steps):
        wanted = (
            "a list column, the steps of a sequence" if sequences else "a column of numbers, or of text of few values"
        )
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(left_out.items())[:5])
        raise UsageError(f"there is no input to learn from: {wanted} is needed{reasons and f' ({reasons})'}")
    return Found(tuple(inputs), left_out)


def _scan(shards: Shards, leave_out: Collection[str]) -> list[Column]:
    columns = [Column(each.name, each.type) for each in shards.schema if each.name not in leave_out]
    for batch in shards.batches(SCAN_ROWS):
        for column in columns:
            column.add(batch.column(column.name))
    return columns


def _useless(column: Column) -> str | None:
    """Why nothing can be learned from a column; None where something can."""
    if column.missing == column.rows or (is_list(column.kind) and column.lengths <= {0}):
        return "has no values"
    if len(column.values) == 1 or column.least == column.greatest:
        return "has the same value in every row" if not column.missing else None
    if is_id(column.name, column.kind, len(column.values), column.rows):
        return f"is named like an id, and has {_count(column)} values"
    return None


def is_id(name: str, kind: pa.DataType, values: int, rows: int) -> bool:
    """Whether a column identifies rows: integers under the name of an id, (nearly) all of them different.

    Args:
        name: of the column.
        kind: its type.
        values: how many different ones there are, counted up to a thousand or more.
        rows: how many rows there are.
    """
    named = name.lower().rsplit("_", 1)[-1] in _ID_NAMES
    return named and pa.types.is_integer(kind) and values >= min(rows, MAX_CATEGORIES + 1)


def _too_many(column: Column) -> bool:
    return len(column.values) > max(2, min(MAX_CATEGORIES, column.rows // ROWS_PER_CATEGORY))


def _count(column: Column) -> str:
    return f"{len(column.values):,}" if len(column.values) <= MAX_CATEGORIES else f"more than {MAX_CATEGORIES:,}"


def _categories(column: Column, index: int) -> CategoricalInput:
    """The categories of a column in the training rows; any other value has the code `unknown`; null is a category."""
    values = sorted(column.values | ({MISSING} if column.missing else set()))
    return CategoricalInput(
        name=_input_name(column.name, index),
        columns=(column.name,),
        shape=(1,),
        categories=tuple(values),
        unknown=len(values),
        fill=MISSING if column.missing else None,
    )


def _input_name(column: str, index: int) -> str:
    """A name that `forward` can take as a keyword: the column's own where it can be one."""
    return column if column.isidentifier() and column not in _RESERVED else f"column_{index}"
