"""Text and bytes: the value of a message is the only column of the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from handlers.failures import RowFailure, RowFailures
from transforms.streams.decode import STAGE, Rows
from transforms.streams.messages import Messages


@dataclass(frozen=True)
class TextDecoder:
    """Reads values in UTF-8.

    Attributes:
        schema: a single column of strings.
    """

    schema: pa.Schema

    def rows(self, values: list[bytes], messages: Messages, indices: Sequence[int]) -> Rows:
        """The rows of `values`; see `Decoder`."""
        del messages, indices
        texts: list[str] = []
        found: list[int] = []
        failures: RowFailures = {}
        for index, value in enumerate(values):
            try:
                texts.append(value.decode())
                found.append(index)
            except UnicodeDecodeError as error:
                failures[index] = RowFailure(STAGE, "UnicodeDecodeError", f"the value is not valid UTF-8: {error}")
        batch = pa.RecordBatch.from_arrays([pa.array(texts, pa.string())], schema=self.schema)
        return Rows(batch, np.asarray(found, np.int64), failures)


@dataclass(frozen=True)
class BytesDecoder:
    """Takes values as they are.

    Attributes:
        schema: a single column of bytes.
    """

    schema: pa.Schema

    def rows(self, values: list[bytes], messages: Messages, indices: Sequence[int]) -> Rows:
        """The rows of `values`; see `Decoder`."""
        del messages, indices
        batch = pa.RecordBatch.from_arrays([pa.array(values, pa.binary())], schema=self.schema)
        return Rows(batch, np.arange(len(values)))
