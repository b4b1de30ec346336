"""Scoring one chunk: the whole chain from the row as it was read to its predictions, or to its dead letter.

    features → preprocess → encode → forward → head → postprocess → output

The chunk as it was read stays at hand, so that a dead letter is always that row, whatever stage refused it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from handlers.columnar.chains import ContractError, Failure, Rows, Step, function_step
from handlers.columnar.chunks import PROVENANCE, dead_letters, exact_cast, without_provenance
from handlers.columnar.features import check_features, feature_columns, feature_step
from handlers.encode.binding import UnknownLengthError, bind_inputs, match_columns
from handlers.encode.encoders import BoundInput
from handlers.errors import BrokenModelError, UsageError, one_line
from handlers.model.directory import ModelDir
from handlers.model.spec import ModelSpec
from handlers.predict import heads
from handlers.predict.predictor import Predictor
from handlers.stats import Load, Stats

MODEL_VERSION = "model_version"
MODEL_VERSION_FIELD = pa.field(MODEL_VERSION, pa.dictionary(pa.int32(), pa.string()))


@dataclass(frozen=True)
class Chain:
    """The user's functions of a run, as `module:function`: those of the model directory, then those of the command."""

    features: Mapping[str, str]
    preprocess: tuple[str, ...] = ()
    postprocess: tuple[str, ...] = ()

    @staticmethod
    def of(spec: ModelSpec, preprocess: tuple[str, ...] = (), postprocess: tuple[str, ...] = ()) -> Chain:
        """The chain of a model with further functions after its own."""
        return Chain(spec.features, spec.preprocess + preprocess, spec.postprocess + postprocess)

    def before(self) -> list[Step]:
        """The steps before the model. The modules that they name must be importable."""
        steps = [feature_step(dict(self.features))] if self.features else []
        return steps + [function_step(name, "preprocess") for name in self.preprocess]

    def after(self) -> list[Step]:
        """The steps after the model."""
        return [function_step(name, "postprocess") for name in self.postprocess]


@dataclass(frozen=True)
class Plan:
    """What is settled on the driver before a run, so that every worker does the same.

    Attributes:
        chain: the functions before and after the model.
        inputs: how columns become the model's inputs.
        carried: input columns that go into the output.
        needed: input columns without which a file cannot be scored.
        output: schema of the predictions; None leaves each chunk as it comes out, which is how the schema is found.
    """

    chain: Chain
    inputs: tuple[BoundInput, ...]
    carried: tuple[str, ...]
    needed: frozenset[str]
    output: pa.Schema | None = None


@dataclass(frozen=True)
class Scored:
    """What became of the rows of a chunk; scored + dropped + dead are all of them.

    Attributes:
        predictions: the scored rows.
        dead_letters: the rows that could not be scored, as they were read, with the struct `dead_letter`.
        dropped: how many rows a function left out on purpose.
        dead_by_error: dead letters by `stage/type`.
        stats: what was done in the model, for metrics.
    """

    predictions: pa.RecordBatch
    dead_letters: pa.RecordBatch
    dropped: int
    dead_by_error: Counter[str]
    stats: Stats = field(default_factory=Stats)


class Scorer:
    """Scores chunks by a plan with a loaded model. Several threads may share one."""

    def __init__(self, model: ModelDir, plan: Plan, predictor: Predictor, load: Load | None = None) -> None:
        self._load = load
        self._spec = model.spec
        self._version = model.version
        self.plan = plan
        self._predictor = predictor
        self._before = plan.chain.before()
        self._after = plan.chain.after()
        if plan.output is not None:
            self._after.append(_fit(plan.output))

    def take_load(self) -> Load | None:
        """What loading the model cost, told once."""
        load, self._load = self._load, None
        return load

    def score(self, chunk: pa.RecordBatch) -> Scored:
        """Scores the rows of `chunk`, which has provenance."""
        count = chunk.num_rows
        rows = Rows(without_provenance(chunk), np.arange(count))
        failures: list[Failure] = []
        stats = Stats()
        for step in self._before:
            rows, failed = step.run(rows)
            failures += failed
        rows, failed = self.predict(rows, chunk, stats)
        failures += failed
        for step in self._after if rows.batch.num_rows else ():
            rows, failed = step.run(rows)
            failures += failed
        if not rows.batch.num_rows and self.plan.output is not None:
            rows = Rows(pa.RecordBatch.from_pylist([], schema=self.plan.output), rows.ids[:0])
        failures.sort(key=lambda failure: failure.id)
        return Scored(
            rows.batch,
            dead_letters(
                chunk.take(pa.array([failure.id for failure in failures], pa.int64())),
                stages=[failure.stage for failure in failures],
                types=[failure.type for failure in failures],
                messages=[failure.message for failure in failures],
                model_version=self._version,
            ),
            count - rows.batch.num_rows - len(failures),
            Counter(f"{failure.stage}/{failure.type}" for failure in failures),
            stats,
        )

    def predict(self, rows: Rows, chunk: pa.RecordBatch, stats: Stats | None = None) -> tuple[Rows, list[Failure]]:
        """Encodes, runs the model, decodes: gives the carried columns of the rows that were scored and the predictions."""
        started = time.perf_counter()
        failures: dict[int, Failure] = {}
        tensors = {}
        if not self.plan.inputs:
            reason = "the first rows had no columns to settle the model's inputs by; start again with rows in the first files"
            return Rows(self._output(chunk, rows.ids[:0], {}), rows.ids[:0]), [
                Failure(int(id_), "encode", "NotPlanned", reason) for id_ in rows.ids
            ]
        for bound in self.plan.inputs:
            tensors[bound.spec.name], errors = bound.encode(rows.batch)
            for index, error in errors.items():
                failures.setdefault(index, Failure(int(rows.ids[index]), "encode", error.type, error.message))
        ids = rows.ids
        if failures:
            good = np.ones(len(ids), dtype=bool)
            good[list(failures)] = False
            tensors = {name: tensor[good] for name, tensor in tensors.items()}
            ids = ids[good]
        found = list(failures.values())
        encoded = time.perf_counter()
        prediction = self._predictor.predict(tensors)
        predicted = time.perf_counter()
        found += [
            Failure(int(ids[row]), "forward", type(error).__name__, one_line(error))
            for row, error in prediction.failures
        ]
        outputs = prediction.tensors
        ids = ids[prediction.rows] if len(prediction.rows) < len(ids) else ids
        if not len(ids):
            if stats is not None:
                stats.add(prediction.stats)
            return Rows(self._output(chunk, ids, {}), ids), found
        bad = heads.not_a_number(self._spec, outputs)
        if bad.any():
            found += [Failure(int(id_), "head", "NotANumber", heads.NOT_A_NUMBER) for id_ in ids[bad]]
            outputs = {name: tensor[~bad] for name, tensor in outputs.items()}
            ids = ids[~bad]
        result = Rows(self._output(chunk, ids, heads.decode(self._spec, outputs)), ids)
        if stats is not None:
            stats.add(prediction.stats)
            stats.encode_seconds += encoded - started
            stats.decode_seconds += time.perf_counter() - predicted
        return result, found

    def blank(
        self, chunk: pa.RecordBatch, rows: int = 0, columns: Mapping[str, pa.Array] | None = None
    ) -> pa.RecordBatch:
        """An output of `rows` rows that no row was read for: null in the carried columns."""
        nulls = pa.RecordBatch.from_arrays([pa.nulls(rows, field.type) for field in chunk.schema], schema=chunk.schema)
        return self._output(nulls, np.arange(rows), columns or {})

    def _output(self, chunk: pa.RecordBatch, ids: np.ndarray, columns: Mapping[str, pa.Array]) -> pa.RecordBatch:
        carried = chunk.select(list(self.plan.carried))
        if len(ids) < chunk.num_rows or not np.array_equal(ids, np.arange(len(ids))):
            carried = carried.take(pa.array(ids))
        version = pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(ids), np.int32)), pa.array([self._version]))
        return pa.RecordBatch.from_arrays(
            [*carried.columns, *columns.values(), version],
            schema=pa.schema(
                [*carried.schema, *(pa.field(name, array.type) for name, array in columns.items()), MODEL_VERSION_FIELD]
            ),
        )


def make_plan(
    model: ModelDir, predictor: Predictor, sample: pa.RecordBatch, chain: Chain, columns: tuple[str, ...] = ("*",)
) -> Plan:
    """Settles a run on the driver, by scoring a sample of its rows.

    Args:
        model: the model directory, its `code/` importable.
        predictor: the model, loaded.
        sample: rows as they are read, with provenance, in the settled schema of the input. It may be empty.
        chain: the functions before and after the model.
        columns: names and patterns of the input columns to carry into the output.

    Raises:
        UsageError: for columns, features or functions that cannot work.
        BrokenModelError: where the model fails on every row of the sample, and on zeros.
    """
    raw = without_provenance(sample)
    if not raw.schema.names:  # files without a byte: no rows, and no columns to settle
        return Plan(chain, (), (), frozenset(), pa.schema([MODEL_VERSION_FIELD]))
    if chain.features:
        check_features(dict(chain.features), raw)
    rows = Rows(raw, np.arange(raw.num_rows))
    for step in chain.before():
        rows = _try(step, rows)
    plan = Plan(chain, (), _carried(columns, raw.schema), frozenset())
    try:
        inputs = bind_inputs(model.spec.inputs, predictor.model.inputs, rows.batch)
    except UsageError as error:
        if raw.num_rows or not (chain.preprocess or isinstance(error, UnknownLengthError)):
            raise
        # Without a row nobody knows which columns a function makes, or how long lists are. A run of no rows is none the
        # worse for it; should rows turn up after all, they are dead letters.
        rows = Rows(Scorer(model, plan, predictor).blank(sample, 0, heads.of_no_rows(model.spec)), rows.ids[:0])
        for step in chain.after():
            rows = step.run(rows)[0]
        return replace(plan, output=rows.batch.schema)
    plan = replace(plan, inputs=inputs, needed=_needed(inputs, chain, raw.schema))
    scorer = Scorer(model, plan, predictor)
    rows, _ = scorer.predict(rows, sample)
    scored = rows.batch.num_rows > 0
    if not scored:
        rows = _zeros(model, predictor, scorer, sample)
    _check_names(rows.batch.schema, raw.schema)
    for step in chain.after():
        rows = _try(step, rows) if scored else step.run(rows)[0]
    return replace(plan, output=rows.batch.schema)


def _try(step: Step, rows: Rows) -> Rows:
    """Runs a step on the sample; a function that fails on all of it, or breaks its contract, is refused here."""
    result, failed = step.run(rows)
    if broken := [failure for failure in failed if failure.type == ContractError.__name__]:
        raise UsageError(f"{step.stage} {broken[0].message}")
    if failed and len(failed) == rows.batch.num_rows:
        raise UsageError(f"{step.stage} fails on each of the first {len(failed)} rows: {failed[0].message}")
    return result


def _zeros(model: ModelDir, predictor: Predictor, scorer: Scorer, sample: pa.RecordBatch) -> Rows:
    """Where no row of the sample could be scored: what two rows of zeros become, only to learn the schema."""
    prediction = predictor.predict({bound.spec.name: bound.zeros(2) for bound in scorer.plan.inputs})
    if prediction.failures:
        error = prediction.failures[0][1]
        what = f"the first {sample.num_rows} rows and on zeros" if sample.num_rows else "zeros"
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise BrokenModelError(f"the model fails on {what}, so no row can be scored: {reason}")
    return Rows(scorer.blank(sample, 2, heads.decode(model.spec, prediction.tensors)), np.arange(2))


def _carried(columns: tuple[str, ...], schema: pa.Schema) -> tuple[str, ...]:
    names = [name for name in schema.names if name not in PROVENANCE]
    if columns == ("*",):
        return tuple(names)
    found: dict[str, None] = {}
    for pattern in columns:
        matches = match_columns(pattern, names)
        if not matches:
            raise UsageError(f'--columns: there is no column "{pattern}"; there are: {", ".join(names[:20])}')
        found |= dict.fromkeys(matches)
    return tuple(found)


def _needed(inputs: tuple[BoundInput, ...], chain: Chain, schema: pa.Schema) -> frozenset[str]:
    """Columns that a file must have: those of the model's inputs and features that a row has as it is read."""
    used = {name for bound in inputs for name in bound.columns} - set(chain.features)
    return frozenset((used | feature_columns(dict(chain.features))) & set(schema.names))


def _check_names(found: pa.Schema, schema: pa.Schema) -> None:
    twice = sorted(name for name, count in Counter(found.names).items() if count > 1)
    if twice:
        carried = [name for name in schema.names if name not in twice]
        hint = f"--columns={','.join(carried[:5])}{',…' if len(carried) > 5 else ''}"
        raise UsageError(f'the input has a column "{twice[0]}" and so have the predictions; carry others, as {hint}')


def _fit(schema: pa.Schema) -> Step:
    """The step that brings rows into the output schema of the run."""

    def call(rows: Rows) -> Rows:
        batch = rows.batch
        if batch.schema.equals(schema):
            return rows
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        known = set(schema.names)
        unknown = [name for name, column in columns.items() if name not in known and column.null_count < len(column)]
        if unknown:
            raise ValueError(f'column "{unknown[0]}" is new in this row; the output has {", ".join(schema.names)}')
        arrays = []
        for wanted in schema:
            if wanted.name not in columns:
                arrays.append(pa.nulls(batch.num_rows, wanted.type))
                continue
            try:
                arrays.append(exact_cast(columns[wanted.name], wanted.type))
            except pa.ArrowException as error:
                raise ValueError(f'column "{wanted.name}" does not fit the output: {one_line(error)}') from None
        return Rows(pa.RecordBatch.from_arrays(arrays, schema=schema), rows.ids)

    return Step("output", "postprocess", call)
