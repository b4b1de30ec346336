"""Encodes chunks for a shuffle as Arrow IPC streams.

Beam pickles by default, and a pickled slice includes all buffers of its parent. An IPC stream holds only the rows of the
slice and is decoded without copying. Importing this module registers the coder with Beam for
`pa.RecordBatch`, so a transform only needs that type in its annotations.
"""

from __future__ import annotations

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.coders.typecoders import registry


class ChunkCoder(beam.coders.Coder):
    """Encodes a `pa.RecordBatch`, schema included, as an Arrow IPC stream."""

    def encode(self, value: pa.RecordBatch) -> bytes:
        """The rows of `value` as bytes, without other rows of its parent and without unused dictionary values."""
        batch = _with_small_dictionaries(value)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
        encoded: bytes = sink.getvalue().to_pybytes()
        return encoded

    def decode(self, encoded: bytes) -> pa.RecordBatch:
        """The chunk in `encoded`; its columns point into those bytes."""
        with pa.ipc.open_stream(encoded) as reader:
            return reader.read_next_batch()

    def estimate_size(self, value: pa.RecordBatch) -> int:
        """About the number of bytes that `encode` returns; Beam calls it often, so it must be cheap."""
        return int(value.nbytes)

    def is_deterministic(self) -> bool:
        """False: equal chunks may have different dictionaries, so a chunk cannot be a key."""
        return False

    def to_type_hint(self) -> type:
        """The type of the encoded values."""
        return pa.RecordBatch  # type: ignore[no-any-return]

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))


def _with_small_dictionaries(batch: pa.RecordBatch) -> pa.RecordBatch:
    """`batch` without the unused values of those dictionaries that are longer than the batch."""
    for index, column in enumerate(batch.columns):
        if pa.types.is_dictionary(column.type) and len(column.dictionary) > batch.num_rows:
            batch = batch.set_column(index, batch.schema.field(index), _compacted(column))
    return batch


def _compacted(column: pa.DictionaryArray) -> pa.DictionaryArray:
    used = pc.unique(column.indices).drop_null().sort()  # sorted, so that an ordered dictionary stays in order
    indices = pc.index_in(column.indices, used).cast(column.type.index_type)
    return pa.DictionaryArray.from_arrays(indices, column.dictionary.take(used), ordered=column.type.ordered)


registry.register_coder(pa.RecordBatch, ChunkCoder)
