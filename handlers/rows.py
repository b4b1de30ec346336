"""Plain mappings as rows of a table: wired to the model's inputs by the signature of the model directory."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from handlers.binding import bind_inputs
from handlers.chains import Rows
from handlers.encoders import BoundInput
from handlers.errors import UsageError, one_line
from handlers.failures import FailedPrediction
from handlers.formats import LoadedModel
from handlers.model_dir import ModelDir
from handlers.scorer import Chain

Failures = dict[int, FailedPrediction]

# So many rows are tried one by one where a whole first batch tells no types.
BIND_TRIES = 50


class RowTable:
    """Turns mappings into the tensors of the model's inputs, through its features and preprocess functions.

    Which columns there are is settled by the first batch. Several threads may share one.
    """

    def __init__(self, source: ModelDir, model: LoadedModel) -> None:
        self._specs = source.spec.inputs
        self._infos = model.inputs
        self._steps = Chain(source.spec.features, source.spec.preprocess).before()
        self._lock = threading.Lock()
        self._bound: tuple[BoundInput, ...] | None = None
        self._columns: tuple[str, ...] = ()
        self._plain_floats = False

    def encode(self, examples: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, dict[str, torch.Tensor], Failures]:
        """The places of the examples that can be encoded (int64, ascending), their tensors, and the others' failures."""
        if self._plain_floats and (floats := self._floats(examples)) is not None:
            return np.arange(len(examples)), floats, {}
        failures: Failures = {}
        rows = Rows(self._batch(examples, failures), np.arange(len(examples)))
        for step in self._steps:
            before, (rows, failed) = rows, step.run(rows)
            for failure in failed:
                failures[failure.id] = FailedPrediction(failure.stage, failure.type, failure.message)
            for place in set(before.ids.tolist()) - set(rows.ids.tolist()) - set(failures):
                failures[place] = FailedPrediction("preprocess", "Dropped", "a preprocess function left the row out")
        try:
            bound = self._bind(rows.batch)
        except UsageError as error:
            failures |= {
                place: FailedPrediction("encode", "UsageError", one_line(error)) for place in rows.ids.tolist()
            }
            return np.empty(0, np.int64), {}, failures
        tensors = {}
        for item in bound:
            tensors[item.spec.name], errors = item.encode(rows.batch)
            for row, problem in errors.items():
                failures.setdefault(int(rows.ids[row]), FailedPrediction("encode", problem.type, problem.message))
        places = rows.ids
        if failures:
            good = np.flatnonzero(~np.isin(places, list(failures)))
            places = places[good]
            tensors = {name: tensor[torch.from_numpy(good)] for name, tensor in tensors.items()}
        return places, tensors, failures

    def _bind(self, batch: pa.RecordBatch) -> tuple[BoundInput, ...]:
        with self._lock:
            if self._bound is None:
                self._bound = self._try_bind(batch)
                names = dict.fromkeys(name for bound in self._bound for name in bound.columns)
                self._columns = () if self._steps else tuple(names)
                self._plain_floats = not self._steps and all(
                    bound.is_plain and set(bound.widths) == {1} for bound in self._bound
                )
            return self._bound

    def _try_bind(self, batch: pa.RecordBatch) -> tuple[BoundInput, ...]:
        try:
            return bind_inputs(self._specs, self._infos, batch)
        except UsageError:
            for row in range(min(batch.num_rows, BIND_TRIES) if batch.num_rows > 1 else 0):
                try:
                    single = {
                        name: value for name, value in batch.slice(row, 1).to_pylist()[0].items() if value is not None
                    }
                    return bind_inputs(self._specs, self._infos, pa.RecordBatch.from_pylist([single]))
                except UsageError:
                    continue
            raise

    def _floats(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor] | None:
        """The tensors where every value is a number, ten times faster than by way of columns; None where one is not."""
        names = self._columns
        values = map(itemgetter(*names), examples)
        flat = values if len(names) == 1 else itertools.chain.from_iterable(values)
        try:
            matrix = np.fromiter(flat, np.float64, len(examples) * len(names)).reshape(len(examples), len(names))
        except (KeyError, TypeError, ValueError):
            return None
        tensors = {}
        for item in self._bound or ():
            places = [names.index(name) for name in item.columns]
            tensor = item.tensor_of(matrix if places == list(range(len(names))) else matrix[:, places])
            if tensor is None:
                return None
            tensors[item.spec.name] = tensor
        return tensors

    def _batch(self, examples: Sequence[Mapping[str, Any]], failures: Failures) -> pa.RecordBatch:
        names = self._columns or dict.fromkeys(itertools.chain.from_iterable(examples))
        arrays = [_array(str(name), [example.get(name) for example in examples], failures) for name in names]
        return pa.RecordBatch.from_arrays(arrays, names=[str(name) for name in names])


def _array(name: str, values: list[Any], failures: Failures) -> pa.Array:
    """The values of one column; where they have no common type, numbers as text, which the encoder reads value by value."""
    values = [value.tolist() if isinstance(value, torch.Tensor | np.ndarray) else value for value in values]
    try:
        return pa.array(values)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        pass
    kinds = [_kind(value) for value in values]
    most = max(set(kinds) - {"null"}, key=kinds.count)
    if most in ("scalar", "other"):
        return pa.array([None if value is None else str(value) for value in values], pa.string())
    lists: list[Any] = []
    for row, value in enumerate(values):
        try:
            lists.append(pa.array([value], pa.list_(pa.float64()))[0].as_py())
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            lists.append(None)
            message = f'column "{name}" holds {str(value)[:60]!r}, where other rows hold lists of numbers'
            failures[row] = FailedPrediction("encode", "WrongType", message)
    return pa.array(lists, pa.list_(pa.float64()))


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, list | tuple):
        return "list"
    return "scalar" if isinstance(value, int | float | str | bool) else "other"
