"""`ColumnarModelHandler`: Beam's RunInference over chunks of rows."""

from __future__ import annotations

import tempfile
import uuid
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import pyarrow as pa

from handlers.base import MeteredHandler
from handlers.batching import Batching, ResourceHints
from handlers.columnar.chunks import merge
from handlers.columnar.plan import Plan
from handlers.columnar.refreshing import ScorerLoader, ScorerRefresher, check_refreshable
from handlers.columnar.scorer import Scored, Scorer
from handlers.errors import DeviceLostError, UsageError
from handlers.metrics import InferenceMetrics
from handlers.model.directory import ModelDir
from handlers.predict.faults import leave_lost_process
from handlers.predict.placement import Placement
from handlers.private import at_end
from handlers.refresh.watch import Refresh

ScoredT = TypeVar("ScoredT")
ScorerT = TypeVar("ScorerT")


class ChunkHandler(MeteredHandler[pa.RecordBatch, ScoredT, Any], Generic[ScoredT, ScorerT]):
    """What handlers of chunks have in common: a batch of record batches with provenance goes in, one result comes out."""

    batching: Batching

    def run_inference(
        self, batch: Sequence[pa.RecordBatch], model: Any, inference_args: dict[str, Any] | None = None
    ) -> Iterable[ScoredT]:
        """Scores the chunks of `batch` as one; those whose schemas have no common type are scored separately."""
        if not batch:  # BatchElements begins a bundle with an empty batch where its first element is a full one
            return []
        try:
            chunks = [merge(batch)]
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            chunks = list(batch)
        current = self.current(model, chunks)
        try:
            scored = [self._score(current, chunk) for chunk in chunks]
        except DeviceLostError:
            leave_lost_process()
            raise
        self._count_loads(current)
        for part in scored:
            self._count(part)
        return scored

    def current(self, model: Any, chunks: Sequence[pa.RecordBatch]) -> ScorerT:
        """What scores all chunks of a batch, of what `load_model` gave."""
        scorer: ScorerT = model
        return scorer

    @abstractmethod
    def _score(self, model: ScorerT, chunk: pa.RecordBatch) -> ScoredT:
        """The result for one chunk."""

    @abstractmethod
    def _count_loads(self, model: ScorerT) -> None:
        """Adds to the metrics what loading cost, once."""

    @abstractmethod
    def _count(self, scored: ScoredT) -> None:
        """Adds a result to the metrics."""

    def validate_inference_args(self, inference_args: object) -> None:
        """Refuses arguments, which have no meaning for the columns of a chunk."""
        if inference_args is not None and inference_args != {}:
            raise UsageError(
                f"{type(self).__name__} takes no inference_args; make a column of them, or use TorchModelHandler"
            )

    def get_num_bytes(self, batch: Sequence[pa.RecordBatch]) -> int:
        """Bytes of the Arrow buffers of the batch."""
        return sum(chunk.nbytes for chunk in batch)

    def batch_elements_kwargs(self) -> Mapping[str, Any]:
        """Batches are counted in rows, and rows that are large count more; a full chunk goes on by itself."""
        rows = self.batching.chunk_rows
        return {"min_batch_size": rows, "max_batch_size": rows, "element_size_fn": partial(_weight, self.batching)}


class ColumnarModelHandler(ChunkHandler[Scored, Scorer]):
    """Scores chunks: a batch of record batches with provenance goes in, one `Scored` comes out.

    Args:
        model: the model directory.
        plan: what `handlers.columnar.planning.make_plan` settled.
        placement: where the model runs.
        batching: how rows are gathered.
        hints: resource hints of the inference step.
        refresh: where newer models are, which take the place of `model` between two batches.
        sample: for a refresh, the rows that the plan was settled with: newer models are planned and tried with them.

    Raises:
        UsageError: for a model that cannot be refreshed.
    """

    def __init__(
        self,
        model: ModelDir,
        plan: Plan,
        placement: Placement | None = None,
        batching: Batching | None = None,
        hints: ResourceHints | None = None,
        refresh: Refresh | None = None,
        sample: pa.RecordBatch | None = None,
    ) -> None:
        self._model = model
        self.plan = plan
        self._placement = placement or Placement()
        self.batching = batching or Batching()
        self._hints = hints or ResourceHints()
        self._refresh = refresh
        self._sample = sample
        if refresh is not None:
            check_refreshable(model)
        # The name by which the processes of a host share a large model: Beam makes files of it.
        self.tag = f"torchbeam-{uuid.uuid4().hex}"
        self._metrics = InferenceMetrics()
        # RunInference sets them before load_model; kept by the name that Beam's base class has for them.
        self._env_vars = model.spec.env_vars

    def share_model_across_processes(self) -> bool:
        """Whether one process of a host holds the model for all: if it is larger than a device."""
        return self._model.spec.placement is not None

    def load_model(self) -> Scorer | ScorerRefresher:
        """Loads the model into this process, on its device."""
        if self.share_model_across_processes():
            at_end(partial(_remove_files, self.tag))
        loader = ScorerLoader(self._model, self.plan, self._placement, self.batching.batch_size, self._sample)
        return loader(self._model, None) if self._refresh is None else ScorerRefresher(self._refresh, loader)

    def update_model_path(self, model_path: str | None = None) -> None:
        """Refuses another model: columns and encoders are settled for this one before the run.

        Raises:
            UsageError: for any path but that of the model.
        """
        if model_path and model_path != self._model.path:
            raise UsageError(
                f"ColumnarModelHandler cannot change from {self._model.path} to {model_path} while it runs: the columns "
                "are settled for the first; start a new run, or use TorchModelHandler; with a refresh it looks for newer models "
                "itself"
            )

    def current(self, model: Any, chunks: Sequence[pa.RecordBatch]) -> Scorer:
        """The scorer for all chunks of a batch: the newest, where the model is refreshed."""
        if not isinstance(model, ScorerRefresher):
            return super().current(model, chunks)
        self.count_refreshes(model)
        return model.take(chunks)

    def count_refreshes(self, model: Any) -> Counter[str]:
        """Adds to the metrics what became of newer models since the last call, and returns it; see `Refresher`."""
        counts = model.take_counts() if isinstance(model, ScorerRefresher) else Counter()
        self._metrics.refreshed(counts)
        return counts

    def _score(self, model: Scorer, chunk: pa.RecordBatch) -> Scored:
        return model.score(chunk)

    def _count_loads(self, model: Scorer) -> None:
        self._metrics.loaded(model.take_load())

    def _count(self, scored: Scored) -> None:
        failed: Counter[str] = Counter()
        for error, rows in scored.dead_by_error.items():
            failed[error.rpartition("/")[0]] += rows
        rows = scored.predictions.num_rows
        self._metrics.batch(rows + failed.total() + scored.dropped, rows, failed, scored.stats, scored.dropped)


def _remove_files(tag: str) -> None:
    """Removes the files by which Beam's processes find a model that they share."""
    for file in Path(tempfile.gettempdir()).iterdir():
        if file.name.startswith(tag) and file.suffix in (".lock", ".address"):
            file.unlink(missing_ok=True)


def _weight(batching: Batching, chunk: pa.RecordBatch) -> int:
    """The rows of `chunk`, or its bytes in units of `chunk_bytes / chunk_rows`, whichever is more."""
    return max(int(chunk.num_rows), int(chunk.nbytes) * batching.chunk_rows // batching.chunk_bytes)
