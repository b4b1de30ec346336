"""Predictions and dead letters of a chunk in one table, for engines whose functions give rows of one schema.

The predictions have null in the column `DEAD`. Where rows failed, one more row has their dead letters in it, as the stream
of a record batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import pyarrow as pa

from handlers.columnar.scorer import Scored

# Which rows come back from an engine: what does not come back need not be converted for it.
Gives = Literal["predictions", "dead_letters", "both"]

DEAD = "__dead_letters__"
DEAD_FIELD = pa.field(DEAD, pa.binary())


def given(scored: Scored, gives: Gives) -> Iterator[pa.RecordBatch]:
    """The rows of a chunk that come back; `both` is `tagged`."""
    if gives == "both":
        yield from tagged(scored)
    else:
        yield scored.predictions if gives == "predictions" else scored.dead_letters


def tagged(scored: Scored) -> Iterator[pa.RecordBatch]:
    """What became of a chunk, in batches of the columns of its predictions and `DEAD`."""
    found, dead = scored.predictions, scored.dead_letters
    if found.num_rows:
        yield found.append_column(DEAD_FIELD, pa.nulls(found.num_rows, pa.binary()))
    if dead.num_rows:
        arrays = [pa.nulls(1, field.type) for field in found.schema]
        letters = pa.array([to_stream(dead)], pa.binary())
        yield pa.RecordBatch.from_arrays([*arrays, letters], schema=found.schema.append(DEAD_FIELD))


def to_stream(batch: pa.RecordBatch) -> bytes:
    """A record batch with its schema, as bytes."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def from_stream(content: pa.BinaryScalar) -> pa.RecordBatch:
    """The batch of `to_stream`."""
    return pa.ipc.open_stream(content.as_buffer()).read_next_batch()
