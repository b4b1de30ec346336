"""Two models on the same rows, without labels: how often they agree, and how much they differ where they do not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.pvalue import PCollection

from handlers.errors import UsageError
from handlers.graph.plan import GraphPlan, Node
from transforms.evaluation.plan import CLASS, CONFIDENCE, LABELS, NUMBER
from transforms.evaluation.regression import Residuals
from transforms.evaluation.sums import Moments
from transforms.evaluation.worst import Worst

EXACT_DIFFERENCES = 1_000_000  # up to so many are kept exactly, 8 MB; beyond that they are counted in bins
MAX_PAIRS = 20_000  # distinct pairs of classes that are counted separately
_SHOWN = 8  # input columns of the rows that differ most
_ANSWERS = {"classification": (CLASS, CONFIDENCE), "multilabel": (LABELS, "probabilities"), "regression": (NUMBER,)}


@dataclass(frozen=True)
class AgreementPlan:
    """What is compared. Picklable; it travels to the workers.

    Attributes:
        task: of both models.
        models: their names.
        versions: the columns that are null where a model gave no answer.
        answers: the columns of the answers of each, in the same order.
        shown: the columns of the rows that differ most.
    """

    task: str
    models: tuple[str, str]
    versions: tuple[str, str]
    answers: tuple[tuple[str, ...], tuple[str, ...]]
    shown: tuple[str, ...]

    @staticmethod
    def of(plan: GraphPlan, first: str, second: str) -> AgreementPlan:
        """The comparison of two models of a run; raises `UsageError` where their answers cannot be compared."""
        nodes = {node.name: node for node in plan.nodes}
        pair = nodes[first], nodes[second]
        tasks = [node.settings.model.spec.task for node in pair]
        if tasks[0] != tasks[1]:
            raise UsageError(
                f'compare: model "{first}" is of task {tasks[0]} and "{second}" of task {tasks[1]}; only models of one task '
                "can be compared"
            )
        if tasks[0] not in _ANSWERS:
            raise UsageError(
                f'compare: models "{first}" and "{second}" are of task {tasks[0]}; only {", ".join(_ANSWERS)} can be compared'
            )
        answers = tuple(tuple(_column(node, name) for name in _ANSWERS[tasks[0]]) for node in pair)
        kinds = [plan.output.field(columns[0]).type for columns in answers]
        if kinds[0] != kinds[1]:
            raise UsageError(
                f'compare: the answers of "{first}" are {kinds[0]} and those of "{second}" {kinds[1]}; they cannot be compared'
            )
        simple = [name for name in plan.carried if not pa.types.is_nested(plan.output.field(name).type)]
        shown = (*(name for columns in answers for name in columns), *simple[:_SHOWN])
        return AgreementPlan(tasks[0], (first, second), (pair[0].version, pair[1].version), answers, shown)  # type: ignore[arg-type]


def _column(node: Node, name: str) -> str:
    for column, source in node.outputs:
        if source == name:
            return column
    raise UsageError(f'compare: model "{node.name}" has no output column "{name}"; its postprocess has removed it')


@dataclass
class Side:
    """The answers of one model to all rows that it answered: rows, rows by class, and its confidence or number."""

    rows: int = 0
    classes: Counter[str] = field(default_factory=Counter)
    value: Moments = field(default_factory=Moments.none)

    def merge(self, other: Side) -> None:
        """Adds the rows of another."""
        self.rows += other.rows
        self.classes.update(other.classes)
        self.value += other.value


@dataclass
class Agreement:
    """All that is kept of the rows of a comparison; a few MB at most, however many rows there are.

    Attributes:
        first: the answers of the first model.
        second: those of the second.
        rows: rows that both answered.
        equal: those of them with equal answers.
        pairs: rows that both answered, by the classes of the first and the second.
        other_pairs: rows of further pairs, where there are too many of them.
        difference: of the numbers (confidence, probability, prediction), first − second; of several in a row their mean.
        distance: the absolute differences.
        both: the numbers of each model, on rows that both answered.
        total: their sums, for the correlation.
        spread: the distribution of the differences.
        most_different: the rows that differ most.
    """

    plan: AgreementPlan
    first: Side = field(default_factory=Side)
    second: Side = field(default_factory=Side)
    rows: int = 0
    equal: int = 0
    pairs: Counter[tuple[str, str]] = field(default_factory=Counter)
    other_pairs: int = 0
    difference: Moments = field(default_factory=Moments.none)
    distance: Moments = field(default_factory=Moments.none)
    both: tuple[Moments, Moments] = field(default_factory=lambda: (Moments.none(), Moments.none()))
    total: Moments = field(default_factory=Moments.none)
    spread: Residuals = field(default_factory=lambda: Residuals(EXACT_DIFFERENCES))
    most_different: Worst = field(init=False)

    def __post_init__(self) -> None:
        self.most_different = Worst(self.plan.shown)

    def add(self, batch: pa.RecordBatch) -> None:
        """Counts the rows of a batch of predictions."""
        answered = [batch.column(name).is_valid() for name in self.plan.versions]
        sides = (self.first, self.second)
        for side, valid, columns in zip(sides, answered, self.plan.answers, strict=True):
            rows = batch.select(list(columns))
            if (answers := pc.sum(valid).as_py() or 0) < rows.num_rows:
                rows = rows.filter(valid)
            if self.plan.task == "classification":
                found = pc.value_counts(rows.column(columns[0])).to_pylist()
                side.classes.update({str(each["values"]): each["counts"] for each in found})
            numbers = _numbers(rows, columns)
            side.rows += answers
            if numbers is not None:
                side.value += Moments.of(numbers.mean(axis=1))
        index = np.flatnonzero(pc.and_(*answered).to_numpy(zero_copy_only=False))
        if len(index):
            self._add_both(batch, index)

    def _add_both(self, batch: pa.RecordBatch, index: np.ndarray) -> None:
        rows = batch if len(index) == batch.num_rows else batch.take(pa.array(index))
        one, two = self.plan.answers
        self.rows += rows.num_rows
        equal = None
        if self.plan.task == "classification":
            equal = self._count_pairs(rows.column(one[0]), rows.column(two[0]))
        elif self.plan.task == "multilabel":
            both = zip(rows.column(one[0]).to_pylist(), rows.column(two[0]).to_pylist(), strict=True)
            equal = np.fromiter((set(a) == set(b) for a, b in both), bool, rows.num_rows)
        first, second = _numbers(rows, one), _numbers(rows, two)
        distance = np.zeros(rows.num_rows)
        if first is not None and second is not None and first.shape == second.shape:
            difference = (first - second).mean(axis=1)
            distance = np.abs(first - second).mean(axis=1)
            self.difference += Moments.of(difference)
            self.distance += Moments.of(distance)
            self.both = (self.both[0] + Moments.of(first.mean(axis=1)), self.both[1] + Moments.of(second.mean(axis=1)))
            self.total += Moments.of(first.mean(axis=1) + second.mean(axis=1))
            self.spread.add(difference)
            if equal is None:
                equal = (first == second).all(axis=1)
            elif self.plan.task == "classification":
                # Rows with different classes come first, those in which both models are most confident at the top.
                distance = np.where(equal, distance, 1 + (first + second)[:, 0] / 2)
        if equal is None:
            equal = np.ones(rows.num_rows, dtype=bool)
        self.equal += int(equal.sum())
        self.most_different.add(distance, np.arange(rows.num_rows), rows)

    def _count_pairs(self, one: pa.Array, two: pa.Array) -> np.ndarray:
        """Counts the pairs of classes of rows; gives the mask of those with equal ones."""
        encoded = [array.dictionary_encode() for array in (one, two)]
        codes = [each.indices.to_numpy(zero_copy_only=False).astype(np.int64) for each in encoded]
        names = [[str(name) for name in each.dictionary.to_pylist()] for each in encoded]
        found, counts = np.unique(codes[0] * len(names[1]) + codes[1], return_counts=True)
        for pair, count in zip(found.tolist(), counts.tolist(), strict=True):
            self._count_pair((names[0][pair // len(names[1])], names[1][pair % len(names[1])]), count)
        equal: np.ndarray = pc.equal(one, two).to_numpy(zero_copy_only=False)
        return equal

    def _count_pair(self, pair: tuple[str, str], count: int) -> None:
        if pair in self.pairs or len(self.pairs) < MAX_PAIRS:
            self.pairs[pair] += count
        else:
            self.other_pairs += count

    def merge(self, other: Agreement) -> None:
        """Adds the rows of another."""
        self.first.merge(other.first)
        self.second.merge(other.second)
        self.rows += other.rows
        self.equal += other.equal
        for pair, count in other.pairs.items():
            self._count_pair(pair, count)
        self.other_pairs += other.other_pairs
        self.difference += other.difference
        self.distance += other.distance
        self.both = (self.both[0] + other.both[0], self.both[1] + other.both[1])
        self.total += other.total
        self.spread.merge(other.spread)
        self.most_different.merge(other.most_different)


def _numbers(rows: pa.RecordBatch, columns: tuple[str, ...]) -> np.ndarray | None:
    """The numbers of the answers, float64 of (rows, values): confidence, probabilities or predictions."""
    column = rows.column(columns[-1])
    width = 1
    if pa.types.is_fixed_size_list(column.type):
        width = column.type.list_size
        column = column.flatten()
    if not pa.types.is_floating(column.type) or not width:
        return None
    values: np.ndarray = column.to_numpy(zero_copy_only=False).astype(np.float64).reshape(-1, width)
    return values


@beam.typehints.with_input_types(pa.RecordBatch)
@beam.typehints.with_output_types(Agreement)
class AgreementFn(beam.CombineFn):
    """Adds up batches of predictions by a plan."""

    def __init__(self, plan: AgreementPlan) -> None:
        self._plan = plan

    def create_accumulator(self) -> Agreement:
        """Of no rows."""
        return Agreement(self._plan)

    def add_input(self, found: Agreement, batch: pa.RecordBatch) -> Agreement:
        """Counts the rows of a batch."""
        found.add(batch)
        return found

    def merge_accumulators(self, accumulators: Iterable[Agreement]) -> Agreement:
        """Adds them up."""
        merged = self.create_accumulator()
        for found in accumulators:
            merged.merge(found)
        return merged

    def extract_output(self, found: Agreement) -> Agreement:
        """As it is."""
        return found


@dataclass(eq=False)
class CompareModels(beam.PTransform[Any, Any]):
    """Predictions of a run of several models, `PCollection[pa.RecordBatch]`, to a PCollection of the one `Agreement`."""

    plan: AgreementPlan

    def expand(self, predictions: PCollection[pa.RecordBatch]) -> PCollection[Agreement]:
        """Adds up all batches."""
        found: PCollection[Agreement] = predictions | beam.CombineGlobally(AgreementFn(self.plan))
        return found
