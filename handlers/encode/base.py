"""What every encoder is: an input that is bound to the columns of one run, and gives tensors and row failures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from handlers.encode.specs import InputSpec
from handlers.failures import RowFailures
from handlers.tensors import Padding, Value

Tensors = dict[str, Value]


@dataclass(frozen=True)
class Encoded:
    """What became of the rows of a batch.

    Attributes:
        tensors: by the name of a model input, each of as many rows as the batch; values in rows that failed are
            undefined.
        failures: the rows that could not be encoded, by index.
        counts: what else is worth counting, by name, for the report (`texts_truncated`: texts that were cut).
    """

    tensors: Tensors
    failures: RowFailures
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class BoundInput(ABC):
    """An input of the model that is bound to the columns of one run. Picklable; it travels to the workers.

    Attributes:
        spec: as `model.yaml` gives it.
        columns: names of the columns, patterns resolved.
    """

    spec: InputSpec
    columns: tuple[str, ...]

    @abstractmethod
    def encode(self, batch: pa.RecordBatch) -> Encoded:
        """The tensors of the rows of `batch`. Never raises for a bad row or an unexpected column type."""

    @abstractmethod
    def zeros(self, rows: int) -> Tensors:
        """Placeholder tensors of `rows` rows, of the shapes and dtypes that the model gets."""

    @property
    def row_bytes(self) -> int:
        """About how many bytes an encoded row takes; a chunk is encoded in pieces of a bounded size."""
        return 0

    @property
    def sample_rows(self) -> int:
        """How many rows of a sample are scored to plan a run; few where scoring is slow."""
        return 1000

    @property
    def is_plain(self) -> bool:
        """Whether `tensor_of` encodes plain numbers."""
        return False

    def tensor_of(self, numbers: np.ndarray) -> torch.Tensor | None:
        """What `encode` gives for rows of plain numbers; only for an input that is plain.

        Args:
            numbers: float64 of (rows, columns); an integer must be one that float64 holds exactly.

        Returns:
            The tensor, of (rows, *shape) in newly allocated memory. None where `encode` must find the bad rows.
        """
        raise NotImplementedError

    @property
    def padding(self) -> Padding | None:
        """How `Ragged` tensors of this input are padded; None without `Ragged` tensors."""
        return None

    def prepare(self, folder: Path) -> BoundInput:
        """This input, ready to encode: with its files in the model directory (such as a tokenizer) opened in this process.

        Raises:
            UsageError: where it is missing or cannot be opened.
        """
        return self

    def order(self, batch: pa.RecordBatch) -> np.ndarray | None:
        """An order of the rows, int64 of (rows,), in which neighbours have similar lengths; None if any order will do."""
        return None
