"""The checks of the doctor for a run of several models, beside those that it shares with a run of one."""

from __future__ import annotations

from collections import Counter

import pyarrow as pa

from handlers.graph.handler import GraphModelHandler
from handlers.sequences.cutter import WindowCutter
from handlers.sequences.windows import sample_windows
from pipelines.checks.checkup import Finding
from pipelines.checks.steps import Source, names
from pipelines.jobs import scoring as score_job
from pipelines.jobs.models import SeveralModels
from transforms.evaluation.agreement import AgreementPlan
from transforms.inference.score import SAMPLE_ROWS
from transforms.inference.score_models import ScoreModels


def columns(several: SeveralModels, source: Source) -> Finding[ScoreModels]:
    """The columns match the signatures, expressions are true or false, and the users' functions run."""
    score = score_job.scoring_models(several, source.input, source.sample)
    plan = score.plan
    if several.compare:
        AgreementPlan.of(plan, *several.compare)
    made = [name for name in plan.output.names if name not in plan.carried]
    steps = len(plan.stages)
    return Finding(f"{steps} step{'s' * (steps != 1)}; the output gets {names(made)}", score)


def schemas(score: ScoreModels) -> tuple[pa.Schema, pa.Schema]:
    """The columns of the predictions and of the dead letters."""
    return score.predictions_schema, score.dead_letters_schema


def score_rows(score: ScoreModels, source: Source) -> Finding[None]:
    """Scores the first rows of the input with all models."""
    plan = score.plan
    # A few rows if scoring one takes long, as for images and texts.
    rows = source.sample.slice(
        0, min((bound.sample_rows for node in plan.nodes for bound in node.plan.inputs), default=None)
    )
    sequences = plan.nodes[0].settings.model.spec.sequences
    if sequences is not None and rows.num_rows:
        rows = sample_windows(rows, WindowCutter(sequences, score.schema), SAMPLE_ROWS)
    count = rows.num_rows
    if not count:
        return Finding("there are no rows; the models score rows of zeros", None)
    dead: Counter[str] = Counter()
    taken: list[str] = []
    for stage in range(len(plan.stages)):
        handler = GraphModelHandler(plan, stage, score.batching)
        for scored in handler.run_inference([rows], handler.load_model()):
            rows = scored.rows
            dead += scored.dead_by_error
            taken += [f"{name} scores {each.scored:,}" for name, each in scored.models.items()]
    what = f"of the first {count:,} rows {rows.num_rows:,} are scored ({', '.join(taken)})"
    if dead:
        what += f", {dead.total():,} would be dead letters ({', '.join(f'{n:,} {kind}' for kind, n in dead.most_common(3))})"
    return Finding(what, None, warning=bool(dead))
