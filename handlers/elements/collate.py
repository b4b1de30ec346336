"""Collation: examples of any kind become the tensors of the model's inputs, and examples that cannot get a failure.

| example | becomes |
| --- | --- |
| `torch.Tensor`, numpy array, number or list of numbers | the model's only (or first) input |
| mapping of tensors, or of numpy arrays named like the model's inputs | the inputs of those names |
| any other mapping | a row of columns, wired by the signature of the model directory |

Examples of unequal shape or dtype never share a tensor: those whose lengths differ along the first axis are padded
where there is a `Padding`, and all others form groups of one shape and dtype, which go through the model one after the
other. Whether an example can be scored, and its answer, do not depend on the others in its batch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from handlers.elements.failures import FailedPrediction, Failures, failed_prediction
from handlers.elements.rows import Binding, RowTable
from handlers.elements.signature import Signature
from handlers.errors import TorchbeamError, one_line
from handlers.isolation import isolate
from handlers.model.directory import ModelDir
from handlers.predict.loaded import LoadedModel
from handlers.tensors import MASKS, Frame, Padding, Ragged, Value, take

Collate = Callable[[Sequence[Any]], Mapping[str, torch.Tensor | Ragged]]


@dataclass(frozen=True)
class Group:
    """Examples that go through the model together.

    Attributes:
        indices: int64 of (examples,): which of the batch they are.
        inputs: by input name, of as many rows.
        binding: how they came from columns; empty where they did not, or by a binding that is kept already.
        padding: how an encoder wants its `Ragged` padded.
    """

    indices: np.ndarray
    inputs: Mapping[str, Value]
    binding: Binding = ()
    padding: Padding | None = None


class Collator:
    """Collates the examples of one model. Several threads may share one.

    Args:
        model: the loaded model.
        source: its model directory, whose signature wires plain mappings; None if there is no directory.
        padding: how unequal lengths are padded; None pads only for a model that takes a mask.
        collate: a user function that replaces all of this.

    Raises:
        UsageError: where the model directory and the model contradict each other.
    """

    def __init__(
        self,
        model: LoadedModel,
        source: ModelDir | None = None,
        padding: Padding | None = None,
        collate: Collate | None = None,
    ) -> None:
        self._signature = Signature(source.spec.inputs if source else (), model)
        self._known = {*self._signature.names, *model.parameters}
        self._padding = padding
        self._mask = next((name for name in MASKS if name in model.parameters), None)
        self._collate = collate
        self._table = RowTable(source, model) if source else None

    def __call__(self, examples: Sequence[Any]) -> tuple[list[Group], Failures]:
        """The groups of `examples`, and the examples in no group, each with the reason.

        Raises:
            TorchbeamError: where the user's `collate` gives no tensors, or another number of rows than of examples.
        """
        if self._collate is not None:
            return self._by_function(self._collate, examples)
        if self._table is not None and (tensors := self._table.plain(examples)) is not None:
            return [Group(np.arange(len(examples)), tensors)], {}
        groups: list[Group] = []
        failures: Failures = {}
        for way, chosen in self._ways(examples).items():
            indices = np.array(chosen)
            part = examples if len(chosen) == len(examples) else [examples[index] for index in chosen]
            found: list[Group] = []
            if way == "columns" and self._table is not None:
                rows = self._table.encode(part)
                failed = rows.failures
                if len(rows.indices):
                    found = [Group(rows.indices, rows.tensors, rows.binding, rows.padding)]
            elif way == "none":
                failed = {index: _no_example(example) for index, example in enumerate(part)}
            else:
                by_name = way in ("inputs", "inputs with a mask")
                found, failed = self._by_tensors(part if by_name else [{self._signature.names[0]: x} for x in part])
            groups += [replace(group, indices=indices[group.indices]) for group in found]
            failures |= {chosen[index]: failure for index, failure in failed.items()}
        return groups, failures

    def answered(self, group: Group) -> None:
        """Records that the model has answered rows of `group`: their binding of columns is kept."""
        if self._table is not None and group.binding:
            self._table.keep(group.binding)

    def padding_for(self, inputs: Mapping[str, Any]) -> Padding | None:
        """How the inputs of this name are padded; None where they are not."""
        if self._padding is not None:
            return self._padding
        return Padding(mask=self._mask) if self._mask and self._mask not in inputs else None

    def _ways(self, examples: Sequence[Any]) -> dict[str, list[int]]:
        """The indices of the examples by how they become tensors."""
        if len(set(map(type, examples))) == 1 and not isinstance(examples[0], Mapping):
            return {self._way(examples[0]): list(range(len(examples)))}
        ways: dict[str, list[int]] = defaultdict(list)
        known: dict[Any, str] = {}  # types and keys alone decide, and most examples are alike in them
        for index, example in enumerate(examples):
            kind: Any = type(example)
            if isinstance(example, Mapping):
                kind = (kind, *example, *map(type, example.values()))
            if (way := known.get(kind)) is None:
                way = known[kind] = self._way(example)
            ways[way].append(index)
        return ways

    def _way(self, example: Any) -> str:
        """How an example goes into the model.

        `tensor` or `array` as the first input, `inputs` by name (`inputs with a mask` where it brings its own), `columns`
        through the table, and `none` for what is no example.
        """
        if isinstance(example, torch.Tensor):
            return "tensor"
        if isinstance(example, np.ndarray | np.generic | list | int | float):
            return "array"
        if not isinstance(example, Mapping) or not example or not all(isinstance(name, str) for name in example):
            return "none"
        if self._table is not None and not self._holds_inputs(example):
            return "columns"
        return "inputs with a mask" if self._mask in example else "inputs"

    def _holds_inputs(self, example: Mapping[str, Any]) -> bool:
        values = example.values()
        if all(isinstance(value, torch.Tensor) for value in values):
            return True
        arrays = all(isinstance(value, torch.Tensor | np.ndarray) for value in values)
        return arrays and set(example) <= self._known

    def _by_function(self, collate: Collate, examples: Sequence[Any]) -> tuple[list[Group], Failures]:
        def call(low: int, high: int) -> Mapping[str, torch.Tensor | Ragged]:
            inputs = dict(collate(examples[low:high]))
            if not inputs:
                raise TorchbeamError("collate gave no tensors; it must give {input: tensor of (examples, …)}")
            for name, value in inputs.items():
                if len(value) != high - low:
                    raise TorchbeamError(
                        f'collate gave {len(value)} rows of "{name}" for {high - low} examples; it must give one each'
                    )
            return inputs

        found = isolate(call, 0, len(examples))
        groups = [Group(np.arange(low, high), inputs) for low, high, inputs in found.results]
        return groups, {index: failed_prediction("encode", error) for index, error in found.failures}

    def _by_tensors(self, examples: Sequence[Mapping[str, Any]]) -> tuple[list[Group], Failures]:
        padding = self.padding_for(examples[0])
        failures: Failures = {}
        groups = self._at_once(examples, padding)
        if groups is None:
            groups, failures = _by_shape(examples, padding)
        checked = []
        for group in groups:
            fitted: dict[str, torch.Tensor | Ragged] = {}
            bad: Failures = {}
            for name, value in group.inputs.items():
                if isinstance(value, Frame):  # which only rows of columns become
                    continue
                fitted[name], failed = self._signature.fit(name, value)
                bad |= failed
            failures |= {int(group.indices[row]): failure for row, failure in bad.items()}
            good = np.flatnonzero(~np.isin(np.arange(len(group.indices)), list(bad)))
            if bad:
                fitted = {name: take(value, good) for name, value in fitted.items()}
            if len(good):
                checked.append(Group(group.indices[good], fitted))
        return checked, failures

    def _at_once(self, examples: Sequence[Mapping[str, Any]], padding: Padding | None) -> list[Group] | None:
        """All examples in one group; None where they are not alike."""
        names = list(examples[0])
        if any(len(example) != len(names) for example in examples):
            return None
        try:
            stacked = {name: _stack([example[name] for example in examples]) for name in names}
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):
            return None
        inputs: dict[str, torch.Tensor | Ragged] = dict(stacked)
        if padding is not None:
            long = [name for name in names if stacked[name].dim() > 1]
            for name in padding.inputs or long[:1]:
                if name in long:
                    rows, length = stacked[name].shape[:2]
                    inputs[name] = Ragged(stacked[name].flatten(0, 1), np.arange(rows + 1, dtype=np.int64) * length)
        return [Group(np.arange(len(examples)), inputs)]


def shape_of(example: Any) -> Any:
    """What must be alike for examples to be stacked: shapes and dtypes, of mappings by name. It can be hashed."""
    if isinstance(example, torch.Tensor | np.ndarray):
        return tuple(example.shape), str(example.dtype)
    if isinstance(example, Mapping):
        return frozenset((name, shape_of(value)) for name, value in example.items())
    return ()


def _by_shape(examples: Sequence[Mapping[str, Any]], padding: Padding | None) -> tuple[list[Group], Failures]:
    """Groups of examples of one shape and dtype; with a padding, of one shape but for the length of the sequences."""
    failures: Failures = {}
    rows: list[tuple[int, dict[str, torch.Tensor]]] = []
    for index, example in enumerate(examples):
        try:
            rows.append((index, {name: _tensor(value) for name, value in example.items()}))
        except (RuntimeError, TypeError, ValueError) as error:
            failures[index] = failed_prediction("encode", error)
    sequences = _sequences([row for _, row in rows], padding)
    by_shape: dict[Any, list[tuple[int, dict[str, torch.Tensor]]]] = defaultdict(list)
    for index, row in rows:
        shape = tuple(
            (name, value.dtype, value.shape[1:] if name in sequences and value.dim() else value.shape, value.dim())
            for name, value in sorted(row.items())
        )
        by_shape[shape].append((index, row))
    groups = []
    for members in by_shape.values():
        inputs: dict[str, torch.Tensor | Ragged] = {}
        for name, first in members[0][1].items():
            values = [row[name] for _, row in members]
            inputs[name] = Ragged.of(values) if name in sequences and first.dim() else torch.stack(values)
        groups.append(Group(np.array([index for index, _ in members]), inputs))
    return groups, failures


def _sequences(rows: Sequence[Mapping[str, torch.Tensor]], padding: Padding | None) -> set[str]:
    """The names of the inputs that are padded."""
    if padding is None:
        return set()
    if padding.inputs:
        return set(padding.inputs)
    lengths = defaultdict(set)
    for row in rows:
        for name, value in row.items():
            if value.dim():
                lengths[name].add(len(value))
    unequal = {name for name, found in lengths.items() if len(found) > 1}
    return unequal or set(list(lengths)[:1])


def _no_example(example: Any) -> FailedPrediction:
    kind = type(example).__name__
    if isinstance(example, tuple) and len(example) == 2:
        what = "a (key, example) pair; wrap the handler in KeyedModelHandler"
    elif not isinstance(example, Mapping):
        what = "none"
    else:
        what = "empty" if not example else "one whose keys are not all text"
    message = f"an example must be a tensor, an array or a mapping by names; this {kind} is {what}"
    return FailedPrediction("encode", "WrongType", one_line(ValueError(message)))


def _stack(values: list[Any]) -> torch.Tensor:
    """`values` as one dense tensor; raises `TypeError` where dtypes differ, which torch and numpy would make alike."""
    if not isinstance(values[0], torch.Tensor):
        values = [np.asarray(value) for value in values]
    if len({value.dtype for value in values}) > 1:
        raise TypeError("the examples have different dtypes")
    return _tensor(torch.stack(values) if isinstance(values[0], torch.Tensor) else torch.from_numpy(np.stack(values)))


def _tensor(value: Any) -> torch.Tensor:
    """`value` as a dense tensor; raises `TypeError` where it is a sparse or nested one, which has no rows of one size."""
    tensor = value if isinstance(value, torch.Tensor) else torch.from_numpy(np.array(value))
    if tensor.layout is not torch.strided or tensor.is_nested:
        kind = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
        raise TypeError(f"the example is a {kind} tensor; examples must be dense ones, as tensor.to_dense() makes them")
    return tensor
