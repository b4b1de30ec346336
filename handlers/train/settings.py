"""The settings of a training. Imports neither torch nor Lightning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True)
class Settings:
    """How a network is trained.

    Attributes:
        epochs: passes over the training rows at most.
        batch_size: rows of a step.
        learning_rate: at its highest, after the warm-up.
        weight_decay: of AdamW.
        patience: epochs without a lower validation loss after which the training stops; 0 never stops early.
        gradient_clip: the norm that gradients are scaled down to; 0 leaves them.
        balanced: whether rare classes weigh as much as common ones.
        regression: the loss of a regression.
        precision: float32, or bfloat16 or float16 by autocast.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        seed: of the weights, the order of rows and dropout.
        logger: `csv` or `tensorboard`.
    """

    epochs: int = 30
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    patience: int = 5
    gradient_clip: float = 1.0
    balanced: bool = False
    regression: Literal["mse", "huber"] = "mse"
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "auto"
    seed: int = 0
    logger: Literal["csv", "tensorboard"] = "csv"


@dataclass(frozen=True)
class Epoch:
    """What an epoch came to.

    Attributes:
        epoch: its number, from 1.
        train_loss: mean over its batches.
        validation_loss: mean over the validation rows, after it.
        learning_rate: at its end.
    """

    epoch: int
    train_loss: float
    validation_loss: float
    learning_rate: float


def best_of(history: list[Epoch]) -> Epoch:
    """The epoch with the lowest validation loss; the first of equal ones."""
    return min(history, key=lambda each: each.validation_loss)


def is_finished(history: list[Epoch], settings: Settings) -> bool:
    """Whether a training with this history has ended."""
    if len(history) >= settings.epochs:
        return True
    return bool(history and settings.patience and len(history) - best_of(history).epoch >= settings.patience)


class Listener(Protocol):
    """Receives the progress of a training, for the display."""

    def step(self, epoch: int, step: int, steps: int, loss: float) -> None:
        """After step `step` of `steps` of an epoch, both from 1."""

    def epoch(self, done: Epoch, best: Epoch) -> None:
        """After an epoch, with the best one so far."""
