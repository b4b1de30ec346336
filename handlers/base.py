"""What both model handlers have in common: metrics and resource hints."""

from __future__ import annotations

from typing import TypeVar

from apache_beam.ml.inference.base import ModelHandler

from handlers.batching import ResourceHints
from handlers.metrics import NAMESPACE, InferenceMetrics

ExampleT = TypeVar("ExampleT")
PredictionT = TypeVar("PredictionT")
ModelT = TypeVar("ModelT")


class MeteredHandler(ModelHandler[ExampleT, PredictionT, ModelT]):
    """A model handler with our metrics in addition to Beam's, and resource hints of the inference step.

    A subclass sets both attributes.
    """

    _hints: ResourceHints
    _metrics: InferenceMetrics

    def get_metrics_namespace(self) -> str:
        """The namespace of the metrics of this step, Beam's and ours."""
        return NAMESPACE

    def override_metrics(self, metrics_namespace: str = "") -> bool:
        """Sets the namespace passed to `RunInference`; Beam still reports its own metrics."""
        self._metrics.rename(metrics_namespace)
        return False

    def get_resource_hints(self) -> dict[str, str]:
        """The hints of the inference step."""
        return self._hints.as_dict()
