"""`Rows`: what `score` takes, whatever it is: rows in memory or in files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from transforms.accounting import Counts


class Rows(ABC):
    """Rows as chunks, and results as rows of the same kind. They are read once, after `sample`.

    Attributes:
        schema: the columns.
        rows: how many rows there are; None if unknown.
        dead_letters: the rows that could not be read, after `chunks`.
        failed_files: the files that could not be read, or not to their end, after `chunks`: path, error and rows.
    """

    schema: pa.Schema
    rows: int | None
    dead_letters: Sequence[pa.RecordBatch] = ()
    failed_files: Sequence[dict[str, Any]] = ()

    @abstractmethod
    def sample(self) -> pa.RecordBatch:
        """The first rows, with provenance; empty if there are none."""

    @abstractmethod
    def chunks(self, needed: frozenset[str], model_version: str) -> Iterator[pa.RecordBatch]:
        """All rows in their order, with provenance.

        Args:
            needed: the columns that every file must have.
            model_version: what dead letters are stamped with.
        """

    @abstractmethod
    def counts(self) -> Counts:
        """What was read, and which rows of it are in `dead_letters`, after `chunks`."""

    @abstractmethod
    def back(self, results: pa.Table, rows: np.ndarray, same: Collection[str] = ()) -> Any:
        """`results` as rows of the kind that came in.

        Args:
            results: one row for each of `rows`.
            rows: int64: the numbers of the rows that they belong to; for rows in memory.
            same: names of columns that are as they came in; they may be taken from the rows themselves.
        """
