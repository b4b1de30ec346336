"""JSON: every message is one JSON object. Fields without a column are left out; a column without a field is null.

Values are read as those of JSON lines files, by the same code: one that does not fit its column, or loses digits in it, costs
its message only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from handlers.failures import RowFailures
from transforms.sources.blocks import Split
from transforms.sources.formats.jsonl import rows_of
from transforms.streams.decode import STAGE, Rows
from transforms.streams.messages import Messages


@dataclass(frozen=True)
class JsonDecoder:
    """Reads JSON objects.

    Attributes:
        schema: the columns.
        untyped: those of them whose values have no type in common; they are read as the text of their JSON.
    """

    schema: pa.Schema
    untyped: frozenset[str] = frozenset()

    def rows(self, values: list[bytes], messages: Messages, indices: Sequence[int]) -> Rows:
        """The rows of `values`; see `Decoder`."""
        lines = [value.strip() or b"?" for value in values]  # spaces alone are no JSON, and Arrow would skip them
        split = Split(messages.source, "json", untyped=self.untyped)
        offsets = np.asarray(messages.offsets, np.int64)[np.asarray(indices, np.int64)]
        batch = self.schema.empty_table().to_batches()
        good = pa.RecordBatch.from_pylist([], schema=self.schema) if not batch else batch[0]
        found = offsets[:0]
        failures: RowFailures = {}
        for block in rows_of(lines, offsets, self.schema, split, strict=False) if lines else ():
            positions = np.searchsorted(offsets, block.numbers)
            if block.refusals:
                refused = {int(positions[row]): failure for row, failure in block.refusals.items()}
                failures |= {row: replace(failure, stage=STAGE, raw=None) for row, failure in refused.items()}
            else:
                good, found = block.batch, positions
        return Rows(good, found, failures)
