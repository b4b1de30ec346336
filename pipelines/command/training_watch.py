"""Shows the progress of a training."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from handlers.train.settings import Epoch
from transforms.progress_bar import LOG_SECONDS


class TrainingWatch:
    """Shows losses and the time left on stderr: a bar in a terminal, otherwise a line every 15 seconds.

    Use it as a context manager around the training.

    Args:
        epochs: how many there are at most.
    """

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs
        self._console = Console(stderr=True)
        self._began = self._shown = time.monotonic()
        self._best = ""
        columns = (
            BarColumn(10),
            TextColumn("{task.description}"),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
        )
        self._bar = Progress(*columns, console=self._console, transient=True)
        self._task = self._bar.add_task("", total=None)

    def __enter__(self) -> TrainingWatch:
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._bar.stop()

    def step(self, epoch: int, step: int, steps: int, loss: float) -> None:
        """After step `step` of `steps` of an epoch, both from 1."""
        if self._console.is_terminal:
            self._bar.start()
            done = (epoch - 1) * steps + step
            line = f"epoch {epoch}/{self._epochs}, loss {loss:.4f}{self._best}"
            self._bar.update(self._task, total=self._epochs * steps, completed=done, description=line)
        else:
            self._print(f"epoch {epoch}/{self._epochs}, step {step}/{steps}, loss {loss:.4g}{self._best}")

    def epoch(self, done: Epoch, best: Epoch) -> None:
        """After an epoch, with the best one so far."""
        self._best = f", validation {done.validation_loss:.4f}, best {best.validation_loss:.4f}"
        if not self._console.is_terminal:
            self._print(f"epoch {done.epoch}/{self._epochs}, loss {done.train_loss:.4g}{self._best}")

    def _print(self, line: str) -> None:
        now = time.monotonic()
        if now - self._shown >= LOG_SECONDS:
            self._shown = now
            print(f"training: {line}, {now - self._began:.0f} s", file=sys.stderr, flush=True)
