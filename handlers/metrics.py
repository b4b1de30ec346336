"""Beam metrics of the inference step, for both handlers.

| metric | kind | what |
| --- | --- | --- |
| `rows_in`, `rows_scored` | counters | rows (or examples) given to the step, and answered |
| `rows_failed_STAGE` | counters | rows that the stage refused: `preprocess`, `encode`, `forward`, … |
| `rows_dropped` | counter | rows that a function left out on purpose |
| `micro_batch_rows` | distribution | rows of a call of the model |
| `padding_percent` | distribution | share of padded inputs that is padding; only where something was padded |
| `encode_microseconds`, `forward_microseconds`, `decode_microseconds` | distributions | of a batch |
| `out_of_memory` | counter | how often memory ran out and a micro-batch was halved |
| `model_load_milliseconds`, `model_bytes` | distributions | of each model that was loaded |
| `models_refreshed`, `models_refused` | counters | newer models that were taken, and that were refused |
| `model_lookups_failed` | counter | how often the location of newer models could not be read |

Runners count a bundle that is retried twice; exact counts are those of the pipeline's own data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from apache_beam.metrics.metric import Metrics

from handlers.stats import Load, Stats

NAMESPACE = "torchbeam"


@dataclass
class InferenceMetrics:
    """The metrics of one handler in one worker. Small, and pickled with it; the metrics are made where they are used."""

    namespace: str = NAMESPACE
    _metrics: dict[str, Any] = field(default_factory=dict, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {"namespace": self.namespace, "_metrics": {}}

    def rename(self, namespace: str) -> None:
        """Sets the namespace passed to `RunInference(metrics_namespace=…)`."""
        if namespace and namespace != self.namespace:
            self.namespace = namespace
            self._metrics = {}

    def batch(self, rows: int, scored: int, failed: Mapping[str, int], stats: Stats, dropped: int = 0) -> None:
        """Records what became of the rows of a batch; `failed` by stage."""
        self._count("rows_in", rows)
        self._count("rows_scored", scored)
        self._count("rows_dropped", dropped)
        for stage, number in failed.items():
            # The stage of a function is "preprocess module:function"; a metric wants one name for all of them.
            self._count(f"rows_failed_{stage.split(' ')[0]}", number)
        self._count("out_of_memory", stats.out_of_memory)
        for size in stats.micro_batches:
            self._distribute("micro_batch_rows", size)
        if stats.padded_tokens:
            self._distribute("padding_percent", round(100 * (1 - stats.tokens / stats.padded_tokens)))
        self._distribute("encode_microseconds", round(1e6 * stats.encode_seconds))
        self._distribute("forward_microseconds", round(1e6 * stats.forward_seconds))
        self._distribute("decode_microseconds", round(1e6 * stats.decode_seconds))

    def loaded(self, load: Load | None) -> None:
        """Records what loading the model cost, right after it was loaded."""
        if load is not None:
            self._distribute("model_load_milliseconds", round(1000 * load.seconds))
            self._distribute("model_bytes", load.bytes)

    def refreshed(self, counts: Mapping[str, int]) -> None:
        """Records what a `Refresher` counted."""
        for name, number in counts.items():
            self._count(name, number)

    def _count(self, name: str, number: int) -> None:
        if not number:
            return
        if name not in self._metrics:
            self._metrics[name] = Metrics.counter(self.namespace, name)
        self._metrics[name].inc(number)

    def _distribute(self, name: str, value: int) -> None:
        if name not in self._metrics:
            self._metrics[name] = Metrics.distribution(self.namespace, name)
        self._metrics[name].update(value)
