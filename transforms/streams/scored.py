"""What becomes of a micro-batch on its way from the model to its delivery."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from apache_beam.coders.typecoders import registry

from handlers.failures import RowFailures
from transforms.streams.coder import MessagesCoder
from transforms.streams.messages import Messages


@dataclass(frozen=True)
class ScoredMessages:
    """What became of messages; scored + dropped + dead are all of them.

    Attributes:
        messages: as they came.
        predictions: the scored rows, in the output schema of the plan.
        indices: int64: for each of them the index of its message, increasing unless a function changed the order.
        failures: by index of the message, why it was not scored.
        model_version: the model that scored them.
    """

    messages: Messages
    predictions: pa.RecordBatch
    indices: np.ndarray
    failures: RowFailures
    model_version: str


registry.register_coder(ScoredMessages, MessagesCoder)
