"""`ScoreModels`: scores chunks with several models, each on its rows, and accounts for every row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property, partial
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.coders.typecoders import registry
from apache_beam.ml.inference.base import RunInference
from apache_beam.pvalue import PCollection, TaggedOutput

from handlers.batching import Batching
from handlers.columnar.chunks import MODEL_DEAD_LETTER_TYPE, dead_letter_schema, refusals
from handlers.graph.handler import GraphModelHandler
from handlers.graph.plan import GraphPlan, ModelSettings
from handlers.graph.planning import check_models, plan_graph
from handlers.graph.result import StageScored
from handlers.graph.spec import ModelSplit
from handlers.predict.placement import Placement
from handlers.sequences.cutter import WindowCutter
from handlers.sequences.windows import sample_windows
from transforms import progress
from transforms.accounting import Counts
from transforms.inference.admit import admit
from transforms.inference.rechunk import Rechunk
from transforms.inference.score import (
    COUNTS,
    DEAD_LETTERS,
    SAMPLE_ROWS,
    ScoredCoder,
    ScoredRows,
    names_of,
    settled_schema,
)
from transforms.inference.sequences import CutWindows


class _StageScoredCoder(ScoredCoder):
    def estimate_size(self, value: StageScored) -> int:
        return int(value.rows.nbytes + value.dead_letters.nbytes)

    def to_type_hint(self) -> type:
        return StageScored


registry.register_coder(StageScored, _StageScoredCoder)


@dataclass(eq=False)
class ScoreModels(beam.PTransform[Any, Any]):
    """Scores chunks with several models: `PCollection[pa.RecordBatch]` to `ScoredRows`.

    A row is scored if at least one model answered it and none failed on it that should not; see docs/several-models.md.
    Models with the same resource hints share a step, through which a row goes once; between steps rows carry the answers
    so far. When the pipeline is built, each model is loaded once in this process to determine the output columns.

    Attributes:
        models: how each model takes part, after those that it takes something from.
        schema: the columns of the chunks.
        sample: some rows; the first 1,000 are used; see `Score`. None if there are none to be had.
        columns: names and patterns of the input columns that are copied into the predictions.
        split: how rows are split among models, if they are.
        probabilities: whether a classification also returns the probability of every class.
        batching: rows and bytes of a chunk.
        source: the source of rows without provenance.
        driver: where models run in this process; None for where they run in the workers.
        run_id: the key for the row counts of `transforms.progress`; empty to count none.

    Raises:
        UsageError: for columns, expressions or functions that do not match a model.
        BrokenModelError: if a model fails on every row of the sample, and on zeros.
    """

    models: Sequence[ModelSettings]
    schema: pa.Schema
    sample: pa.RecordBatch | pa.Table | None = None
    _: KW_ONLY
    columns: Sequence[str] = ("*",)
    split: ModelSplit | None = None
    probabilities: bool = False
    batching: Batching = Batching()
    source: str = "pipeline"
    driver: Placement | None = Placement("cpu")
    run_id: str = ""

    def __post_init__(self) -> None:
        self.columns = names_of("columns", self.columns)
        self.schema = settled_schema(self.schema)

    @cached_property
    def plan(self) -> GraphPlan:
        """How every worker scores a row; the first access loads the models in this process, one after the other."""
        check_models(self.models)
        sample = self.schema.empty_table() if self.sample is None else self.sample.slice(0, SAMPLE_ROWS)
        rows = admit(sample, self.schema, frozenset(), self.source)
        rows = rows.take(pa.array(sorted(set(range(rows.num_rows)) - refusals(rows).keys()), pa.int64()))
        if self._cutter is not None:
            rows = sample_windows(rows, self._cutter, SAMPLE_ROWS)
        return plan_graph(
            self.models,
            rows,
            tuple(self.columns),
            self.split,
            probabilities=self.probabilities,
            strict=self.sample is None,
            driver=self.driver,
        )

    @property
    def predictions_schema(self) -> pa.Schema:
        """The columns of the predictions: carried columns, and those of every model."""
        return self.plan.output

    @property
    def dead_letters_schema(self) -> pa.Schema:
        """The columns of the dead letters: those of the chunks and the struct `dead_letter`, which names the model."""
        return dead_letter_schema(self.schema, MODEL_DEAD_LETTER_TYPE)

    @property
    def model_version(self) -> None:
        """None: no single model is behind what is read; for `ReadChunks`."""
        return None

    @property
    def needed(self) -> frozenset[str]:
        """The input columns without which no row can be scored; for `ReadChunks`."""
        return self.plan.needed | (self._cutter.needed if self._cutter else frozenset())

    @cached_property
    def _cutter(self) -> WindowCutter | None:
        """Cuts windows if the models take them, once for all: their sequences are the same, as the plan checks."""
        spec = self.models[0].model.spec.sequences if self.models else None
        return WindowCutter(spec, self.schema) if spec is not None and self.schema.names else None

    def expand(self, chunks: PCollection[Any]) -> ScoredRows:
        """Admit → rechunk → for every stage RunInference and split; windows are cut before."""
        batching = self.batching
        rows: PCollection[pa.RecordBatch] = chunks | "Admit" >> beam.Map(
            partial(admit, schema=self.schema, needed=self.needed, source=self.source)
        ).with_input_types(pa.RecordBatch | pa.Table).with_output_types(pa.RecordBatch)
        letters: list[PCollection[pa.RecordBatch]] = []
        counts: list[PCollection[Counts]] = []
        if self._cutter is not None:
            cut = CutWindows(self._cutter, batching.chunk_rows, batching.chunk_bytes, self.run_id)
            rows, in_windows = rows | "Sequences" >> cut
            counts.append(in_windows)
        rows = rows | "Rechunk" >> Rechunk(batching.chunk_rows, batching.chunk_bytes)
        stages = self.plan.stages
        for stage, nodes in enumerate(stages):
            handler = GraphModelHandler(self.plan, stage, self.batching)
            last = stage == len(stages) - 1
            outputs = (
                rows
                | f"RunInference {'+'.join(node.name for node in nodes)}"
                >> RunInference(handler).with_output_types(StageScored)
                | f"Split{stage}"
                >> beam.ParDo(_Split(self.run_id, last)).with_outputs(DEAD_LETTERS, COUNTS, main="rows")
            )
            rows = outputs.rows
            letters.append(outputs[DEAD_LETTERS])
            counts.append(outputs[COUNTS])
        return ScoredRows(rows, letters | "DeadLetters" >> beam.Flatten(), counts | "Counts" >> beam.Flatten())


@beam.typehints.with_output_types(pa.RecordBatch, dead_letters=pa.RecordBatch, counts=Counts)
@dataclass
class _Split(beam.DoFn):
    run_id: str
    last: bool

    def process(self, scored: StageScored) -> Iterator[Any]:
        counts = Counts(
            rows_scored=scored.rows.num_rows if self.last else 0,
            rows_dropped=scored.dropped,
            rows_dead=scored.dead_letters.num_rows,
            dead_by_error=dict(scored.dead_by_error),
            noted=dict(scored.stats.counts),
            models=scored.models,
        )
        if self.run_id:
            progress.add(self.run_id, counts)
        if scored.rows.num_rows:
            yield scored.rows
        if scored.dead_letters.num_rows:
            yield TaggedOutput(DEAD_LETTERS, scored.dead_letters)
        yield TaggedOutput(COUNTS, counts)
