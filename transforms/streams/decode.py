"""From messages to rows: which messages a chunk can be made of, and why the others cannot.

One message never takes another with it: those that a format cannot read are failures by their index.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.coders.typecoders import registry

from handlers.columnar.chunks import with_provenance
from handlers.failures import RowFailure, RowFailures
from transforms.streams.coder import MessagesCoder
from transforms.streams.messages import Messages

STAGE = "decode"


@dataclass(frozen=True)
class Rows:
    """The rows of values.

    Attributes:
        batch: in the columns of the decoder.
        indices: int64: the index of the value of each row, increasing.
        failures: by index, why the other values have no row.
    """

    batch: pa.RecordBatch
    indices: np.ndarray
    failures: RowFailures = field(default_factory=dict)


class Decoder(Protocol):
    """Reads the values of messages. It is small, and goes to the workers with the pipeline."""

    @property
    def schema(self) -> pa.Schema:
        """The columns of the rows."""

    def rows(self, values: list[bytes], messages: Messages, indices: Sequence[int]) -> Rows:
        """The rows of `values`, of which none is empty: those of `messages` at `indices`. It never raises for a value.

        Raises:
            StreamError: if a service that is needed does not answer.
        """


@dataclass(frozen=True)
class Decoded:
    """Messages and their rows.

    Attributes:
        messages: as they came.
        chunk: the rows with provenance; the source is the topic and the row number the offset.
        indices: int64: for each row the index of its message, increasing.
        failures: by index of the message, why it has no row.
    """

    messages: Messages
    chunk: pa.RecordBatch
    indices: np.ndarray
    failures: RowFailures

    def __len__(self) -> int:
        return len(self.messages)


registry.register_coder(Decoded, MessagesCoder)


def decode(messages: Messages, decoder: Decoder, max_bytes: int) -> Decoded:
    """The rows of `messages`; tombstones, empty and too large values are failures, and so is what `decoder` cannot read."""
    failures: RowFailures = {}
    values: list[bytes] = []
    fitting: list[int] = []
    for index, value in enumerate(messages.values):
        if value and len(value) <= max_bytes:
            values.append(value)
            fitting.append(index)
        else:
            failures[index] = _unfit(value, max_bytes)
    rows = decoder.rows(values, messages, fitting)
    whole = len(fitting) == len(messages)
    indices = rows.indices if whole else np.asarray(fitting, np.int64)[rows.indices]
    failures |= {fitting[index]: failure for index, failure in rows.failures.items()}
    offsets = np.asarray(messages.offsets, np.int64)[indices]
    return Decoded(messages, with_provenance(rows.batch, messages.source, offsets), indices, failures)


def _unfit(value: bytes | None, max_bytes: int) -> RowFailure:
    if value is None:
        return RowFailure(STAGE, "Tombstone", "the message has no value")
    if not value:
        return RowFailure(STAGE, "Empty", "the value has no bytes")
    return RowFailure(
        STAGE, "TooLarge", f"the value has {len(value):,} bytes; --max_message_bytes allows {max_bytes:,}"
    )


@beam.typehints.with_input_types(Messages)
@beam.typehints.with_output_types(Decoded)
class Decode(beam.DoFn):
    """Micro-batches to `Decoded`."""

    def __init__(self, decoder: Decoder, max_bytes: int) -> None:
        self._decoder = decoder
        self._max_bytes = max_bytes

    def process(self, messages: Messages) -> list[Decoded]:
        """One for one."""
        return [decode(messages, self._decoder, self._max_bytes)]
