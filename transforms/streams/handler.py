"""`StreamModelHandler`: Beam's RunInference over micro-batches of messages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from handlers.base import MeteredHandler
from handlers.columnar.handler import ColumnarModelHandler
from handlers.columnar.refreshing import ScorerRefresher
from handlers.columnar.scorer import Scorer
from handlers.errors import DeviceLostError
from handlers.metrics import InferenceMetrics
from handlers.predict.faults import leave_lost_process
from transforms.streams.decode import Decoded
from transforms.streams.metrics import refreshed
from transforms.streams.scored import ScoredMessages

# How the metrics of a stream call what a model's refresher counts.
OUTCOMES = {"models_refreshed": "taken", "models_refused": "refused", "model_lookups_failed": "not_found"}


class StreamModelHandler(MeteredHandler[Decoded, ScoredMessages, Any]):
    """Scores micro-batches: a `Decoded` is a batch, and one `ScoredMessages` comes out.

    Args:
        inner: scores the rows; it has the model, the plan, the placement and the refresh.
    """

    def __init__(self, inner: ColumnarModelHandler) -> None:
        self._inner = inner
        self.tag = inner.tag
        self._hints = inner._hints
        self._env_vars = inner._env_vars  # RunInference sets them before load_model
        self._metrics = InferenceMetrics()

    def share_model_across_processes(self) -> bool:
        """As the inner handler."""
        return self._inner.share_model_across_processes()

    def load_model(self) -> Scorer | ScorerRefresher:
        """Loads the model into this process, on its device."""
        return self._inner.load_model()

    def run_inference(
        self, batch: Any, model: Any, inference_args: dict[str, Any] | None = None
    ) -> Iterable[ScoredMessages]:
        """Scores a micro-batch, which is a `Decoded`."""
        del inference_args
        for name, number in self._inner.count_refreshes(model).items():
            refreshed(OUTCOMES[name], number)
        try:
            return [self._score(self._inner.current(model, [batch.chunk]), batch)]
        except DeviceLostError:
            leave_lost_process()
            raise

    def _score(self, model: Scorer, decoded: Decoded) -> ScoredMessages:
        version = model.stage.version  # one model for the whole micro-batch
        self._metrics.loaded(model.take_load())
        rows, failed, stats = model.answer(decoded.chunk)
        of_message = decoded.indices
        failures = decoded.failures | {int(of_message[row]): failure for row, failure in failed.items()}
        by_stage = Counter(failure.stage for failure in failures.values())
        count, scored = len(decoded.messages), rows.batch.num_rows
        self._metrics.batch(count, scored, by_stage, stats, count - scored - len(failures))
        return ScoredMessages(decoded.messages, rows.batch, of_message[rows.ids], failures, version)

    def validate_inference_args(self, inference_args: dict[str, Any] | None) -> None:
        """Refuses arguments, as the inner handler."""
        self._inner.validate_inference_args(inference_args)

    def get_num_bytes(self, batch: Any) -> int:
        """Bytes of the rows of the batch."""
        return int(batch.chunk.nbytes)

    def should_skip_batching(self) -> bool:
        """True: a micro-batch is a batch already. Beam's batching would hold it back until the next one comes."""
        return True
