"""`Score`: scores chunks of rows through RunInference and accounts for every row."""

from __future__ import annotations

import gc
import os
import pickle
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import apache_beam as beam
import pyarrow as pa
from apache_beam.coders.typecoders import registry
from apache_beam.ml.inference.base import RunInference
from apache_beam.pvalue import PCollection

from handlers.batching import Batching, ResourceHints
from handlers.columnar.chunks import PROVENANCE, RESERVED, dead_letter_schema, refusals
from handlers.columnar.handler import ColumnarModelHandler
from handlers.columnar.plan import Chain, Plan
from handlers.columnar.planning import make_plan
from handlers.columnar.scorer import Scored
from handlers.errors import UsageError
from handlers.model.directory import ModelDir
from handlers.predict.backend import placement_of
from handlers.predict.placement import Placement
from handlers.predict.predictor import Predictor
from handlers.refresh.watch import Refresh
from handlers.sequences.cutter import WindowCutter
from handlers.sequences.windows import sample_windows
from transforms import progress
from transforms.accounting import Counts
from transforms.inference import chunk_coder  # noqa: F401 - registers the coder of chunks
from transforms.inference.admit import admit
from transforms.inference.failure_rate import CheckFailureRate
from transforms.inference.rechunk import Rechunk
from transforms.inference.sequences import CutWindows

SAMPLE_ROWS = 1000

DEAD_LETTERS = "dead_letters"
COUNTS = "counts"


class ScoredCoder(beam.coders.Coder):
    """Beam's default coder with a cheap size estimate, for what RunInference gives for a chunk.

    RunInference and the split are fused, so a `Scored` is only ever measured. Beam measures a share of all elements, by
    default by pickling them, which took 5% of a run.
    """

    def encode(self, value: Any) -> bytes:
        """The pickled value."""
        return pickle.dumps(value, protocol=5)

    def decode(self, encoded: bytes) -> Any:
        """The value."""
        return pickle.loads(encoded)  # noqa: S301 - from a worker of this pipeline

    def estimate_size(self, value: Any) -> int:
        """Bytes of the rows."""
        return int(value.predictions.nbytes + value.dead_letters.nbytes)

    def is_deterministic(self) -> bool:
        """False: it cannot be a key."""
        return False

    def to_type_hint(self) -> type:
        """The type of the values."""
        return Scored

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))


registry.register_coder(Scored, ScoredCoder)


class ScoredRows(NamedTuple):
    """The outputs of `Score`.

    Attributes:
        predictions: record batches of the rows that were scored, in the output schema of the plan.
        dead_letters: record batches of the rows that could not be scored, as they were read, with the struct `dead_letter`.
        counts: `Counts` of every scored chunk: rows scored, dropped and dead add up to its rows.
    """

    predictions: PCollection[pa.RecordBatch]
    dead_letters: PCollection[pa.RecordBatch]
    counts: PCollection[Counts]


@dataclass(eq=False)
class Score(beam.PTransform[Any, Any]):
    """Scores chunks: `PCollection[pa.RecordBatch]` (or `pa.Table`) to `ScoredRows`.

    Every row comes out once: in the predictions, in the dead letters, or counted as dropped by a function. When the
    pipeline is built, the model is loaded once in this process, on the CPU, to determine the output columns; invalid
    settings raise then. Chunks have the columns of `schema`: others are dropped, a missing one is null, and a row whose
    value does not fit becomes a dead letter.

    A dead letter has the source and row number of its row. Chunks of `ReadChunks` have both, and any chunk may have them
    in the columns `__source__` (text) and `__row__` (int64). For other chunks the source is `source`, `#` and an
    identifier of the incoming chunk; the row number is the index in that chunk, from 0. A retried bundle gets new
    identifiers; only those of one attempt are output.

    Attributes:
        model: a model directory, its path, or the path of a bare `.pt2` or TorchScript file.
        schema: the columns of the chunks; those of `sample` by default.
        sample: some rows; the first 1,000 are used. They determine what a schema does not contain: the length of lists of
            variable length, and the columns that functions create. Without a sample, rows of zeros are used; an empty
            sample means an input without rows.
        columns: names and patterns of the input columns that are copied into the predictions.
        preprocess: functions on rows, as `module:function`, after those of the model directory.
        postprocess: functions on predictions, likewise.
        probabilities: whether a classification also returns the probability of every class.
        placement: where the model runs in every worker.
        batching: rows and bytes of a chunk, and rows of one model call.
        hints: resource hints of the inference step.
        source: the source of rows without provenance.
        max_failure_rate: share of dead letters among the rows of a window above which the pipeline fails with a
            `FailureRateError`, at the end of the window. Outputs may be written by then.
        driver: where the model runs in this process, to determine the output columns.
        run_id: the key for the row counts of `transforms.progress`; empty to count none.
        refresh: where newer models are, which take the place of `model` between two batches while the pipeline runs:
            `watch = ModelWatch("models/credit/*")`, `Score(watch.first(), schema, refresh=Refresh(watch, every=60))`. Models
            whose output columns differ are refused.

    Raises:
        UsageError: for an invalid model directory, or columns or functions that do not match the model.
        BrokenModelError: if the model fails on every row of the sample, and on zeros.
    """

    model: ModelDir | str | os.PathLike[str]
    schema: pa.Schema | None = None
    sample: pa.RecordBatch | pa.Table | None = None
    _: KW_ONLY
    columns: Sequence[str] = ("*",)
    preprocess: Sequence[str] = ()
    postprocess: Sequence[str] = ()
    probabilities: bool = False
    placement: Placement = Placement()
    batching: Batching = Batching()
    hints: ResourceHints = ResourceHints()
    source: str = "pipeline"
    max_failure_rate: float = 1.0
    driver: Placement = Placement("cpu")
    run_id: str = ""
    refresh: Refresh | None = None

    def __post_init__(self) -> None:
        self._model = self.model if isinstance(self.model, ModelDir) else ModelDir(self.model)
        self.columns = names_of("columns", self.columns)
        self.preprocess = names_of("preprocess", self.preprocess)
        self.postprocess = names_of("postprocess", self.postprocess)
        if not 0 <= self.max_failure_rate <= 1:
            raise UsageError(f"max_failure_rate must be a number from 0 to 1, not {self.max_failure_rate}")
        given = self.schema if self.schema is not None else self.sample.schema if self.sample is not None else None
        if given is None:
            raise UsageError("Score needs the schema of the chunks, or a sample of them")
        self._schema = settled_schema(given)

    @cached_property
    def plan(self) -> Plan:
        """How every worker scores a row; the first access loads the model in this process."""
        plan = self.settle(Predictor(self._model.load(), self.driver, self.batching.batch_size))
        if self._model.spec.placement is not None:
            gc.collect()  # its hooks refer to it, and the workers of this process load it again
        return plan

    @property
    def predictions_schema(self) -> pa.Schema:
        """The columns of the predictions: carried columns, the columns of the task, and `model_version`."""
        return self.plan.output

    @property
    def dead_letters_schema(self) -> pa.Schema:
        """The columns of the dead letters: the columns of the chunks and the struct `dead_letter`."""
        return dead_letter_schema(self._schema)

    @property
    def needed(self) -> frozenset[str]:
        """The input columns without which no row can be scored; for `ReadChunks`."""
        return self.plan.needed | (self._cutter.needed if self._cutter else frozenset())

    @cached_property
    def _cutter(self) -> WindowCutter | None:
        """Cuts windows if the model takes them."""
        spec = self._model.spec.sequences
        return WindowCutter(spec, self._schema) if spec is not None and self._schema.names else None

    @property
    def model_version(self) -> str:
        """The version of the model, which is written into predictions and dead letters."""
        return self._model.version

    def settle(self, predictor: Predictor) -> Plan:
        """How every worker scores a row, determined by scoring the sample with `predictor`."""
        placement_of(predictor.model, self.placement)  # raises for what every worker would refuse
        strict = self.sample is None
        chain = Chain.of(self._model.spec, tuple(self.preprocess), tuple(self.postprocess))
        columns = tuple(self.columns)
        return make_plan(
            self._model, predictor, self._rows, chain, columns, probabilities=self.probabilities, strict=strict
        )

    @property
    def _rows(self) -> pa.RecordBatch:
        """The rows of the sample as they are scored."""
        if self.sample is None and not self._schema.names:
            raise UsageError("the schema has no columns, so there is nothing to score")
        sample = self._schema.empty_table() if self.sample is None else self.sample.slice(0, SAMPLE_ROWS)
        rows = admit(sample, self._schema, frozenset(), self.source)
        rows = rows.take(pa.array(sorted(set(range(rows.num_rows)) - refusals(rows).keys()), pa.int64()))
        if self._cutter is not None:
            rows = sample_windows(rows, self._cutter, SAMPLE_ROWS)
        return rows

    @property
    def handler(self) -> ColumnarModelHandler:
        """The model handler of the inference step."""
        sample = None if self.refresh is None else self._rows
        return ColumnarModelHandler(
            self._model, self.plan, self.placement, self.batching, self.hints, self.refresh, sample
        )

    def expand(self, chunks: PCollection[Any]) -> ScoredRows:
        """Admit → rechunk → RunInference → split; windows are cut before they are scored."""
        handler = self.handler
        admitted = chunks | "Admit" >> beam.Map(
            partial(admit, schema=self._schema, needed=self.needed, source=self.source)
        ).with_input_types(pa.RecordBatch | pa.Table).with_output_types(pa.RecordBatch)
        in_windows = None
        if self._cutter is not None:
            batching = self.batching
            cut = CutWindows(self._cutter, batching.chunk_rows, batching.chunk_bytes, self.run_id)
            admitted, in_windows = admitted | "Sequences" >> cut
        outputs = (
            admitted
            | "Rechunk" >> Rechunk(self.batching.chunk_rows, self.batching.chunk_bytes)
            | "RunInference" >> RunInference(handler, model_identifier=handler.tag).with_output_types(Scored)
            | "Split" >> beam.ParDo(_Split(self.run_id)).with_outputs(DEAD_LETTERS, COUNTS, main="predictions")
        )
        counts = outputs[COUNTS]
        if in_windows is not None:
            counts = (counts, in_windows) | "AllCounts" >> beam.Flatten()
        if self.max_failure_rate < 1:
            _ = counts | "CheckFailureRate" >> CheckFailureRate(self.max_failure_rate)
        return ScoredRows(outputs.predictions, outputs[DEAD_LETTERS], counts)


def check_takes_rows(model: ModelDir) -> None:
    """Raises `UsageError` for a model of windows of rows, for whoever scores rows one by one, without a pipeline."""
    if model.spec.sequences is not None:
        raise UsageError(
            f"model {model.path} takes windows of rows (sequences), which need a pipeline: use torchbeam score"
        )


def names_of(what: str, given: Sequence[str]) -> tuple[str, ...]:
    """`given` as a tuple of names; raises `UsageError` for anything else."""
    names = (given,) if isinstance(given, str) else tuple(given)
    for name in names:
        if not isinstance(name, str):
            kind = "columns" if what == "columns" else "functions, as module:function"
            raise UsageError(f"{what} takes names of {kind}, not {type(name).__name__}")
    return names


def settled_schema(given: pa.Schema) -> pa.Schema:
    """The columns of chunks, without provenance; raises `UsageError` for reserved or duplicate names."""
    schema = pa.schema([field for field in given if field.name not in PROVENANCE])
    if twice := [name for name, count in Counter(schema.names).items() if count > 1]:
        raise UsageError(f'the schema has more than one column "{twice[0]}"; rename one of them')
    if taken := sorted(RESERVED.intersection(schema.names)):
        raise UsageError(f'column "{taken[0]}" has a reserved name; rename it')
    return schema


def counts_of(scored: Scored) -> Counts:
    """What became of the rows of a chunk."""
    return Counts(
        rows_scored=scored.predictions.num_rows,
        rows_dropped=scored.dropped,
        rows_dead=scored.dead_letters.num_rows,
        dead_by_error=dict(scored.dead_by_error),
        noted=dict(scored.stats.counts),
    )


@beam.typehints.with_output_types(pa.RecordBatch, dead_letters=pa.RecordBatch, counts=Counts)
@dataclass
class _Split(beam.DoFn):
    run_id: str

    def process(self, scored: Scored) -> Iterator[Any]:
        counts = counts_of(scored)
        if self.run_id:
            progress.add(self.run_id, counts)
        if scored.predictions.num_rows:
            yield scored.predictions
        if scored.dead_letters.num_rows:
            yield beam.pvalue.TaggedOutput(DEAD_LETTERS, scored.dead_letters)
        yield beam.pvalue.TaggedOutput(COUNTS, counts)
