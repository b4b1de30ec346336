"""`WatchModel`: which model an element-wise `RunInference` is to use, as a side input that follows a location."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import apache_beam as beam
from apache_beam.metrics.metric import Metrics
from apache_beam.ml.inference.base import ModelMetadata
from apache_beam.pvalue import PBegin, PCollection
from apache_beam.transforms.periodicsequence import PeriodicSequence
from apache_beam.transforms.window import FixedWindows
from apache_beam.utils.timestamp import MAX_TIMESTAMP, Timestamp

from handlers.errors import UsageError, one_line
from handlers.metrics import NAMESPACE
from handlers.redact import redact
from handlers.refresh.watch import ModelWatch, Refresh, Target

_log = logging.getLogger("torchbeam.refresh")


@dataclass(eq=False)
class WatchModel(beam.PTransform[Any, Any]):
    """The model that a location stands for, again and again: a pipeline's begin to `PCollection[ModelMetadata]`.

    It is made for `model_metadata_pcoll`. It has one element in every fixed window of `every` seconds, the `model_id` of
    which changes when the location has another model. The examples need windows, too, as long or shorter: those of a window
    wait until that of the model in which it ends has begun.

        watch = ModelWatch("models/credit/*")
        handler = TorchModelHandler(watch.first())
        models = pipeline | WatchModel(watch, every=60)
        examples | beam.WindowInto(FixedWindows(10)) | RunInference(handler, model_metadata_pcoll=models)

    A model whose `model.yaml`, hashes or trust are wrong is refused: it is logged once and counted (`models_refused`), and
    the one before it goes on. Whether it scores is not tried here. A directory that is written anew in its place is not
    noticed, as Beam tells models apart by their path.

    Attributes:
        watch: the location.
        every: seconds from one look to the next.
        stop: when the looking ends, in seconds since 1970; None for never.

    Raises:
        UsageError: where the location has no model now, or `every` is not positive.
    """

    watch: ModelWatch | str
    every: float = 60.0
    stop: float | None = None
    _first: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        watch = ModelWatch(self.watch) if isinstance(self.watch, str) else self.watch
        self._refresh = Refresh(watch, self.every)
        self._first = watch.first().path

    def expand(self, begin: PBegin) -> PCollection[ModelMetadata]:
        """Ticks at the beginnings of windows → look → windows → reshuffle."""
        models: PCollection[ModelMetadata] = (
            begin
            | "Start" >> beam.Impulse()
            | "Times" >> beam.Map(_times, self.every, self.stop)
            | "Ticks" >> PeriodicSequence()
            | "Look" >> beam.ParDo(_Look(self._refresh.watch, self._first)).with_output_types(ModelMetadata)
            | "Windows" >> beam.WindowInto(FixedWindows(self.every))
            | "Reshuffle" >> beam.Reshuffle()  # without it Prism does not take it as a side input
        )
        return models


def _times(_: bytes, every: float, stop: float | None) -> tuple[Timestamp, Timestamp, float]:
    """From the beginning of the present window, of the worker that starts: a template may be launched long after."""
    start = Timestamp(math.floor(time.time() / every) * every)
    return start, MAX_TIMESTAMP if stop is None else max(start, Timestamp(stop)), every


class _Look(beam.DoFn):
    def __init__(self, watch: ModelWatch, first: str) -> None:
        self._watch = watch
        self._path = first
        self._tried: Target | None = None
        self._problem = ""

    def process(self, _: Timestamp) -> Iterator[ModelMetadata]:
        try:
            target = self._watch.find()
            if target != self._tried:
                self._tried = target
                path = self._watch.open(target).path
                if path != self._path:
                    Metrics.counter(NAMESPACE, "models_refreshed").inc()
                    _log.info("the model is now %s", redact(path))
                self._path = path
            self._problem = ""
        except UsageError as error:
            self._refused(one_line(error))
        yield ModelMetadata(self._path, self._path.rstrip("/").rpartition("/")[2])

    def _refused(self, reason: str) -> None:
        if reason != self._problem:
            self._problem = reason
            Metrics.counter(NAMESPACE, "models_refused").inc()
            _log.warning("a newer model is refused: %s; %s goes on", reason, redact(self._path))
