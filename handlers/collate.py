"""Collation: examples of any kind become the tensors of the model's inputs, and examples that cannot are told apart.

| example | becomes |
| --- | --- |
| `torch.Tensor`, numpy array, number or list of numbers | the model's only (or first) input |
| mapping of tensors, or of numpy arrays named like the model's inputs | the inputs of those names |
| any other mapping | a row of columns, wired by the signature of the model directory |

Examples of unequal shape never meet in one tensor: those whose lengths differ along the first axis are padded where there
is a `Padding`, and all others form groups of one shape, which go through the model one after the other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from handlers.errors import TorchbeamError, one_line
from handlers.failures import FailedPrediction, failed_prediction
from handlers.formats import LoadedModel
from handlers.isolation import isolate
from handlers.model_dir import ModelDir
from handlers.ragged import Padding, Ragged
from handlers.rows import RowTable
from handlers.spec import InputSpec

Collate = Callable[[Sequence[Any]], Mapping[str, torch.Tensor | Ragged]]
Failures = dict[int, FailedPrediction]

# A model that takes an input of such a name, which no example has, is told by it which places are padding.
MASKS = ("attention_mask", "mask", "padding_mask")


@dataclass(frozen=True)
class Group:
    """Examples that go through the model together.

    Attributes:
        places: int64 of (examples,): which of the batch they are.
        inputs: by input name, of as many rows.
    """

    places: np.ndarray
    inputs: Mapping[str, torch.Tensor | Ragged]


class Collator:
    """Collates the examples of one model. Several threads may share one.

    Args:
        model: the loaded model.
        source: its model directory, whose signature wires plain mappings; None where there is none.
        padding: how unequal lengths are padded; None pads only for a model that takes a mask.
        collate: a function of the user's in place of all this.
    """

    def __init__(
        self,
        model: LoadedModel,
        source: ModelDir | None = None,
        padding: Padding | None = None,
        collate: Collate | None = None,
    ) -> None:
        specs = source.spec.inputs if source else ()
        self._specs = {spec.name: spec for spec in specs}
        self._infos = {info.name: info for info in model.inputs}
        self._names = tuple(self._specs) or tuple(self._infos) or model.parameters or ("input",)
        self._known = set(self._names) | set(model.parameters)
        self._padding = padding
        self._mask = next((name for name in MASKS if name in model.parameters), None)
        self._collate = collate
        self._table = RowTable(source, model) if source else None
        parameters = getattr(model.module, "parameters", lambda: ())()
        self._float = next((tensor.dtype for tensor in parameters if tensor.is_floating_point()), torch.float32)

    def __call__(self, examples: Sequence[Any]) -> tuple[list[Group], Failures]:
        """The groups of `examples`, and the examples that are in none of them, each with the reason."""
        if self._collate is not None:
            return self._by_function(self._collate, examples)
        if (kind := _kind(examples[0])) and len(set(map(type, examples))) == 1:
            kinds = {kind: np.arange(len(examples))}
        else:
            by_kind = defaultdict(list)
            for place, example in enumerate(examples):
                by_kind[_kind(example)].append(place)
            kinds = {kind: np.array(places) for kind, places in by_kind.items()}
        groups: list[Group] = []
        failures: Failures = {}
        for kind, places in kinds.items():
            part = examples if len(places) == len(examples) else [examples[place] for place in places.tolist()]
            if kind == "mapping" and self._table is not None and not self._holds_tensors(part[0]):
                rows, tensors, failed = self._table.encode(part)
                found = [Group(rows, tensors)] if len(rows) else []
            elif kind == "":
                found, failed = [], {place: _no_example(example) for place, example in enumerate(part)}
            else:
                found, failed = self._by_tensors(part if kind == "mapping" else [{self._names[0]: x} for x in part])
            groups += [Group(places[group.places], group.inputs) for group in found]
            failures |= {int(places[place]): failure for place, failure in failed.items()}
        return groups, failures

    def padding_for(self, inputs: Mapping[str, Any]) -> Padding | None:
        """How the inputs of this name are padded; None where they are not."""
        if self._padding is not None:
            return self._padding
        return Padding(mask=self._mask) if self._mask and self._mask not in inputs else None

    def _holds_tensors(self, example: Mapping[str, Any]) -> bool:
        values = example.values()
        if all(isinstance(value, torch.Tensor) for value in values):
            return bool(values)
        arrays = all(isinstance(value, torch.Tensor | np.ndarray) for value in values)
        return self._table is None or (arrays and set(example) <= self._known)

    def _by_function(self, collate: Collate, examples: Sequence[Any]) -> tuple[list[Group], Failures]:
        def call(low: int, high: int) -> Mapping[str, torch.Tensor | Ragged]:
            inputs = dict(collate(examples[low:high]))
            for name, value in inputs.items():
                if len(value) != high - low:
                    raise TorchbeamError(
                        f'collate gave {len(value)} rows of "{name}" for {high - low} examples; it must give one each'
                    )
            return inputs

        found = isolate(call, 0, len(examples))
        groups = [Group(np.arange(low, high), inputs) for low, high, inputs in found.results]
        return groups, {place: failed_prediction("encode", error) for place, error in found.failures}

    def _by_tensors(self, examples: Sequence[Mapping[str, Any]]) -> tuple[list[Group], Failures]:
        padding = self.padding_for(examples[0])
        failures: Failures = {}
        groups = self._at_once(examples, padding)
        if groups is None:
            groups, failures = _by_shape(examples, padding)
        checked = []
        for group in groups:
            cast = {name: self._cast(name, value) for name, value in group.inputs.items()}
            good = np.ones(len(group.places), bool)
            for name, value in cast.items():
                if (spec := self._specs.get(name)) is not None or name in self._infos:
                    for row, failure in self._check(name, spec, value).items():
                        good[row] = False
                        failures[int(group.places[row])] = failure
            if not good.all():
                kept = np.flatnonzero(good)
                cast = {name: _take(value, kept) for name, value in cast.items()}
                group = Group(group.places[kept], cast)
            if len(group.places):
                checked.append(Group(group.places, cast))
        return checked, failures

    def _at_once(self, examples: Sequence[Mapping[str, Any]], padding: Padding | None) -> list[Group] | None:
        """All examples in one group; None where they are not alike."""
        names = list(examples[0])
        if any(len(example) != len(names) for example in examples):
            return None
        try:
            stacked = {name: _stack([example[name] for example in examples]) for name in names}
        except (KeyError, RuntimeError, TypeError, ValueError):
            return None
        inputs: dict[str, torch.Tensor | Ragged] = dict(stacked)
        if padding is not None:
            long = [name for name in names if stacked[name].dim() > 1]
            for name in padding.inputs or long[:1]:
                if name in long:
                    rows, length = stacked[name].shape[:2]
                    inputs[name] = Ragged(stacked[name].flatten(0, 1), np.arange(rows + 1, dtype=np.int64) * length)
        return [Group(np.arange(len(examples)), inputs)]

    def _cast(self, name: str, value: torch.Tensor | Ragged) -> torch.Tensor | Ragged:
        """`value` in the dtype of the signature; where that says nothing, floats in the dtype of the model."""
        tensor = value.values if isinstance(value, Ragged) else value
        spec, info = self._specs.get(name), self._infos.get(name)
        if spec is not None and spec.dtype:
            wanted = getattr(torch, spec.dtype)
        elif info is not None and info.dtype:
            wanted = info.dtype
        else:
            wanted = self._float if tensor.is_floating_point() else tensor.dtype
        cast = tensor.to(wanted)
        return Ragged(cast, value.offsets) if isinstance(value, Ragged) else cast

    def _check(self, name: str, spec: InputSpec | None, value: torch.Tensor | Ragged) -> Failures:
        """The rows whose shape the signature does not allow, or whose values are not finite."""
        info = self._infos.get(name)
        shape = spec.shape if spec is not None and spec.shape is not None else info.shape if info else None
        if isinstance(value, torch.Tensor) and shape is not None and tuple(value.shape[1:]) != tuple(shape):
            message = f'the example has shape {tuple(value.shape[1:])}; the model input "{name}" takes {tuple(shape)}'
            return dict.fromkeys(range(len(value)), FailedPrediction("encode", "WrongShape", message))
        tensor = value.values if isinstance(value, Ragged) else value
        if spec is None or spec.allow_nonfinite or not tensor.is_floating_point() or torch.isfinite(tensor).all():
            return {}
        bad = ~torch.isfinite(tensor).reshape(len(tensor), -1).all(dim=1).numpy()
        rows = np.flatnonzero(bad)
        if isinstance(value, Ragged):
            rows = np.unique(np.searchsorted(value.offsets, rows, side="right") - 1)
        dtype = str(tensor.dtype).removeprefix("torch.")
        message = f'the example holds a value that is not finite as {dtype}; the model input "{name}" needs finite ones'
        return dict.fromkeys(rows.tolist(), FailedPrediction("encode", "NotFinite", message))


def shape_of(example: Any) -> Any:
    """What must be alike for examples to be stacked."""
    if isinstance(example, torch.Tensor | np.ndarray):
        return tuple(example.shape)
    if isinstance(example, Mapping):
        return tuple(sorted((name, shape_of(value)) for name, value in example.items()))
    return ()


def _by_shape(examples: Sequence[Mapping[str, Any]], padding: Padding | None) -> tuple[list[Group], Failures]:
    """Groups of examples of one shape; with a padding, of one shape but for the length of the sequences."""
    failures: Failures = {}
    rows: list[tuple[int, dict[str, torch.Tensor]]] = []
    for place, example in enumerate(examples):
        try:
            rows.append((place, {name: _tensor(value) for name, value in example.items()}))
        except (RuntimeError, TypeError, ValueError) as error:
            failures[place] = failed_prediction("encode", error)
    sequences = _sequences([row for _, row in rows], padding)
    by_shape: dict[Any, list[tuple[int, dict[str, torch.Tensor]]]] = defaultdict(list)
    for place, row in rows:
        shape = tuple(
            (name, value.dtype, value.shape[1:] if name in sequences and value.dim() else value.shape, value.dim())
            for name, value in sorted(row.items())
        )
        by_shape[shape].append((place, row))
    groups = []
    for members in by_shape.values():
        inputs: dict[str, torch.Tensor | Ragged] = {}
        for name, first in members[0][1].items():
            values = [row[name] for _, row in members]
            inputs[name] = Ragged.of(values) if name in sequences and first.dim() else torch.stack(values)
        groups.append(Group(np.array([place for place, _ in members]), inputs))
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


def _kind(example: Any) -> str:
    if isinstance(example, torch.Tensor):
        return "tensor"
    if isinstance(example, Mapping):
        return "mapping"
    return "array" if isinstance(example, np.ndarray | np.generic | list | int | float) else ""


def _no_example(example: Any) -> FailedPrediction:
    what = "a (key, example) pair; wrap the handler in KeyedModelHandler" if isinstance(example, tuple) else "none"
    kind = type(example).__name__
    message = f"an example must be a tensor, an array or a mapping; this {kind} is {what}"
    return FailedPrediction("encode", "WrongType", one_line(ValueError(message)))


def _stack(values: list[Any]) -> torch.Tensor:
    if isinstance(values[0], torch.Tensor):
        return torch.stack(values)
    return torch.from_numpy(np.stack([np.asarray(value) for value in values]))


def _tensor(value: Any) -> torch.Tensor:
    return value if isinstance(value, torch.Tensor) else torch.from_numpy(np.array(value))


def _take(value: torch.Tensor | Ragged, rows: np.ndarray) -> torch.Tensor | Ragged:
    return value.take(rows) if isinstance(value, Ragged) else value[torch.from_numpy(rows)]
