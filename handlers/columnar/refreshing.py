"""Loading another model in the middle of a run: planned as the first was, and refused where the two would not agree."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa

from handlers.columnar.chunks import REFUSED, refusals
from handlers.columnar.plan import Chain, Plan
from handlers.columnar.planning import make_plan
from handlers.columnar.scorer import Scorer
from handlers.errors import UsageError, one_line
from handlers.model.directory import ModelDir
from handlers.predict.placement import Placement
from handlers.predict.predictor import Predictor
from handlers.refresh.refresher import Refresher
from handlers.refresh.watch import Refresh

WARM_UP_ROWS = 100  # few: they are scored while the next chunk is


class ScorerLoader:
    """Loads the scorers of a run whose model is refreshed.

    A model is refused if its output columns are not those of the run, and if it fails on a warm-up row that the running
    model scores. Those are the first rows of the driver's sample, so that all workers decide alike; where it is empty, the
    first rows that this process scored.

    Args:
        first: the model with which the run was planned.
        plan: what was settled for it.
        placement: where models run.
        batch_size: rows of a micro-batch; None chooses.
        sample: rows as the scorer gets them, with provenance, in the schema of the run. It may be empty.
    """

    def __init__(
        self,
        first: ModelDir,
        plan: Plan,
        placement: Placement,
        batch_size: int | None,
        sample: pa.RecordBatch | None = None,
    ) -> None:
        self.first = first
        self._plan = plan
        self._placement = placement
        self._batch_size = batch_size
        self._rows = None if sample is None else sample.slice(0, WARM_UP_ROWS)

    def __call__(self, model: ModelDir, running: Scorer | None) -> Scorer:
        """Loads a model and tries it.

        Args:
            model: the model.
            running: the one that it is to replace, if any.

        Raises:
            UsageError: where its columns differ from those of the run, or it fails on rows that `running` scores.
            BrokenModelError: where it fails on every row of the sample, and on zeros.
        """
        started = time.perf_counter()
        if model.digest != self.first.digest:
            self._check_spec(model)
        predictor = Predictor(model.load(), self._placement, self._batch_size)
        plan = self._plan if model.digest == self.first.digest else self._planned(model, predictor)
        scorer = Scorer(model, plan, predictor, predictor.load_since(started))
        if running is not None and self._rows is not None:
            _warm_up(scorer, running, self._rows)
        return scorer

    def saw(self, chunk: pa.RecordBatch) -> None:
        """Keeps rows of a chunk for the warm-up if there are none yet."""
        if self._rows is None or not self._rows.num_rows:
            good = sorted(set(range(chunk.num_rows)) - refusals(chunk).keys())[:WARM_UP_ROWS]
            columns = [name for name in chunk.schema.names if name != REFUSED]
            self._rows = chunk.select(columns).take(pa.array(good, pa.int64()))

    def _check_spec(self, model: ModelDir) -> None:
        for field in ("env_vars", "sequences", "placement"):
            if getattr(model.spec, field) != getattr(self.first.spec, field):
                raise UsageError(f"it has other {field} than {self.first.path}; start a new run for it")

    def _planned(self, model: ModelDir, predictor: Predictor) -> Plan:
        plan, own = self._plan, self.first.spec
        chain = Chain.of(
            model.spec,
            plan.chain.preprocess[len(own.preprocess) :],
            plan.chain.postprocess[len(own.postprocess) :],
        )
        rows = self._rows
        if rows is None:
            raise UsageError("no row was scored yet to plan it with; give the handler a sample")
        found = make_plan(
            model, predictor, rows, chain, plan.carried, probabilities=plan.probabilities, strict=not rows.num_rows
        )
        if differences := _differences(plan.output, found.output):
            raise UsageError(f"its output columns are not those of the run: {differences}; start a new run for it")
        return replace(found, output=plan.output)


class ScorerRefresher(Refresher[Scorer]):
    """A `Refresher` of scorers; see `handlers.refresh.refresher`."""

    def __init__(self, refresh: Refresh, loader: ScorerLoader) -> None:
        self._loader = loader
        super().__init__(refresh, loader.first, loader)

    def take(self, chunks: Sequence[pa.RecordBatch]) -> Scorer:
        """The scorer for the chunks of a batch."""
        for chunk in chunks:
            self._loader.saw(chunk)
        return self.current


def check_refreshable(model: ModelDir) -> None:
    """Refuses a model that is distributed over devices: two of them would have to fit."""
    if model.spec.placement is not None:
        raise UsageError(
            f"{model.path} has a placement, so it cannot be refreshed: it would have to fit twice; start a new run for each "
            "version"
        )


def _warm_up(scorer: Scorer, running: Scorer, rows: pa.RecordBatch) -> None:
    """Scores rows with both; refuses the new model if it fails where the other does not."""
    if not rows.num_rows:
        return  # planning has scored zeros
    new, old = scorer.answer(rows)[1], running.answer(rows)[1]
    if broken := sorted(new.keys() - old.keys()):
        failure = new[broken[0]]
        raise UsageError(
            f"it fails on {len(broken)} of {rows.num_rows} warm-up rows that the running model scores, first on row "
            f"{broken[0]}: {failure.stage}: {one_line(ValueError(failure.message), 200)}"
        )


def _differences(wanted: pa.Schema | None, found: pa.Schema | None) -> str:
    """How two schemas differ; empty if they do not. The order of columns counts, as it is that of the output."""
    if wanted is None or found is None or found.equals(wanted):
        return ""
    lacking = [name for name in wanted.names if name not in found.names]
    new = [name for name in found.names if name not in wanted.names]
    other = [
        f'"{field.name}" is {found.field(field.name).type}, not {field.type}'
        for field in wanted
        if field.name in found.names and found.field(field.name).type != field.type
    ]
    said = [f'no "{name}"' for name in lacking] + [f'a new "{name}"' for name in new] + other
    return ", ".join(said[:5]) or f"their order is {', '.join(found.names)}"
