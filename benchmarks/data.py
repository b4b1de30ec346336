"""The folder of inputs and models, all made once from fixed seeds, and never more than the disk holds."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FREE_BYTES = 5_000_000_000  # left on the disk, whatever is made


class DiskFullError(Exception):
    """The disk cannot hold an input and what is made of it."""


@dataclass(frozen=True)
class Data:
    """`folder` holds inputs, models and, while a contestant runs, its output."""

    folder: Path = ROOT / "out" / "benchmark"

    def make(self, name: str, size: int, fill: Callable[[Path], None]) -> Path:
        """The folder with that name, made and filled where it is not there.

        Args:
            name: its path below `folder`.
            size: about how many bytes it will have.
            fill: puts files into an empty folder, which is given its name when all are there.

        Raises:
            DiskFullError: the disk does not hold it with an output and that of the loop.
        """
        target = self.folder / name
        if not target.exists():
            self.check_space(size)
            made = target.with_name(f"making-{name}")
            shutil.rmtree(made, ignore_errors=True)
            made.mkdir(parents=True)
            fill(made)
            made.rename(target)
        return target

    def check_space(self, size: int) -> None:
        """Raises DiskFullError if an input of `size` bytes, and two outputs as large, do not fit."""
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if 3 * size + FREE_BYTES > free:
            need, left = 3 * size / 1e9, FREE_BYTES / 1e9
            raise DiskFullError(
                f"an input, its output and that of the loop take {need:.0f} GB under {self.folder}; {free / 1e9:.0f} GB are free, "
                f"of which {left:.0f} GB stay free. Take fewer rows."
            )
