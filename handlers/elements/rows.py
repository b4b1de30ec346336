"""Plain mappings as rows of a table: wired to the model's inputs by the signature of the model directory."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from handlers.columnar.chains import Rows
from handlers.columnar.plan import Chain
from handlers.columnar.stage import prepared
from handlers.elements.failures import FailedPrediction, Failures
from handlers.encode.base import BoundInput, Tensors
from handlers.encode.binding import bind_inputs
from handlers.encode.values import is_time
from handlers.errors import UsageError, one_line
from handlers.failures import RowFailure
from handlers.model.directory import ModelDir
from handlers.predict.loaded import LoadedModel
from handlers.tensors import Padding, take

# Rows tried one by one where a whole batch has no common types.
BIND_TRIES = 50

_NO_ARRAY = (pa.ArrowException, TypeError, ValueError, OverflowError)

Binding = tuple[BoundInput, ...]


@dataclass(frozen=True)
class EncodedRows:
    """What became of a batch of mappings.

    Attributes:
        indices: int64, ascending: the examples that could be encoded.
        tensors: theirs, by input name.
        failures: the others.
        binding: how columns became tensors; empty where no binding was found, or one is fixed already.
        padding: how the `Ragged` among the tensors are padded.
    """

    indices: np.ndarray
    tensors: Tensors
    failures: Failures
    binding: Binding = ()
    padding: Padding | None = None


@dataclass(frozen=True)
class _Settled:
    """A binding that is kept.

    Attributes:
        columns: all that it takes; empty where features or functions may take others.
        plain: for each input, the indices of its columns in `columns`; None where it takes more than plain numbers.
    """

    binding: Binding
    columns: tuple[str, ...] = ()
    plain: tuple[np.ndarray, ...] | None = None


class RowTable:
    """Turns mappings into the tensors of the model's inputs, through its features and preprocess functions.

    Each batch determines its columns and list lengths, until `keep` fixes them. The names in the
    mappings must be text. Several threads may share one table.
    """

    def __init__(self, source: ModelDir, model: LoadedModel) -> None:
        self._source = source
        self._specs = source.spec.inputs
        self._parameters = model.parameters
        self._infos = model.inputs
        self._steps = Chain(source.spec.features, source.spec.preprocess).before(source.code())
        self._lock = threading.Lock()
        self._settled: _Settled | None = None

    def keep(self, binding: Binding) -> None:
        """Fixes `binding`, unless one is fixed already: a model has answered rows that it encoded."""
        with self._lock:
            if self._settled is not None:
                return
            if self._steps:
                self._settled = _Settled(binding)
                return
            indices = {
                name: index for index, name in enumerate(dict.fromkeys(n for item in binding for n in item.columns))
            }
            plain = all(item.is_plain for item in binding)
            order = tuple(np.array([indices[name] for name in item.columns]) for item in binding)
            self._settled = _Settled(binding, tuple(indices), order if plain else None)

    def plain(self, examples: Sequence[Any]) -> dict[str, torch.Tensor] | None:
        """What `encode` gives for mappings of plain numbers none of which fails, ten times faster.

        None where no binding is fixed, where it takes more than plain numbers, and for examples of any other kind.
        """
        settled = self._settled
        if settled is None or settled.plain is None or set(map(type, examples)) != {dict}:
            return None
        names, rows = settled.columns, len(examples)
        values = map(itemgetter(*names), examples)
        flat = values if len(names) == 1 else itertools.chain.from_iterable(values)
        try:  # Arrow refuses as numbers what numpy would convert by guessing: text, times, integers that float64 cannot hold
            numbers = pa.array(flat, pa.float64(), size=rows * len(names))
        except (KeyError, *_NO_ARRAY):
            return None
        if numbers.null_count or not _names_are_text(examples, len(names)):
            return None
        matrix = numbers.to_numpy().reshape(rows, len(names))
        tensors = {}
        for item, indices in zip(settled.binding, settled.plain, strict=True):
            tensor = item.tensor_of(matrix if len(settled.binding) == 1 else matrix[:, indices])
            if tensor is None:
                return None
            tensors[item.spec.name] = tensor
        return tensors

    def encode(self, examples: Sequence[Mapping[str, Any]]) -> EncodedRows:
        """The tensors of the examples that can be encoded, by way of columns, and the failures of the others."""
        failures: Failures = {}
        settled = self._settled
        rows = Rows(_batch(examples, settled.columns if settled else (), failures), np.arange(len(examples)))
        for step in self._steps:
            before, (rows, failed) = rows, step.run(rows)
            failures |= {row: _failed(failure) for row, failure in failed.items()}
            for index in set(before.ids.tolist()) - set(rows.ids.tolist()) - set(failures):
                failures[index] = FailedPrediction("preprocess", "Dropped", "a preprocess function left the row out")
        try:
            binding = settled.binding if settled else self._bind(rows.batch)
        except UsageError as error:
            unbound = FailedPrediction("encode", "UsageError", one_line(error))
            return EncodedRows(np.empty(0, np.int64), {}, dict.fromkeys(rows.ids.tolist(), unbound) | failures)
        tensors: Tensors = {}
        for item in binding:
            encoded = item.encode(rows.batch)
            tensors |= encoded.tensors
            failures = {int(rows.ids[row]): _failed(failure) for row, failure in encoded.failures.items()} | failures
        indices = rows.ids
        if failures:
            good = np.flatnonzero(~np.isin(indices, list(failures)))
            indices = indices[good]
            tensors = {name: take(tensor, good) for name, tensor in tensors.items()}
        padding = next((item.padding for item in binding if item.padding), None)
        return EncodedRows(indices, tensors, failures, () if settled else binding, padding)

    def _bind(self, batch: pa.RecordBatch) -> Binding:
        return prepared(self._bound(batch), self._source)

    def _bound(self, batch: pa.RecordBatch) -> Binding:
        try:
            return bind_inputs(self._specs, self._infos, batch, self._parameters)
        except UsageError:
            for row in range(min(batch.num_rows, BIND_TRIES) if batch.num_rows > 1 else 0):
                try:
                    single = {
                        name: value for name, value in batch.slice(row, 1).to_pylist()[0].items() if value is not None
                    }
                    return bind_inputs(self._specs, self._infos, pa.RecordBatch.from_pylist([single]), self._parameters)
                except UsageError:
                    continue
            raise


def _failed(failure: RowFailure) -> FailedPrediction:
    return FailedPrediction(failure.stage, failure.type, failure.message)


def _names_are_text(examples: Sequence[dict[Any, Any]], needed: int) -> bool:
    """Whether all keys are text, for examples that have the `needed` ones, which are."""
    if set(map(len, examples)) == {needed}:
        return True
    return all(isinstance(name, str) for name in set().union(*examples))


def _batch(examples: Sequence[Mapping[str, Any]], columns: tuple[str, ...], failures: Failures) -> pa.RecordBatch:
    """The examples as columns: these, or all that there are."""
    names = columns or tuple(dict.fromkeys(itertools.chain.from_iterable(examples)))
    arrays = [_array(name, [example.get(name) for example in examples], failures) for name in names]
    return pa.RecordBatch.from_arrays(arrays, names=names)


def _array(name: str, values: list[Any], failures: Failures) -> pa.Array:
    """The values of one column; where they have no common type, as text, which the encoder reads value by value."""
    values = [_plain(value) for value in values]
    try:
        array = pa.array(values)
        # Arrow would read text among bytes as bytes, and a number among times as one.
        mixes = pa.types.is_binary(array.type) or is_time(array.type)
        if not (mixes and any(isinstance(value, int | float | str) for value in values)):
            return array
    except _NO_ARRAY:
        pass
    texts: list[Any] = []
    for row, value in enumerate(values):
        try:
            texts.append(_text(value))
        except ValueError:  # Python writes no integer of more than 4,300 digits
            texts.append(None)
            message = f'column "{name}" holds an integer of too many digits'
            failures[row] = FailedPrediction("encode", "OutOfRange", message)
    depths = [_depth(value) for value in texts if value is not None]
    if not any(depths):
        return pa.array(texts, pa.string())
    depth = max(sorted(set(depths) - {0}), key=depths.count)
    kind = pa.string()
    for _ in range(depth):
        kind = pa.list_(kind)
    for row, value in enumerate(texts):
        if depth == 1 and isinstance(value, str):  # among lists of one level a value is a list of one
            texts[row] = [value]
        elif not _is_nested(value, depth):  # Arrow would take a text for a list of its letters
            texts[row] = None
            message = f'column "{name}" holds {str(value)[:60]!r}, where other rows hold lists of numbers'
            failures[row] = FailedPrediction("encode", "WrongType", message)
    return pa.array(texts, kind)


def _plain(value: Any) -> Any:
    """`value` as Python has it, where it is a tensor, an array or a number of numpy's."""
    if isinstance(value, np.floating):
        return float(value)  # a longdouble among integers would be cut to one
    holds = isinstance(value, torch.Tensor | np.ndarray | np.integer | np.bool_)
    return value.tolist() if holds and not isinstance(value, np.timedelta64) else value


def _text(value: Any) -> Any:
    """`value` as text, in lists as they are; flags as 1 and 0. Raises `ValueError` for an integer of too many digits."""
    if isinstance(value, list | tuple):
        return [_text(item) for item in value]
    if value is None:
        return None
    return str(int(value)) if isinstance(value, bool) else str(value)


def _depth(value: Any) -> int:
    """How many lists are around the values of `value`."""
    return 1 + max(map(_depth, value), default=0) if isinstance(value, list) else 0


def _is_nested(value: Any, depth: int) -> bool:
    """Whether every value in `value` is nested in that many lists; null matches any depth."""
    if value is None:
        return True
    if not isinstance(value, list):
        return depth == 0
    return depth > 0 and all(_is_nested(item, depth - 1) for item in value)
