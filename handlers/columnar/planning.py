"""Planning a run on the driver, by scoring a sample of its rows."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa

from handlers.columnar.chains import ContractError, Rows, Step
from handlers.columnar.chunks import PROVENANCE, model_rows, without_provenance
from handlers.columnar.features import check_features, feature_columns
from handlers.columnar.numbers import number_step
from handlers.columnar.plan import Chain, Plan
from handlers.columnar.scorer import MODEL_VERSION_FIELD, Scorer
from handlers.encode.base import BoundInput
from handlers.encode.binding import bind_inputs
from handlers.encode.columns import UnknownLengthError, match_columns
from handlers.encode.values import is_binary
from handlers.errors import BrokenModelError, TorchbeamError, UsageError, one_line
from handlers.model.directory import ModelDir
from handlers.model_code import ModelCode
from handlers.predict.predictor import Predictor
from handlers.stats import Stats

_SAMPLE_WANTED = "give a sample of rows, which settles it"


def make_plan(
    model: ModelDir,
    predictor: Predictor,
    sample: pa.RecordBatch,
    chain: Chain,
    columns: tuple[str, ...] = ("*",),
    *,
    probabilities: bool = False,
    strict: bool = False,
) -> Plan:
    """Settles a run on the driver, by scoring a sample of its rows.

    Args:
        model: the model directory.
        predictor: the model, loaded.
        sample: rows as they are read, with provenance, in the settled schema of the input, or windows of them. It may
            be empty.
        chain: the functions before and after the model.
        columns: names and patterns of the input columns to carry into the output.
        probabilities: whether a classification gives the probability of every class, too.
        strict: refuse an empty sample where only rows can settle something. Without it every row that is read later
            becomes a dead letter.

    Raises:
        UsageError: for columns, features or functions that cannot work.
        BrokenModelError: where the model fails on every row of the sample, and on zeros.
    """
    raw = without_provenance(sample)
    if not raw.schema.names:  # empty files: no rows and no columns
        return Plan(chain, (), (), frozenset(), pa.schema([MODEL_VERSION_FIELD]))
    rows = before_model(chain, model.code(), model_rows(sample))
    plan = Plan(chain, (), carried_columns(columns, raw.schema), frozenset(), probabilities=probabilities)
    try:
        inputs = bind_inputs(model.spec.inputs, predictor.model.inputs, rows.batch, predictor.model.parameters)
    except UsageError as error:
        if raw.num_rows or not (chain.preprocess or isinstance(error, UnknownLengthError)):
            raise
        if strict:
            raise UsageError(f"{error}; {_SAMPLE_WANTED}") from None
        # Without a row it is unknown which columns a function makes, or how long lists are. A run without rows
        # continues; rows that are read later become dead letters.
        blank = Scorer(model, plan, predictor)
        rows = Rows(blank.blank(sample, 0, blank.stage.of_no_rows()), rows.ids[:0])
        for step in chain.after(model.code()):
            rows = step.run(rows)[0]
        return replace(plan, output=rows.batch.schema)
    carried = carried_columns(columns, raw.schema, inputs)
    plan = replace(plan, inputs=inputs, needed=_needed(inputs, chain, raw.schema), carried=carried)
    rows = rows.take(np.arange(min(rows.batch.num_rows, *(bound.sample_rows for bound in inputs))))
    scorer = Scorer(model, plan, predictor)
    answers = scorer.stage.answer(rows, Stats())
    rows = Rows(scorer.output_of(sample, answers.ids, answers.columns), answers.ids)
    scored = rows.batch.num_rows > 0
    if not scored:
        rows = _zeros(scorer, sample)
    _check_names(rows.batch.schema, raw.schema)
    for step in chain.after(model.code()):
        rows = _try(step, rows) if scored else step.run(rows)[0]
        if strict and not scored:
            _check_settled(step, rows.batch)
    return replace(plan, output=rows.batch.schema)


def before_model(chain: Chain, code: ModelCode, raw: pa.RecordBatch) -> Rows:
    """The rows of a sample without provenance, as the model gets them.

    Raises:
        UsageError: for features that look at other rows, and functions that fail on every row or break their contract.
    """
    rows = number_step().run(Rows(raw, np.arange(raw.num_rows)))[0]
    if chain.features:
        check_features(dict(chain.features), rows.batch)
    for step in chain.before(code):
        rows = _try(step, rows)
    return rows


def _try(step: Step, rows: Rows) -> Rows:
    """Runs a step on the sample; a function that fails on all of it, or breaks its contract, is refused here."""
    result, failed = step.run(rows)
    if broken := [failure for failure in failed.values() if failure.type == ContractError.__name__]:
        raise UsageError(f"{step.stage} {broken[0].message}")
    if failed and len(failed) == rows.batch.num_rows:
        first = failed[min(failed)].message
        raise UsageError(f"{step.stage} fails on each of the first {len(failed)} rows: {first}")
    return result


def _check_settled(step: Step, batch: pa.RecordBatch) -> None:
    """Refuses a function whose columns cannot be determined from its result for rows of zeros."""
    if not batch.num_rows:
        raise UsageError(f"{step.stage} {step.name} gives no row for rows of zeros; {_SAMPLE_WANTED}")
    if untyped := [field.name for field in batch.schema if pa.types.is_null(field.type)]:
        raise UsageError(f'{step.stage} {step.name} gives only null in column "{untyped[0]}"; {_SAMPLE_WANTED}')


def _zeros(scorer: Scorer, sample: pa.RecordBatch) -> Rows:
    """Where no row of the sample was scored: what two rows of zeros become, to find the schema."""
    try:
        columns = scorer.stage.zeros(2)
    except TorchbeamError:
        raise
    except Exception as error:
        what = f"the first {sample.num_rows} rows and on zeros" if sample.num_rows else "zeros"
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise BrokenModelError(f"the model fails on {what}, so no row can be scored: {reason}") from None
    return Rows(scorer.blank(sample, 2, columns), np.arange(2))


def carried_columns(
    columns: tuple[str, ...], schema: pa.Schema, inputs: tuple[BoundInput, ...] = ()
) -> tuple[str, ...]:
    """The columns that `columns` names; of all, the bytes of images are left out."""
    names = [name for name in schema.names if name not in PROVENANCE]
    if columns == ("*",):
        images = {name for bound in inputs if bound.spec.encoder == "image" for name in bound.columns}
        return tuple(name for name in names if name not in images or not is_binary(schema.field(name).type))
    found: dict[str, None] = {}
    known = dict.fromkeys(names)
    for pattern in columns:
        matches = match_columns(pattern, known)
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
