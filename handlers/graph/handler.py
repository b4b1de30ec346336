"""`GraphModelHandler`: Beam's RunInference over chunks of rows with the models of one stage."""

from __future__ import annotations

import time
from collections import Counter

import pyarrow as pa

from handlers.batching import Batching
from handlers.columnar.handler import ChunkHandler
from handlers.columnar.scorer import Scorer
from handlers.graph.keyed import KeyedModels
from handlers.graph.plan import GraphPlan
from handlers.graph.result import StageScored
from handlers.graph.scorer import AnswersRows, GraphScorer, OneModel
from handlers.metrics import InferenceMetrics
from handlers.predict.predictor import Predictor
from handlers.stats import Load


class GraphModelHandler(ChunkHandler[StageScored, GraphScorer]):
    """Scores chunks with the models of one stage: record batches go in, one `StageScored` for each batch comes out.

    Args:
        plan: what `handlers.graph.planning.plan_graph` settled.
        stage: the index of the stage.
        batching: how rows are gathered.
    """

    def __init__(self, plan: GraphPlan, stage: int, batching: Batching | None = None) -> None:
        self.plan = plan
        self.stage = stage
        self.batching = batching or Batching()
        self._nodes = plan.stages[stage]
        self._hints = self._nodes[0].settings.hints
        self._metrics = InferenceMetrics()
        # RunInference sets them before load_model; kept by the name that Beam's base class has for them.
        self._env_vars = {
            name: value for node in self._nodes for name, value in node.settings.model.spec.env_vars.items()
        }
        self._loads: list[Load] = []

    def load_model(self) -> GraphScorer:
        """Loads the models of the stage into this process, each on its device."""
        models: dict[str, AnswersRows] = {}
        for node in self._nodes:
            started = time.perf_counter()
            settings = node.settings
            if settings.by_key is not None:
                models[node.name] = KeyedModels(node, settings.by_key)
                continue
            predictor = Predictor(settings.model.load(), settings.placement, settings.batch_size)
            models[node.name] = OneModel(Scorer(settings.model, node.plan, predictor))
            self._loads.append(predictor.load_since(started))
        return GraphScorer(self.plan, self.stage, models)

    def _score(self, model: GraphScorer, chunk: pa.RecordBatch) -> StageScored:
        return model.score(chunk)

    def _count_loads(self, model: GraphScorer) -> None:
        while self._loads:
            self._metrics.loaded(self._loads.pop())

    def _count(self, scored: StageScored) -> None:
        failed: Counter[str] = Counter()
        for counts in scored.models.values():
            for error, rows in counts.dead_by_error.items():
                failed[error.rpartition("/")[0]] += rows
        totals = [
            sum(getattr(counts, name) for counts in scored.models.values())
            for name in ("rows_in", "scored", "dropped", "skipped")
        ]
        rows_in, answered, dropped, skipped = totals
        self._metrics.batch(rows_in - skipped, answered, failed, scored.stats, dropped)
