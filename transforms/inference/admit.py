"""Converts incoming chunks of `Score` to the expected columns and adds provenance."""

from __future__ import annotations

import uuid
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa

from handlers.columnar.chunks import (
    PROVENANCE,
    REFUSED_FIELD,
    ROW,
    ROW_FIELD,
    SOURCE,
    SOURCE_FIELD,
    chunk_schema,
    exact_cast,
    single_batch,
    with_provenance,
    with_refusals,
    without_provenance,
)
from handlers.errors import UsageError, one_line
from handlers.failures import RowFailure
from transforms.sources.blocks import Split, fit
from transforms.sources.digits import dumps

# How messages name the origin of a row; its source and row number are in the dead letter.
_CHUNK = Split("its chunk", "arrow")


def admit(element: Any, schema: pa.Schema, needed: frozenset[str], source: str) -> pa.RecordBatch:
    """A chunk of the rows of `element`, with the columns of `schema` and provenance.

    A missing column is null, and one that is not in `schema` is dropped. Rows with a value that does not fit its column,
    and all rows of a chunk without a needed column, are marked as refused. Existing provenance is kept, and in a chunk
    of exactly the columns of `schema` so are the marks of refused rows.

    Args:
        element: a record batch or a table.
        schema: the expected columns, without provenance.
        needed: the columns without which a row cannot be scored.
        source: the source of rows without provenance. A new identifier of the element is appended to it. Row numbers
            are indices in the element, from 0.

    Raises:
        UsageError: for an element that is not a record batch or table, duplicate column names, or incomplete provenance.
    """
    batch = single_batch(element) if isinstance(element, pa.Table) else element
    if not isinstance(batch, pa.RecordBatch):
        raise UsageError(f"Score takes pa.RecordBatch or pa.Table; this element is a {type(element).__name__}")
    expected = chunk_schema(schema)
    if batch.schema.equals(expected) or batch.schema.equals(expected.append(REFUSED_FIELD)):
        return batch  # as from `ReadChunks` and `TorchScore`
    names = Counter(batch.schema.names)
    if twice := [name for name, count in names.items() if count > 1]:
        raise UsageError(f'a chunk has more than one column "{twice[0]}"; rename one of them')
    rows = without_provenance(batch)
    failures = {}
    if not rows.schema.equals(schema):
        block = fit(rows, schema, np.arange(batch.num_rows), _CHUNK, cast=exact_cast, raw=dumps)
        failures = block.refusals
        if missing := sorted(needed - names.keys()):
            message = f'the chunk has no column "{missing[0]}", which the model needs'
            failures = {
                index: RowFailure("read", "MissingColumn", message, dumps(row))
                for index, row in enumerate(rows.to_pylist())
            }
        rows = block.batch
    return with_refusals(_with_provenance(rows, batch, source), failures)


def _with_provenance(rows: pa.RecordBatch, batch: pa.RecordBatch, source: str) -> pa.RecordBatch:
    """`rows` with the provenance of `batch`, or with new provenance if it has none."""
    given = [name for name in PROVENANCE if name in batch.schema.names]
    if not given:
        return with_provenance(rows, f"{source}#{uuid.uuid4().hex[:16]}", 0)
    if len(given) == 1:
        raise UsageError(f"a chunk has the column {given[0]} alone; give it both of {SOURCE} and {ROW}, or none")
    try:
        return rows.append_column(SOURCE_FIELD, batch.column(SOURCE).cast(SOURCE_FIELD.type)).append_column(
            ROW_FIELD, batch.column(ROW).cast(ROW_FIELD.type)
        )
    except pa.ArrowException as error:
        raise UsageError(f"{SOURCE} must be text and {ROW} int64: {one_line(error)}") from None
