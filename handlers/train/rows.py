"""Prepared rows as tensors, by the encoders that score: a dataset of `torch.utils.data`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import torch

from handlers.columnar.chunks import other_rows
from handlers.encode.base import BoundInput
from handlers.errors import UsageError
from handlers.failures import RowFailures
from handlers.predict.micro_batches import MicroBatches
from handlers.tensors import Frame, Padding, Ragged
from handlers.train.labels import Labels
from handlers.train.prepared import Shards

SCAN_ROWS = 8192
KEPT_BYTES = 256 << 20  # of tensors; rows that take more are encoded again in every epoch

Tensors = dict[str, torch.Tensor | Ragged]
Batch = tuple[dict[str, torch.Tensor], torch.Tensor]  # inputs by name and targets, each of (rows, …)


@dataclass
class Moments:
    """Count, mean and squared deviations of numbers that arrive in parts; NaN and infinity are left out.

    Attributes:
        count: float64 of (width,).
        mean: float64 of (width,).
        squares: float64 of (width,): the sum of squared deviations from the mean.
    """

    count: torch.Tensor
    mean: torch.Tensor
    squares: torch.Tensor

    @staticmethod
    def of(numbers: torch.Tensor) -> Moments:
        """Of (rows, width)."""
        numbers = numbers.double()
        there = torch.isfinite(numbers)
        count = there.sum(dim=0).double()
        mean = torch.where(there, numbers, 0).sum(dim=0) / count.clamp(min=1)
        squares = torch.where(there, (numbers - mean) ** 2, 0).sum(dim=0)
        return Moments(count, mean, squares)

    def add(self, other: Moments) -> None:
        """Adds further numbers, by the formula of Chan, Golub and LeVeque, which loses no digits to large means."""
        total = (self.count + other.count).clamp(min=1)
        delta = other.mean - self.mean
        self.squares = self.squares + other.squares + delta**2 * self.count * other.count / total
        self.mean = self.mean + delta * other.count / total
        self.count = self.count + other.count

    @property
    def deviation(self) -> torch.Tensor:
        """Standard deviation of (width,)."""
        return (self.squares / self.count.clamp(min=1)).sqrt()


@dataclass
class RowTensors:
    """The rows of a part that can be encoded; `__getitems__` gives a batch of them.

    Attributes:
        shards: the rows.
        inputs: bound to their columns.
        labels: how the label column is read.
        good: int64: the indices in `shards` of the rows that can be encoded.
        failures: the other rows, by `encode/type`.
        example: the message of one of them.
        moments: of the numeric inputs that were asked for, and of the label of a regression, by name; the label is "".
    """

    shards: Shards
    inputs: tuple[BoundInput, ...]
    labels: Labels
    good: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    failures: Counter[str] = field(default_factory=Counter)
    example: str = ""
    moments: dict[str, Moments] = field(default_factory=dict)
    _kept: Tensors | None = None
    _targets: torch.Tensor | None = None

    @staticmethod
    def scan(
        shards: Shards,
        inputs: Sequence[BoundInput],
        labels: Labels,
        normalized: Sequence[str] = (),
        kept_bytes: int = KEPT_BYTES,
    ) -> RowTensors:
        """Encodes all rows once.

        Args:
            shards: the rows.
            inputs: bound to their columns.
            labels: how the label column is read.
            normalized: the numeric inputs whose moments are computed.
            kept_bytes: tensors of up to so many bytes are kept in memory.

        Raises:
            UsageError: for a label that cannot be learned.
        """
        rows = RowTensors(shards, tuple(inputs), labels)
        good: list[np.ndarray] = []
        parts: list[Tensors] | None = []
        targets: list[torch.Tensor] = []
        start = size = 0
        for batch in shards.batches(SCAN_ROWS):
            indices, tensors, failures = rows.encode(batch)
            rows.failures.update(f"{failure.stage}/{failure.type}" for failure in failures.values())
            rows.example = rows.example or next((each.message for each in failures.values()), "")
            good.append(start + indices)
            start += batch.num_rows
            if not len(indices):
                continue
            target = labels.targets(batch.take(pa.array(indices)) if failures else batch)
            rows._add_moments(tensors, target, normalized)
            targets.append(target)
            size += sum(_nbytes(tensor) for tensor in tensors.values())
            if parts is not None:
                parts.append(tensors)
            if size > kept_bytes:
                parts = None
        rows.good = np.concatenate(good) if good else rows.good
        if parts and targets:
            rows._kept = {name: _join([part[name] for part in parts]) for name in parts[0]}
            rows._targets = torch.cat(targets)
        return rows

    def encode(self, batch: pa.RecordBatch) -> tuple[np.ndarray, Tensors, RowFailures]:
        """The indices of the rows that can be encoded, their tensors, and why the others cannot."""
        tensors: Tensors = {}
        failures: RowFailures = {}
        for bound in self.inputs:
            encoded = bound.encode(batch)
            for name, value in encoded.tensors.items():
                if isinstance(value, Frame):  # of other frameworks
                    raise UsageError(f'the input "{name}" is a table, which no network can be trained on')
                tensors[name] = value
            failures = encoded.failures | failures
        indices = other_rows(batch.num_rows, failures)
        if failures:
            tensors = _taken(tensors, indices)
        return indices, tensors, failures

    def __len__(self) -> int:
        return len(self.good)

    def __getitem__(self, index: int) -> Batch:
        """One row."""
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """The rows at `indices`, padded and called as in scoring; those of unequal length sorted by it."""
        chosen = np.asarray(indices, dtype=np.int64)
        if self._kept is not None and self._targets is not None:
            tensors = _taken(self._kept, chosen)
            target = self._targets[torch.from_numpy(chosen)]
        else:
            batch = self.shards.take(self.good[chosen])
            _, tensors, _ = self.encode(batch)
            target = self.labels.targets(batch)
        work = MicroBatches(tensors, self.padding)
        padded = {
            name: value for name, value in work.tensors(0, len(chosen)).items() if isinstance(value, torch.Tensor)
        }
        return padded, target[torch.from_numpy(work.order)]

    @property
    def padding(self) -> Padding:
        """How rows of unequal length are padded."""
        return next((bound.padding for bound in self.inputs if bound.padding), Padding())

    def _add_moments(
        self, tensors: Mapping[str, torch.Tensor | Ragged], target: torch.Tensor, names: Sequence[str]
    ) -> None:
        found = {name: Moments.of(_matrix(tensors[name])) for name in names}
        if self.labels.task == "regression":
            found[""] = Moments.of(target)
        for name, moments in found.items():
            if name in self.moments:
                self.moments[name].add(moments)
            else:
                self.moments[name] = moments


def _taken(tensors: Tensors, indices: np.ndarray) -> Tensors:
    """The rows at `indices`."""
    index = torch.from_numpy(indices)
    return {name: each.take(indices) if isinstance(each, Ragged) else each[index] for name, each in tensors.items()}


def _matrix(tensor: torch.Tensor | Ragged) -> torch.Tensor:
    """(rows, width): the values of rows, or the features of all steps."""
    if isinstance(tensor, Ragged):
        return tensor.values
    return tensor.flatten(1) if tensor.dim() > 1 else tensor.unsqueeze(1)


def _nbytes(tensor: torch.Tensor | Ragged) -> int:
    return int(tensor.values.nbytes + tensor.offsets.nbytes if isinstance(tensor, Ragged) else tensor.nbytes)


def _join(parts: list[torch.Tensor | Ragged]) -> torch.Tensor | Ragged:
    ragged = [part for part in parts if isinstance(part, Ragged)]
    return Ragged.join(ragged) if ragged else torch.cat(parts)  # type: ignore[arg-type]
