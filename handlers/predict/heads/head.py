"""The part of `model.yaml` about the outputs of a model. Imports neither torch nor Arrow."""

from __future__ import annotations

from dataclasses import dataclass

PROBABILITY = "probability_"  # and the name of the class: the column of its probability
FORECAST = "forecast"
FORECAST_FROM = "forecast_from"  # the column of the first step that a forecast is for


@dataclass(frozen=True)
class Head:
    """How the outputs of a model become columns, as given in `model.yaml`.

    Attributes:
        task: one of `TASKS`.
        labels: names of the classes or labels, in the order of the outputs.
        output: whether the model gives `logits` or `probabilities`.
        threshold: the probability from which a label of task multilabel is predicted.
        probabilities: whether classification gives the probability of every class, too.
        horizon: steps of a forecast.
        targets: the columns that are forecast.
    """

    task: str = "raw"
    labels: tuple[str, ...] | None = None
    output: str = "logits"
    threshold: float = 0.5
    probabilities: bool = False
    horizon: int = 1
    targets: tuple[str, ...] = ()
