"""Scoring a batch of examples, one answer each. What `TorchModelHandler` loads; it knows nothing of Beam."""

from __future__ import annotations

import pickle
import threading
import time
import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from handlers.elements.collate import Collate, Collator, shape_of
from handlers.elements.failures import FailedPrediction, failed_prediction
from handlers.errors import UsageError
from handlers.model.directory import ModelDir
from handlers.model.spec import head_of
from handlers.model.state_dict import StateDict
from handlers.predict import heads
from handlers.predict.backend import placement_of
from handlers.predict.heads import Head
from handlers.predict.heads.outputs import NOT_A_NUMBER
from handlers.predict.outputs import Form
from handlers.predict.placement import Placement
from handlers.predict.predictor import Predictor
from handlers.stats import Load, Stats
from handlers.tensors import Padding, Ragged

Source = ModelDir | StateDict
InferenceFn = Callable[..., Iterable[Any]]


@dataclass(frozen=True)
class HandlerConfig:
    """How the examples of a model are scored; picklable, it travels to the workers.

    Attributes:
        source: the model.
        placement: where it runs.
        copies: how many copies of it Beam shares among the processes of a host; None where each process has its own.
        padding: how unequal lengths are padded.
        collate: from examples to tensors, replaces `handlers.elements.collate`.
        inference_fn: as Beam's handlers take it; replaces `forward`.
        head: whether an answer is the columns of the model's task, instead of the raw outputs.
    """

    source: Source
    placement: Placement = field(default_factory=Placement)
    copies: int | None = None
    padding: Padding | None = None
    collate: Collate | None = None
    inference_fn: InferenceFn | None = None
    head: bool = False

    def at(self, path: str) -> HandlerConfig:
        """The same with the model at another path."""
        source = self.source
        return replace(self, source=ModelDir(path, source.trust) if isinstance(source, ModelDir) else source.at(path))

    def load(self) -> ExampleScorer:
        """Loads the model into this process, on its device."""
        started = time.perf_counter()
        loaded = self.source.load()
        placement = placement_of(loaded, self.placement)
        slot = None
        device = None
        if self.copies is not None:
            device, slot = placement.resolve_alone(self.copies, self.source.path)
        predictor = Predictor(loaded, placement, device=device)
        scorer = ExampleScorer(self, predictor, predictor.load_since(started))
        if slot is not None:
            weakref.finalize(scorer, slot.close)
        return scorer


@dataclass(frozen=True)
class Part:
    """Answers to some of the examples of a batch, still as tensors.

    Attributes:
        indices: int64: which examples.
        outputs: tensors of (examples, …), `Ragged`, or Arrow arrays, by name.
        form: what one answer is: the only output, a tuple of them, or a dict.
    """

    indices: np.ndarray
    outputs: Mapping[str, torch.Tensor | Ragged | pa.Array]
    form: Form

    def answers(self) -> Iterable[Any]:
        """One answer an example."""
        columns = [_rows(output) for output in self.outputs.values()]
        if self.form == "tensor":
            return columns[0]
        if self.form == "sequence":
            return zip(*columns, strict=True)
        names = list(self.outputs)
        if len(names) == 2:  # as most tasks have them; a third of the time
            first, second = names
            return ({first: one, second: other} for one, other in zip(*columns, strict=True))
        return (dict(zip(names, row)) for row in zip(*columns, strict=True))  # noqa: B905 - strict costs a third more


@dataclass(frozen=True)
class Answers:
    """What became of a batch of examples; picklable.

    Attributes:
        count: how many examples there were.
        parts: the answers of the model.
        results: `(index, answer)` of a user function.
        failures: the others, by index.
        model_id: the path of the model.
        stats: what was done.
        load: what loading the model cost, reported once.
    """

    count: int
    parts: list[Part]
    results: list[tuple[int, Any]]
    failures: dict[int, FailedPrediction]
    model_id: str
    stats: Stats
    load: Load | None = None

    def in_order(self) -> Iterable[Any]:
        """An answer or a `FailedPrediction` for every example, in order."""
        if len(self.parts) == 1 and len(self.parts[0].indices) == self.count:  # the common case
            return self.parts[0].answers()
        answers: list[Any] = [_MISSING] * self.count
        for part in self.parts:
            for index, answer in zip(part.indices.tolist(), part.answers(), strict=True):
                answers[index] = answer
        for index, answer in self.results:
            answers[index] = answer
        for index, failure in self.failures.items():
            answers[index] = failure
        if any(answer is _MISSING for answer in answers):
            raise AssertionError("an example has no answer")  # a defect here, and no row may be lost to it
        return answers

    def failed_by_stage(self) -> Counter[str]:
        """How many failed at which stage."""
        return Counter(failure.stage for failure in self.failures.values())


class ExampleScorer:
    """A model in memory that scores examples. Several threads, and through a proxy several processes, may share one."""

    def __init__(self, config: HandlerConfig, predictor: Predictor, load: Load | None = None) -> None:
        self._config = config
        self._predictor = predictor
        source = config.source
        self._spec = source.spec if isinstance(source, ModelDir) else None
        if config.head and self._spec is None:
            raise UsageError("head=True needs a model directory, which gives the model's task")
        self._collator = Collator(
            predictor.model, source if isinstance(source, ModelDir) else None, config.padding, config.collate
        )
        self._lock = threading.Lock()
        self._load = load

    def score(self, examples: Sequence[Any], arguments: Mapping[str, Any] | None = None) -> Answers:
        """Scores `examples`.

        Raises:
            BrokenModelError: where the model gives another number of rows than it was given.
            DeviceLostError: where the accelerator is gone.
        """
        with self._lock:
            load, self._load = self._load, None
        stats = Stats()
        parts: list[Part] = []
        results: list[tuple[int, Any]] = []
        if self._config.inference_fn is None:
            parts, failures = self._by_model(examples, arguments or {}, stats)
        else:
            results, failures = self._by_function(self._config.inference_fn, examples, arguments or {}, stats)
        return Answers(len(examples), parts, results, failures, self._config.source.path, stats, load)

    def score_pickled(self, call: bytes) -> bytes:
        """`score` for another process.

        The arguments of a proxy's methods go through the pickler of `multiprocessing`, which sends tensors as handles on
        shared memory that the other process must fetch in time; bytes go as they are.
        """
        examples, arguments = pickle.loads(call)  # noqa: S301 - from a process of this pipeline
        return pickle.dumps(self.score(examples, arguments), protocol=5)

    def _by_model(
        self, examples: Sequence[Any], arguments: Mapping[str, Any], stats: Stats
    ) -> tuple[list[Part], dict[int, FailedPrediction]]:
        started = time.perf_counter()
        groups, failures = self._collator(examples)
        stats.encode_seconds += time.perf_counter() - started
        parts = []
        for group in groups:
            prediction = self._predictor.predict(
                group.inputs, arguments, group.padding or self._collator.padding_for(group.inputs)
            )
            stats.add(prediction.stats)
            seen: dict[int, FailedPrediction] = {}  # all rows of a broken model share one error
            for row, error in prediction.failures:
                if id(error) not in seen:
                    seen[id(error)] = failed_prediction("forward", error)
                failures[int(group.indices[row])] = seen[id(error)]
            if not len(prediction.rows):
                continue
            self._collator.answered(group)
            part = Part(group.indices[prediction.rows], prediction.outputs, prediction.form)
            if self._config.head and self._spec is not None:
                started = time.perf_counter()
                part = _decode(head_of(self._spec, self._predictor.model), part, prediction.outputs, failures)
                stats.decode_seconds += time.perf_counter() - started
            parts.append(part)
        return parts, failures

    def _by_function(
        self, function: InferenceFn, examples: Sequence[Any], arguments: Mapping[str, Any], stats: Stats
    ) -> tuple[list[tuple[int, Any]], dict[int, FailedPrediction]]:
        by_shape: dict[Any, list[int]] = defaultdict(list)
        for index, example in enumerate(examples):
            by_shape[shape_of(example)].append(index)  # such functions stack what they are given
        results: list[tuple[int, Any]] = []
        failures: dict[int, FailedPrediction] = {}
        for indices in by_shape.values():
            applied = self._predictor.apply(
                function, [examples[index] for index in indices], arguments, self._config.source.path
            )
            stats.add(applied.stats)
            results += [(indices[index], result) for index, result in applied.results]
            failures |= {indices[index]: failed_prediction("forward", error) for index, error in applied.failures}
        return results, failures


def _decode(
    head: Head, part: Part, outputs: Mapping[str, torch.Tensor | Ragged], failures: dict[int, FailedPrediction]
) -> Part:
    """The columns of the model's task instead of its outputs; rows without a number among them become failures."""
    columns, bad = heads.decode(head, outputs)
    failures |= dict.fromkeys(part.indices[bad].tolist(), FailedPrediction("head", "NotANumber", NOT_A_NUMBER))
    indices = part.indices[~bad]
    return Part(indices, columns if len(indices) else {}, "mapping")


class _Missing:
    pass


_MISSING = _Missing()


def _rows(output: torch.Tensor | Ragged | pa.Array) -> list[Any]:
    """One value an example. Tensors are copied: a view would keep, and pickle, the memory of the whole batch."""
    if isinstance(output, torch.Tensor):
        rows: tuple[torch.Tensor, ...] = torch.unbind_copy(output)  # type: ignore[func-returns-value,assignment]
        return list(rows)
    if isinstance(output, Ragged):
        return [row.clone() for row in output.rows()]
    values: list[Any] = output.to_pylist()
    return values
