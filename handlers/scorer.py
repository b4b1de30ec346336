"""Scoring one chunk: the whole chain from the row as it was read to its predictions, or to its dead letter.

    features → preprocess → encode → forward → head → postprocess → output

The chunk as it was read stays at hand, so that a dead letter is always that row, whatever stage refused it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from handlers import heads
from handlers.chains import Failure, Rows, Step, check_features, feature_columns, feature_step, function_step
from handlers.chunks import PROVENANCE, dead_letters, without_provenance
from handlers.encoders import BoundInput, bind_inputs, match_columns
from handlers.errors import BrokenModelError, UsageError, one_line
from handlers.model_dir import ModelDir
from handlers.predictor import Predictor
from handlers.spec import ModelSpec

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
    """

    predictions: pa.RecordBatch
    dead_letters: pa.RecordBatch
    dropped: int
    dead_by_error: Counter[str]


class Scorer:
    """Scores chunks by a plan with a loaded model. Several threads may share one."""

    def __init__(self, model: ModelDir, plan: Plan, predictor: Predictor) -> None:
        self._spec = model.spec
        self._version = model.version
        self._plan = plan
        self._predictor = predictor
        self._before = plan.chain.before()
        self._after = plan.chain.after()
        if plan.output is not None:
            self._after.append(_fit(plan.output))

    def score(self, chunk: pa.RecordBatch) -> Scored:
        """Scores the rows of `chunk`, which has provenance."""
        count = chunk.num_rows
        rows = Rows(without_provenance(chunk), np.arange(count))
        failures: list[Failure] = []
        for step in self._before:
            rows, failed = step.run(rows)
            failures += failed
        rows, failed = self._predict(rows, chunk)
        failures += failed
        for step in self._after:
            rows, failed = step.run(rows)
            failures += failed
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
        )

    def _predict(self, rows: Rows, chunk: pa.RecordBatch) -> tuple[Rows, list[Failure]]:
        """Encodes, runs the model, decodes: gives the carried columns of the rows that were scored and the predictions."""
        failures: dict[int, Failure] = {}
        tensors = {}
        for bound in self._plan.inputs:
            tensors[bound.spec.name], errors = bound.encode(rows.batch)
            for place, error in errors.items():
                failures.setdefault(place, Failure(int(rows.ids[place]), "encode", error.type, error.message))
        ids = rows.ids
        if failures:
            good = np.ones(len(ids), dtype=bool)
            good[list(failures)] = False
            tensors = {name: tensor[good] for name, tensor in tensors.items()}
            ids = ids[good]
        found = list(failures.values())
        prediction = self._predictor.predict(tensors)
        found += [
            Failure(int(ids[row]), "forward", type(error).__name__, one_line(error))
            for row, error in prediction.failures
        ]
        outputs = prediction.outputs
        ids = ids[prediction.rows] if len(prediction.rows) < len(ids) else ids
        if not len(ids):
            return Rows(self._output(chunk, ids, {}), ids), found
        bad = heads.not_a_number(self._spec, outputs)
        if bad.any():
            found += [Failure(int(id_), "head", "NotANumber", "the model gave NaN for this row") for id_ in ids[bad]]
            outputs = {name: tensor[~bad] for name, tensor in outputs.items()}
            ids = ids[~bad]
        return Rows(self._output(chunk, ids, heads.decode(self._spec, outputs)), ids), found

    def _output(self, chunk: pa.RecordBatch, ids: np.ndarray, columns: Mapping[str, pa.Array]) -> pa.RecordBatch:
        carried = chunk.select(list(self._plan.carried))
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
        before, (rows, failed) = rows.batch.num_rows, step.run(rows)
        if before and len(failed) == before:
            raise UsageError(f"{failed[0].stage} fails on each of the first {before} rows: {failed[0].message}")
    inputs = bind_inputs(model.spec.inputs, predictor.model.inputs, rows.batch)
    plan = Plan(chain, inputs, _carried(columns, raw.schema), _needed(inputs, chain, raw.schema), None)
    scorer = Scorer(model, plan, predictor)
    scored = scorer.score(sample)
    if not scored.predictions.num_rows:
        scored = _score_zeros(model, predictor, scorer, plan, sample, scored)
    return replace(plan, output=_checked(scored.predictions.schema, raw.schema))


def _score_zeros(
    model: ModelDir, predictor: Predictor, scorer: Scorer, plan: Plan, sample: pa.RecordBatch, scored: Scored
) -> Scored:
    """Where no row of the sample could be scored: what two rows of zeros become, only to learn the schema."""
    prediction = predictor.predict({bound.spec.name: bound.zeros(2) for bound in plan.inputs})
    if prediction.failures:
        error = prediction.failures[0][1]
        what = f"the first {sample.num_rows} rows and on zeros" if sample.num_rows else "zeros"
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise BrokenModelError(f"the model fails on {what}, so no row can be scored: {reason}")
    blank = pa.RecordBatch.from_arrays([pa.nulls(2, field.type) for field in sample.schema], schema=sample.schema)
    rows = Rows(scorer._output(blank, np.arange(2), heads.decode(model.spec, prediction.outputs)), np.arange(2))
    for step in plan.chain.after():
        result, _ = step.run(rows)
        rows = result if result.batch.num_rows else rows
    return replace(scored, predictions=rows.batch)


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


def _checked(found: pa.Schema, schema: pa.Schema) -> pa.Schema:
    twice = sorted({name for name in found.names if found.names.count(name) > 1})
    if twice:
        carried = [name for name in schema.names if name not in twice]
        hint = f"--columns={','.join(carried[:5])}{',…' if len(carried) > 5 else ''}"
        raise UsageError(f'the input has a column "{twice[0]}" and so have the predictions; carry others, as {hint}')
    return found


def _fit(schema: pa.Schema) -> Step:
    """The step that brings rows into the output schema of the run."""

    def call(rows: Rows) -> Rows:
        batch = rows.batch
        if batch.schema.equals(schema):
            return rows
        unknown = [name for name in batch.schema.names if name not in schema.names]
        if unknown:
            raise ValueError(f'column "{unknown[0]}" is new in this row; the output has {", ".join(schema.names)}')
        arrays = []
        for field in schema:
            if field.name not in batch.schema.names:
                arrays.append(pa.nulls(batch.num_rows, field.type))
                continue
            column = batch.column(field.name)
            arrays.append(column if column.type == field.type else pc.cast(column, field.type))
        return Rows(pa.RecordBatch.from_arrays(arrays, schema=schema), rows.ids)

    return Step("output", "postprocess", call)
