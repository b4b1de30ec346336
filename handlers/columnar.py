"""`ColumnarModelHandler`: Beam's RunInference over chunks of rows."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from apache_beam.ml.inference.base import ModelHandler

from handlers.chunks import merge
from handlers.errors import DeviceLostError, UsageError
from handlers.model_dir import ModelDir
from handlers.placement import Placement
from handlers.predictor import Predictor
from handlers.scorer import Plan, Scored, Scorer

METRICS_NAMESPACE = "torchbeam"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Batching:
    """How rows are gathered.

    Attributes:
        chunk_rows: rows of a chunk, the unit that flows through the pipeline.
        chunk_bytes: about how many bytes a chunk may have, whatever its rows.
        batch_size: rows of a micro-batch, one call of the model; None chooses by the bytes of a row.
    """

    chunk_rows: int = 8192
    chunk_bytes: int = 64 << 20
    batch_size: int | None = None

    def __post_init__(self) -> None:
        for name in ("chunk_rows", "chunk_bytes", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} must be 1 or more, not {value}")


@dataclass(frozen=True)
class ResourceHints:
    """What the inference step asks of its workers, in Beam's own notation.

    Attributes:
        accelerator: for example `type:nvidia-l4;count:1;install-nvidia-driver`.
        min_ram: with its unit, for example `16GB` (10⁹ bytes) or `16GiB` (2³⁰ bytes).
    """

    accelerator: str | None = None
    min_ram: str | None = None

    def __post_init__(self) -> None:
        if self.min_ram is not None and not self.min_ram.rstrip().endswith(("B", "b")):
            raise UsageError(f'--min_ram "{self.min_ram}" has no unit; write it with one, as {self.min_ram}GB')

    def as_dict(self) -> dict[str, str]:
        """Keyword arguments of Beam's `with_resource_hints`."""
        hints = {"accelerator": self.accelerator, "min_ram": self.min_ram}
        return {name: value for name, value in hints.items() if value is not None}


class ColumnarModelHandler(ModelHandler[pa.RecordBatch, Scored, Scorer]):
    """Scores chunks: a batch of record batches with provenance goes in, one `Scored` comes out.

    Args:
        model: the model directory.
        plan: what `make_plan` settled.
        placement: where the model runs.
        batching: how rows are gathered.
        hints: resource hints of the inference step.
    """

    def __init__(
        self,
        model: ModelDir,
        plan: Plan,
        placement: Placement | None = None,
        batching: Batching | None = None,
        hints: ResourceHints | None = None,
    ) -> None:
        self._model = model
        self.plan = plan
        self._placement = placement or Placement()
        self.batching = batching or Batching()
        self._hints = hints or ResourceHints()
        # RunInference sets them before load_model; kept by the name that Beam's base class has for them.
        self._env_vars = model.spec.env_vars

    def load_model(self) -> Scorer:
        """Loads the model into this process, on its device."""
        predictor = Predictor(self._model.load(), self._placement, self.batching.batch_size)
        return Scorer(self._model, self.plan, predictor)

    def run_inference(
        self, batch: Sequence[pa.RecordBatch], model: Scorer, inference_args: dict[str, Any] | None = None
    ) -> Iterable[Scored]:
        """Scores the chunks of `batch` as one; those whose schemas have no common type are scored apart."""
        if not batch:  # BatchElements begins a bundle with an empty batch where its first element is a full one
            return []
        try:
            chunks = [merge(batch)]
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            chunks = list(batch)
        try:
            return [model.score(chunk) for chunk in chunks]
        except DeviceLostError:
            if "WORKER_ID" in os.environ:  # a worker process of its own, which its runner replaces and retries
                _log.exception("the accelerator is lost; this worker process ends, so that a fresh one can take over")
                logging.shutdown()
                os._exit(70)
            raise

    def get_num_bytes(self, batch: Sequence[pa.RecordBatch]) -> int:
        """Bytes of the Arrow buffers of the batch."""
        return sum(chunk.nbytes for chunk in batch)

    def batch_elements_kwargs(self) -> Mapping[str, Any]:
        """Batches are counted in rows; chunks have the right size already, so each goes on by itself."""
        rows = self.batching.chunk_rows
        return {"min_batch_size": rows, "max_batch_size": rows, "element_size_fn": _rows}

    def get_metrics_namespace(self) -> str:
        """The namespace of Beam's metrics of this step."""
        return METRICS_NAMESPACE

    def get_resource_hints(self) -> dict[str, str]:
        """The hints of the inference step."""
        return self._hints.as_dict()


def _rows(chunk: pa.RecordBatch) -> int:
    return int(chunk.num_rows)
