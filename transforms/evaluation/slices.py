"""Metrics by the values of columns; columns of numbers are cut into bins by quantiles, found beforehand from a sample."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.pvalue import PCollection

from handlers.columnar.chunks import ROW, SOURCE
from transforms.evaluation.classification import ClassTotals, in_order
from transforms.evaluation.fingerprint import as_numbers
from transforms.evaluation.multilabel import LabelTotals
from transforms.evaluation.plan import MAX_SLICES, SLICE_BINS, EvaluationPlan
from transforms.evaluation.regression import NumberTotals
from transforms.evaluation.rows import TaskRows, as_text

TOTALS: dict[str, Any] = {"classification": ClassTotals, "multilabel": LabelTotals, "regression": NumberTotals}
SAMPLE = 20_000  # values of a column from which its quantiles are taken: within 1 % of the rank
_FEW_VALUES = 12  # a column of no more different numbers is sliced by the numbers themselves
_BIN = "__slice__"

Edges = dict[str, tuple[float, ...] | None]


@dataclass
class Slices:
    """Totals by column and value (None for null); `too_many` are the columns that have more than `MAX_SLICES` values."""

    plan: EvaluationPlan
    totals: dict[str, dict[str | None, Any]] = field(default_factory=dict)
    too_many: set[str] = field(default_factory=set)

    def add(self, rows: TaskRows, index: np.ndarray, chunk: pa.RecordBatch) -> None:
        """Counts rows, whose indices in `chunk` are `index`."""
        for column in self.plan.slices:
            if column in self.too_many:
                continue
            name = _BIN + column if _BIN + column in chunk.schema.names else column
            codes = as_text(chunk.column(name)).take(pa.array(index)).dictionary_encode(null_encoding="encode")
            values = codes.dictionary.to_pylist()
            of_row = codes.indices.to_numpy(zero_copy_only=False)
            order = np.argsort(of_row, kind="stable")
            starts = np.searchsorted(of_row[order], np.arange(len(values) + 1))
            mine = self.totals.setdefault(column, {})
            if len({*mine, *values}) > MAX_SLICES:
                self._give_up(column)
                continue
            for code, value in enumerate(values):
                chosen = order[starts[code] : starts[code + 1]]
                self._of(mine, value).add(rows.take(chosen))

    def merge(self, other: Slices) -> None:
        """Adds the totals of another."""
        for column in other.too_many:
            self._give_up(column)
        for column, totals in other.totals.items():
            if column in self.too_many:
                continue
            mine = self.totals.setdefault(column, {})
            if len({*mine, *totals}) > MAX_SLICES:
                self._give_up(column)
                continue
            for value, each in totals.items():
                self._of(mine, value).merge(each)

    def _of(self, totals: dict[str | None, Any], value: str | None) -> Any:
        if value not in totals:
            totals[value] = TOTALS[self.plan.task](self.plan, whole=False)
        return totals[value]

    def _give_up(self, column: str) -> None:
        self.too_many.add(column)
        self.totals.pop(column, None)

    def metrics(self) -> dict[str, dict[str, dict[str, Any]]]:
        """By column and value: the metrics of its rows; null is "null"."""
        found: dict[str, dict[str, dict[str, Any]]] = {}
        for column, totals in self.totals.items():
            binned = column in self.plan.numeric_slices
            ordered = sorted(
                totals,
                key=lambda value: (value is None, (False, 0.0, value or "") if binned else in_order(value or "")),
            )
            found[column] = {
                ("null" if value is None else value.partition(_BIN)[2] or value): totals[value].metrics()
                for value in ordered
                if totals[value].rows
            }
        return found


@dataclass
class Sample:
    """A uniform sample of the values of columns of numbers: those whose rows have the smallest hashes, wherever they are read."""

    columns: tuple[str, ...]
    hashes: dict[str, np.ndarray] = field(default_factory=dict)
    values: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, chunk: pa.RecordBatch) -> None:
        """Looks at the rows of a chunk, which has provenance."""
        sources = chunk.column(SOURCE)
        names = np.array([zlib.crc32(name.encode()) for name in sources.dictionary.to_pylist()], np.uint64)
        hashes = _mixed(
            chunk.column(ROW).to_numpy().astype(np.uint64) ^ (names[sources.indices.to_numpy()] << np.uint64(31))
        )
        for column in self.columns:
            values = as_numbers(chunk.column(column))
            assert values is not None  # noqa: S101 - they are the columns of numbers
            good = np.isfinite(values)
            self._keep(column, hashes[good], values[good])

    def merge(self, other: Sample) -> None:
        """Adds the values of another."""
        for column in other.hashes:
            self._keep(column, other.hashes[column], other.values[column])

    def _keep(self, column: str, hashes: np.ndarray, values: np.ndarray) -> None:
        if column in self.hashes:
            hashes = np.concatenate([self.hashes[column], hashes])
            values = np.concatenate([self.values[column], values])
        if len(hashes) > SAMPLE:
            least = np.argpartition(hashes, SAMPLE)[:SAMPLE]
            hashes, values = hashes[least], values[least]
        self.hashes[column], self.values[column] = hashes, values

    def edges(self) -> Edges:
        """The inner edges of the bins of each column; None where it is sliced by its values."""
        found: Edges = {}
        for column in self.columns:
            values = self.values.get(column, np.zeros(0))
            if len(np.unique(values)) <= _FEW_VALUES:
                found[column] = None
                continue
            cuts = np.quantile(values, np.arange(1, SLICE_BINS) / SLICE_BINS, method="inverted_cdf")
            found[column] = tuple(np.unique(cuts).tolist())
        return found


def _mixed(values: np.ndarray) -> np.ndarray:
    """SplitMix64: a hash of each number in uint64."""
    with np.errstate(over="ignore"):
        values = values + np.uint64(0x9E3779B97F4A7C15)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed: np.ndarray = values ^ (values >> np.uint64(31))
    return mixed


def with_bins(chunk: pa.RecordBatch, edges: Edges) -> pa.RecordBatch:
    """`chunk` with a column of bin names for each column that is cut into bins."""
    for column, cuts in edges.items():
        values = as_numbers(chunk.column(column))
        if cuts is None or values is None:
            continue
        index = np.searchsorted(cuts, values)
        shown = [f"{cut:.6g}" for cut in cuts]
        # In order of the bins, not of their texts.
        names = [
            f"≤ {shown[0]}",
            *(f"{low} – {high}" for low, high in pairwise(shown)),
            f"> {shown[-1]}",
        ]
        ordered = pa.array([f"{position}{_BIN}{name}" for position, name in enumerate(names)])
        texts = ordered.take(pa.array(index, mask=~np.isfinite(values)))
        chunk = chunk.append_column(_BIN + column, texts)
    return chunk


@beam.typehints.with_output_types(Any)
class _SampleFn(beam.CombineFn):
    def __init__(self, columns: tuple[str, ...]) -> None:
        self._columns = columns

    def create_accumulator(self) -> Sample:
        return Sample(self._columns)

    def add_input(self, sample: Sample, chunk: pa.RecordBatch) -> Sample:
        sample.add(chunk)
        return sample

    def merge_accumulators(self, samples: Iterator[Sample]) -> Sample:
        merged = self.create_accumulator()
        for sample in samples:
            merged.merge(sample)
        return merged

    def extract_output(self, sample: Sample) -> Edges:
        return sample.edges()


@dataclass(eq=False)
class FindEdges(beam.PTransform[Any, Any]):
    """Chunks with provenance to a PCollection of the one `Edges` of `columns`."""

    columns: tuple[str, ...]

    def expand(self, chunks: PCollection[pa.RecordBatch]) -> PCollection[Any]:
        """Combines samples."""
        edges: PCollection[Any] = chunks | beam.CombineGlobally(_SampleFn(self.columns))
        return edges


def slice_kinds(schema: pa.Schema, columns: tuple[str, ...]) -> tuple[str, ...]:
    """Those of `columns` that hold numbers or dates."""
    empty = {name: pa.nulls(0, schema.field(name).type) for name in columns}
    return tuple(name for name, array in empty.items() if as_numbers(array) is not None)


def can_slice(kind: pa.DataType) -> bool:
    """Whether rows can be sliced by a column of that type."""
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    return not (pa.types.is_nested(value) or pa.types.is_binary(value) or pa.types.is_large_binary(value))
