"""Planning a run of several models on the driver: one model after the other is loaded and scores a sample of rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from handlers.columnar.chains import Rows
from handlers.columnar.chunks import PROVENANCE, RESERVED, ROW, without_provenance
from handlers.columnar.features import check_features, feature_columns
from handlers.columnar.numbers import number_step
from handlers.columnar.plan import Chain
from handlers.columnar.planning import carried_columns, make_plan
from handlers.columnar.scorer import MODEL_VERSION, Scorer
from handlers.errors import BrokenModelError, UsageError
from handlers.graph.plan import CHOSEN_FIELD, FAILURE, GraphPlan, ModelSettings, Node
from handlers.graph.scorer import matching, when_step
from handlers.graph.spec import NAME, ModelSplit
from handlers.predict.placement import Placement
from handlers.predict.predictor import Predictor

WHEN = "when of model"
KEYED_SAMPLE = 100  # rows that each model of `by_key` is planned with in the workers


@dataclass
class _Sample:
    """The sample rows with provenance, and the columns of the models so far, null where they gave no answer."""

    rows: pa.RecordBatch
    made: dict[str, pa.Array]

    def with_columns(self, extra: Sequence[tuple[str, str]], answered: Sequence[str]) -> pa.RecordBatch:
        """The rows that have a value in all columns `answered`, with `extra` as (new name, name of the column)."""
        batch = self.rows
        for new, name in extra:
            batch = batch.append_column(new, self.made[name])
        mask = np.ones(batch.num_rows, dtype=bool)
        for name in answered:
            mask &= self.made[name].is_valid().to_numpy(zero_copy_only=False)
        return batch.filter(pa.array(mask))


def plan_graph(
    settings: Sequence[ModelSettings],
    sample: pa.RecordBatch,
    columns: tuple[str, ...] = ("*",),
    split: ModelSplit | None = None,
    *,
    probabilities: bool = False,
    strict: bool = False,
    driver: Placement | None = None,
) -> GraphPlan:
    """Settles a run of several models.

    Args:
        settings: the models, each after those that it takes something from.
        sample: rows as they are read, with provenance, in the settled schema of the input. It may be empty.
        columns: names and patterns of the input columns to carry into the output.
        split: how rows are split among models, if they are.
        probabilities: whether a classification gives the probability of every class, too.
        strict: refuse an empty sample where only rows can settle something.
        driver: where models run in this process; None for where each runs in the workers.

    Raises:
        UsageError: for columns, expressions or functions that cannot work.
        BrokenModelError: where a model fails on every row of the sample, and on zeros.
    """
    inputs = without_provenance(sample).schema
    if FAILURE in inputs.names:
        raise UsageError(f'column "{FAILURE}" has a reserved name; rename it')
    if split is not None and split.by not in inputs.names and inputs.names:
        raise UsageError(f'split by "{split.by}": the input has no such column; there are: {_some(inputs.names)}')
    check_models(settings)
    _check_env(settings)
    found = _Sample(sample, {})
    nodes: list[Node] = []
    for index, each in enumerate(settings):
        used = _references(settings[index + 1 :], each.name)
        prefix = f"{each.name}_" if len(settings) > 1 else ""
        node, predictor = _node(each, nodes, found, prefix, split, probabilities, strict, driver)
        nodes.append(node)
        if used:
            _answer_sample(node, predictor, found)
        del predictor  # before the next one is loaded
    carried = carried_columns(columns, inputs, tuple(bound for node in nodes for bound in node.plan.inputs))
    made = {name for node in nodes for name in node.columns}
    needed = {name for node in nodes for name in (*_needed(node), *node.when_columns)} - made
    needed |= {split.by} if split else set()
    extra = {new for node in nodes for new, _ in node.extra}
    return GraphPlan(
        tuple(nodes),
        inputs,
        carried,
        frozenset((needed & set(inputs.names)) - extra),
        _output(inputs, carried, nodes, split),
        split,
        _version(nodes, split),
    )


def _node(
    settings: ModelSettings,
    before: Sequence[Node],
    sample: _Sample,
    prefix: str,
    split: ModelSplit | None,
    probabilities: bool,
    strict: bool,
    driver: Placement | None,
) -> tuple[Node, Predictor]:
    sources = [node for node in before if node.name in settings.inputs_from]
    some = len(sample.rows.schema.names) > len(PROVENANCE)  # else there are no columns, and no rows
    extra = _extra(settings, sources, sample.rows.schema) if some else ()
    rows = sample.with_columns(extra, [node.version for node in sources])
    when_columns: tuple[str, ...] = ()
    if settings.when is not None and some:
        when_columns = _check_when(settings, before, sample)
    chain = Chain.of(settings.model.spec)
    if settings.by_key is not None:
        by_key = settings.by_key
        if by_key.column not in rows.schema.names and some:
            raise UsageError(f'by_key of model "{settings.name}": there is no column "{by_key.column}" in the input')
        few = rows.take(pa.array(np.arange(min(rows.num_rows, KEYED_SAMPLE))))
        settings = replace(settings, by_key=replace(by_key, sample=few))
    try:
        predictor = Predictor(settings.model.load(), driver or settings.placement, settings.batch_size)
        # Functions after the model may read input columns.
        carry = ("*",) if chain.postprocess else ()
        plan = make_plan(settings.model, predictor, rows, chain, carry, probabilities=probabilities, strict=strict)
    except (UsageError, BrokenModelError) as error:
        raise type(error)(f'model "{settings.name}": {error}') from None
    size = predictor.load_since(0).bytes
    if settings.by_key is not None and size > settings.by_key.memory:
        raise UsageError(
            f'by_key of model "{settings.name}": {settings.model.path} has {size:,} bytes of parameters, more than memory '
            f"({settings.by_key.memory:,} bytes)"
        )
    output: pa.Schema = plan.output
    made = [name for name in output.names if name not in plan.carried]
    if MODEL_VERSION not in made:
        raise UsageError(f'model "{settings.name}": postprocess must keep the column {MODEL_VERSION}')
    outputs = tuple((f"{prefix}{name}", name) for name in made)
    depends = [node.stage for node in before if node in sources or set(node.columns) & set(when_columns)]
    return Node(
        settings,
        plan,
        outputs,
        f"{prefix}{MODEL_VERSION}",
        f"{prefix}error" if settings.continues else None,
        when_columns,
        extra,
        split is not None and settings.name in dict(split.shares),
        _stage(settings, before, max(depends, default=0)),
        size,
    ), predictor


def _needed(node: Node) -> frozenset[str]:
    """The columns without which a model scores no row. With `by_key` other models may need others."""
    by_key = node.settings.by_key
    return node.plan.needed if by_key is None else frozenset({by_key.column})


def _extra(settings: ModelSettings, sources: Sequence[Node], schema: pa.Schema) -> tuple[tuple[str, str], ...]:
    """The output columns of `sources` that a model has: by their names in the run, and those of one model by its own, too."""
    found = {name: name for node in sources for name, _ in node.outputs}
    if len(sources) == 1:
        found |= {own: name for name, own in sources[0].outputs if own != MODEL_VERSION}
    if taken := [name for name in found if name in schema.names]:
        raise UsageError(
            f'model "{settings.name}": the input has a column "{taken[0]}", and so have the outputs of '
            f'"{sources[0].name}" in inputs_from; rename one of them'
        )
    return tuple(found.items())


def _check_when(settings: ModelSettings, before: Sequence[Node], sample: _Sample) -> tuple[str, ...]:
    """Refuses an expression that is not true or false of one row; gives the columns that it uses."""
    expression = {settings.name: settings.when or ""}
    used = tuple(sorted(feature_columns(expression, WHEN)))
    batch = sample.with_columns([(name, name) for name in sample.made], ())
    known = set(batch.schema.names) - set(PROVENANCE)
    made = {name: node for node in before for name in node.columns}
    for name in used:
        if name not in known and name in made:  # no row was scored for it, which happens where nothing refers to it
            batch = batch.append_column(name, pa.nulls(batch.num_rows, _type_of(made[name], name)))
        elif name not in known:
            raise UsageError(
                f'{WHEN} "{settings.name}": there is no column "{name}" in the input or of an earlier model; there are: '
                f"{_some([*(each for each in batch.schema.names if each not in RESERVED), *made])}"
            )
    rows = Rows(batch.select([*used, ROW]), np.arange(batch.num_rows))
    numbers = number_step().run(rows)[0]
    check_features(expression, numbers.batch, WHEN)
    step = when_step(settings.name, settings.when or "")
    kind = step.call(numbers.take(np.zeros(0, np.int64))).batch.schema.field(settings.name).type
    if not pa.types.is_boolean(kind):
        raise UsageError(f'{WHEN} "{settings.name}": "{settings.when}" gives {kind}, not true or false')
    failed = matching(step, rows)[1]
    if failed and len(failed) == rows.batch.num_rows:
        raise UsageError(
            f'{WHEN} "{settings.name}": "{settings.when}" fails on each of the first {len(failed)} rows: '
            f"{failed[min(failed)].message}"
        )
    return used


def _answer_sample(node: Node, predictor: Predictor, sample: _Sample) -> None:
    """Adds the outputs of a model to the sample, for the models that use them; null where it has none."""
    rows = sample.with_columns(node.extra, ())
    settings, plan = node.settings, node.plan
    few = min((rows.num_rows, *(bound.sample_rows for bound in plan.inputs)))
    answered = Scorer(settings.model, plan, predictor).answer(rows.slice(0, few if plan.inputs else 0))[0]
    positions = np.full(rows.num_rows, -1, np.int64)
    positions[answered.ids] = np.arange(len(answered.ids))
    indices = pa.array(positions, mask=positions < 0)
    for name, source in node.outputs:
        kind = node.schema.field(source).type
        some = len(answered.ids) > 0
        sample.made[name] = answered.batch.column(source).take(indices) if some else pa.nulls(rows.num_rows, kind)
    if node.error:
        sample.made[node.error] = pa.nulls(rows.num_rows, pa.string())


def _type_of(node: Node, name: str) -> pa.DataType:
    source = dict(node.outputs).get(name)
    return pa.string() if source is None else node.schema.field(source).type


def _stage(settings: ModelSettings, before: Sequence[Node], first: int) -> int:
    """The index of the first step from `first` on with the same resource hints; a new one where there is none."""
    stages = {node.stage: node.settings.hints for node in before}
    for stage, hints in sorted(stages.items()):
        if stage >= first and hints == settings.hints:
            return stage
    return max(stages, default=-1) + 1


def _references(later: Sequence[ModelSettings], name: str) -> bool:
    """Whether a later model uses outputs of the model `name`; an expression may name any column."""
    return any(name in each.inputs_from or (each.when is not None and f"{name}_" in each.when) for each in later)


def _output(inputs: pa.Schema, carried: Sequence[str], nodes: Sequence[Node], split: ModelSplit | None) -> pa.Schema:
    fields = [inputs.field(name) for name in carried]
    whose = dict.fromkeys(inputs.names, "the input")  # carried or not: later models and dead letters have them all
    made = [(CHOSEN_FIELD, "split")] if split is not None else []
    for node in nodes:
        own = [_nullable(node.schema.field(source)).with_name(name) for name, source in node.outputs]
        own += [pa.field(node.error, pa.string())] if node.error else []
        made += [(field, f'model "{node.name}"') for field in own]
    for field, owner in made:
        if field.name in whose:
            raise UsageError(
                f'{owner} makes a column "{field.name}", and so does {whose[field.name]}; rename the model or the column'
            )
        if field.name in RESERVED:
            raise UsageError(f'{owner} makes a column "{field.name}", which is a reserved name')
        whose[field.name] = owner
        fields.append(field)
    return pa.schema(fields)


def _nullable(field: pa.Field) -> pa.Field:
    """A column that may have nulls: Arrow cannot read a Parquet file back in which a list of fixed size is null."""
    if not pa.types.is_fixed_size_list(field.type):
        return field
    return field.with_type(pa.list_(field.type.value_type))


def check_models(settings: Sequence[ModelSettings]) -> None:
    """Refuses names that a run cannot have, unknown `inputs_from`, and models of different windows; raises `UsageError`."""
    names: list[str] = []
    for each in settings:
        if not NAME.fullmatch(each.name):
            raise UsageError(f'"{each.name}" is no name of a model; use letters, digits and _, and no digit first')
        if each.name in names:
            raise UsageError(f'two models have the name "{each.name}"')
        if unknown := [name for name in each.inputs_from if name not in names]:
            raise UsageError(f'model "{each.name}" has inputs_from "{unknown[0]}", which is no model before it')
        windows = each.model.spec.sequences
        if windows is not None and each.by_key is not None:
            raise UsageError(
                f'model "{each.name}" takes windows (sequences in its model.yaml), which are not cut for by_key'
            )
        if windows != settings[0].model.spec.sequences:
            raise UsageError(
                f'models "{settings[0].name}" and "{each.name}" have other sequences in their model.yaml; windows are cut once, '
                "for models that take the same: score the others in a run of their own"
            )
        names.append(each.name)
    if not names:
        raise UsageError("there are no models to score with")


def _check_env(settings: Sequence[ModelSettings]) -> None:
    """Refuses models that want different values of one environment variable, which they share in a process."""
    known: dict[str, tuple[str, str]] = {}
    for each in settings:
        for name, value in each.model.spec.env_vars.items():
            other, wanted = known.setdefault(name, (each.name, value))
            if wanted != value:
                raise UsageError(
                    f'env_vars of models "{other}" and "{each.name}" set {name} to "{wanted}" and "{value}"; they share a '
                    "process, so give them the same value"
                )


def _version(nodes: Sequence[Node], split: ModelSplit | None) -> str:
    """12 hexadecimal digits of a hash of all models and of how they work together."""
    content = [
        [
            *(node.name, node.settings.model.digest, node.settings.when, node.settings.inputs_from),
            *(node.settings.continues, sorted(by_key.models.items()) if (by_key := node.settings.by_key) else None),
        ]
        for node in nodes
    ]
    text = json.dumps([content, [split.by, split.shares] if split else None])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:20])
