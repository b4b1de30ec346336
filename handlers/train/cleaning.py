"""Cleaning: from rows as they are read to rows to train on, by the chain that scoring applies before the model.

features → preprocess → label
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from handlers.columnar.chains import Rows
from handlers.columnar.chunks import NUMBERS, dead_letters, exact_cast, model_rows, refusals, without_provenance
from handlers.columnar.features import feature_columns
from handlers.columnar.numbers import number_step
from handlers.columnar.plan import Chain
from handlers.columnar.planning import before_model
from handlers.columnar.scorer import fit_step
from handlers.errors import UsageError
from handlers.failures import RowFailure
from handlers.train.config import ModelConfig

READ = "__read__."  # what a column was before the chain has the name of the column after this


@dataclass(frozen=True)
class CleaningPlan:
    """What is settled on the driver, so that every worker cleans a row alike. Picklable; it travels to the workers.

    Attributes:
        config: the features and functions.
        label: the column of the true answers.
        schema: the columns of rows to train on, the label included.
        kept: input columns that the chain may change; their values as they were read are kept beside the new ones, for the
            fingerprint: drift compares rows as they are read.
        needed: input columns without which a file cannot be used.
    """

    config: ModelConfig
    label: str
    schema: pa.Schema
    kept: tuple[str, ...]
    needed: frozenset[str]


@dataclass(frozen=True)
class Cleaned:
    """What became of the rows of a chunk; usable, dropped and dead are all of them.

    Attributes:
        rows: those that can be trained on, in the schema of the plan, and behind it the kept columns with the prefix `READ`.
        indices: int64: the indices of these rows in the chunk.
        dead_letters: the rows that cannot be used, as they were read, with the struct `dead_letter`.
        dropped: how many rows a function left out on purpose.
        dead_by_error: dead letters by `stage/type`.
    """

    rows: pa.RecordBatch
    indices: np.ndarray
    dead_letters: pa.RecordBatch
    dropped: int
    dead_by_error: Counter[str]


def plan_cleaning(config: ModelConfig, label: str, sample: pa.RecordBatch, where: str) -> CleaningPlan:
    """Settles the columns of rows to train on, by cleaning a sample.

    Args:
        config: the features and functions.
        label: the column of the true answers.
        sample: rows as they are read, with provenance, in the settled schema of the input, or windows of them. It may be empty.
        where: what the rows are of, for messages.

    Raises:
        UsageError: for features or functions that cannot work, and a label that there is not.
    """
    raw, given = without_provenance(sample), model_rows(sample)
    chain = Chain.of(config.spec)
    in_windows = [field.name for field in given.schema if field.name not in raw.schema.names]
    in_windows += [field.name for field in raw.schema if given.schema.field(field.name).type != field.type]
    if label in in_windows:
        raise UsageError(
            f'--label: column "{label}" is among the columns of sequences, whose past values are inputs; name another column, '
            "or make one of it before"
        )
    rows = before_model(chain, config.code(), given)
    found = [_plain(field) for field in rows.batch.schema]
    names = [field.name for field in found]
    if label not in names:
        if label not in raw.schema.names:
            raise UsageError(f'--label: {where} has no column "{label}"; {near(label, [*raw.schema.names, *names])}')
        found.append(_plain(number_step().run(Rows(raw, np.arange(raw.num_rows)))[0].batch.schema.field(label)))
    needed = {label, *feature_columns(dict(chain.features))} & set(raw.schema.names)
    changed = set(raw.schema.names) if chain.preprocess else {*chain.features, *in_windows}
    changed |= {field.name for field in raw.schema if field.metadata == NUMBERS}
    kept = tuple(name for name in raw.schema.names if name in changed and name in {field.name for field in found})
    return CleaningPlan(config, label, pa.schema(found), kept, frozenset(needed))


def near(name: str, known: Sequence[str]) -> str:
    """Which column may be meant by `name`, for a message."""
    known = list(dict.fromkeys(known))
    if not known:
        return "there are no columns"
    if found := difflib.get_close_matches(name, known, 1, 0.7):
        return f'did you mean "{found[0]}"?'
    folded = [each for each in known if each.casefold() == name.casefold()]
    if folded:
        return f'did you mean "{folded[0]}"?'
    shown = ", ".join(known[:20])
    return f"there are: {shown}{', …' if len(known) > 20 else ''}"


class Cleaner:
    """Cleans chunks by a plan. Several threads may share one."""

    def __init__(self, plan: CleaningPlan) -> None:
        self._plan = plan
        self._numbers = number_step()
        self._before = Chain.of(plan.config.spec).before(plan.config.code())
        self._fit = fit_step(plan.schema, "preprocess")

    def clean(self, chunk: pa.RecordBatch) -> Cleaned:
        """Cleans the rows of `chunk`, which has provenance."""
        plan, count = self._plan, chunk.num_rows
        raw = without_provenance(chunk)
        rows = Rows(model_rows(chunk), np.arange(count))
        failures = refusals(chunk)
        if failures:
            rows = rows.take(np.setdiff1d(rows.ids, list(failures)))
        rows, failed = self._numbers.run(rows)
        failures |= failed
        numbers = rows
        for step in self._before:
            rows, failed = step.run(rows)
            failures |= failed
        if plan.label not in rows.batch.schema.names and plan.label in raw.schema.names:
            label = numbers.batch.column(plan.label).take(pa.array(np.searchsorted(numbers.ids, rows.ids)))
            rows = Rows(rows.batch.append_column(plan.label, label), rows.ids)
        rows, failed = self._fit.run(rows)
        failures |= failed
        if not rows.batch.num_rows:
            rows = Rows(pa.RecordBatch.from_pylist([], schema=plan.schema), rows.ids[:0])
        label = rows.batch.column(plan.label)
        for mask, failure in _bad_labels(label, plan.label):
            failures |= {int(index): failure for index in rows.ids[mask] if int(index) not in failures}
        good = ~np.isin(rows.ids, list(failures))
        rows = rows.take(good)
        dead = sorted(failures)
        found = [failures[index] for index in dead]
        read = [raw.column(name).take(pa.array(rows.ids)) for name in plan.kept]
        return Cleaned(
            pa.RecordBatch.from_arrays([*rows.batch.columns, *read], schema=with_kept(plan, raw.schema)),
            rows.ids,
            dead_letters(chunk.take(pa.array(dead, pa.int64())), found, None),
            count - rows.batch.num_rows - len(dead),
            Counter(f"{failure.stage}/{failure.type}" for failure in found),
        )


def with_kept(plan: CleaningPlan, schema: pa.Schema) -> pa.Schema:
    """The columns of cleaned rows of an input of the schema `schema`."""
    return pa.schema([*plan.schema, *(pa.field(READ + name, schema.field(name).type) for name in plan.kept)])


def _plain(field: pa.Field) -> pa.Field:
    """A column without its dictionary, which every shard would hold, and without metadata."""
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    return pa.field(field.name, kind)


def _bad_labels(label: pa.Array, name: str) -> list[tuple[np.ndarray, RowFailure]]:
    """Masks of the rows that have no label to learn from, and why."""
    null = label.is_null().to_numpy(zero_copy_only=False)
    inner = label
    owners: np.ndarray | None = None
    if pa.types.is_fixed_size_list(label.type):
        inner = exact_cast(label, pa.list_(label.type.value_type))
    if pa.types.is_list(inner.type) or pa.types.is_large_list(inner.type):
        owners = pc.list_parent_indices(inner).to_numpy(zero_copy_only=False)
        inner = pc.list_flatten(inner)
        lost = inner.is_null().to_numpy(zero_copy_only=False)
        null = null | _rows(lost, owners, len(label))
    found = [(null, RowFailure("label", "NullValue", f'column "{name}", the label, is null'))]
    if pa.types.is_floating(inner.type):
        values = np.asarray(inner.cast(pa.float64()).to_numpy(zero_copy_only=False))
        bad = ~np.isfinite(values) & inner.is_valid().to_numpy(zero_copy_only=False)
        mask = bad if owners is None else _rows(bad, owners, len(label))
        found.append((mask, RowFailure("label", "NotFinite", f'column "{name}", the label, is NaN or infinite')))
    return found


def _rows(inner: np.ndarray, owners: np.ndarray, rows: int) -> np.ndarray:
    """Mask of the rows of which an inner value is marked."""
    mask = np.zeros(rows, dtype=bool)
    mask[owners[inner]] = True
    return mask
