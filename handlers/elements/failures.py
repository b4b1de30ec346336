"""The failure of one example, which replaces its prediction."""

from __future__ import annotations

import traceback as tracebacks
from dataclasses import dataclass

from handlers.errors import one_line

TRACEBACK_CHARACTERS = 4000


@dataclass(frozen=True)
class FailedPrediction:
    """What `PredictionResult.inference` is for an example that could not be scored.

    Attributes:
        stage: `preprocess`, `encode` (from the example to tensors), `forward`, `head` or `postprocess`; the function's
            name follows a space where there is one.
        error_type: the class of the error, or what a check found: `NotFinite`, `NullValue`, `WrongShape`, ….
        message: on one line.
        traceback: of the error; empty where a check refused the example.
    """

    stage: str
    error_type: str
    message: str
    traceback: str = ""


Failures = dict[int, FailedPrediction]  # by the index of the example in its batch


def failed_prediction(stage: str, error: BaseException) -> FailedPrediction:
    """What `error` says, without the error itself, which may hold tensors and may not be picklable."""
    trace = "".join(tracebacks.format_exception(error))[-TRACEBACK_CHARACTERS:]
    return FailedPrediction(stage, type(error).__name__, one_line(error), trace)
