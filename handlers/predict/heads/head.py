"""What `model.yaml` says of the outputs of a model. Imports neither torch nor Arrow."""

from __future__ import annotations

from dataclasses import dataclass

PROBABILITY = "probability_"  # and the name of the class: the column of its probability


@dataclass(frozen=True)
class Head:
    """How the outputs of a model become columns; what `model.yaml` says of them.

    Attributes:
        task: one of `TASKS`.
        labels: names of the classes or labels, in the order of the outputs.
        output: whether the model gives `logits` or `probabilities`.
        threshold: the probability from which a label of task multilabel is predicted.
        probabilities: whether classification gives the probability of every class, too.
    """

    task: str = "raw"
    labels: tuple[str, ...] | None = None
    output: str = "logits"
    threshold: float = 0.5
    probabilities: bool = False
