"""Numbers that are carried as text, since float64 does not hold their digits, become float64."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from handlers.columnar.chains import Rows, Step
from handlers.columnar.chunks import NUMBERS


def number_step() -> Step:
    """The step that converts to float64 the columns whose fields have the metadata `NUMBERS`.

    It comes before all functions, which compute with what the model gets. The output carries the columns as they were read.
    """
    return Step("numbers", "encode", _as_floats)


def _as_floats(rows: Rows) -> Rows:
    batch = rows.batch
    for index, column in enumerate(batch.schema):
        if column.metadata == NUMBERS:
            floats = _floats(batch.column(index), column.name)
            batch = batch.set_column(index, column.name, floats)
    return Rows(batch, rows.ids)


def _floats(array: pa.Array, name: str) -> pa.Array:
    if pa.types.is_string(array.type):
        array = pc.utf8_trim_whitespace(array)
    try:
        return pc.cast(array, _with_floats(array.type))
    except pa.ArrowInvalid:
        raise ValueError(f'column "{name}" holds {array[0]}, which is not a number') from None


def _with_floats(kind: pa.DataType) -> pa.DataType:
    return pa.list_(_with_floats(kind.value_type)) if pa.types.is_list(kind) else pa.float64()
