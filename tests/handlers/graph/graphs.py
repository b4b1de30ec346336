"""Settings of models, and the stages of a plan run one after the other, as a pipeline does."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from handlers.columnar.chunks import with_provenance
from handlers.graph.handler import GraphModelHandler
from handlers.graph.plan import GraphPlan
from handlers.graph.result import ModelCounts
from transforms.inference.chunk_coder import ChunkCoder


@dataclass
class Run:
    """What came out of all stages."""

    rows: pa.RecordBatch
    dropped: int = 0
    dead: list[dict[str, Any]] = field(default_factory=list)
    by_error: Counter[str] = field(default_factory=Counter)
    models: dict[str, ModelCounts] = field(default_factory=dict)

    def counts(self, name: str) -> tuple[int, ...]:
        """Rows in, scored, dropped, dead, skipped."""
        found = self.models[name]
        return found.rows_in, found.scored, found.dropped, found.dead, found.skipped


def run(plan: GraphPlan, chunk: pa.RecordBatch) -> Run:
    """Scores `chunk`, with provenance; between stages it is encoded and decoded, as in a pipeline."""
    found = Run(chunk)
    for stage in range(len(plan.stages)):
        handler = GraphModelHandler(plan, stage)
        if stage:
            found.rows = ChunkCoder().decode(ChunkCoder().encode(found.rows))
        (scored,) = handler.run_inference([found.rows], handler.load_model())
        found.rows = scored.rows
        found.dropped += scored.dropped
        found.dead += scored.dead_letters.to_pylist()
        found.by_error += scored.dead_by_error
        found.models |= scored.models
    for each in found.models.values():
        assert each.rows_in == each.scored + each.dropped + each.dead + each.skipped
    assert found.rows.num_rows + found.dropped + len(found.dead) == chunk.num_rows
    return found


def chunk_of(a: Any, b: Any, **more: Any) -> pa.RecordBatch:
    """Rows with the columns id, a and b, and provenance."""
    columns = {"id": np.arange(len(a)), "a": pa.array(a, pa.float64()), "b": pa.array(b, pa.float64()), **more}
    return with_provenance(pa.RecordBatch.from_pydict(columns), "table", 0)
