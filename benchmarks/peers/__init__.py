"""The contestants, each as its own documentation says, at the settings that `benchmarks.search` has found."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Peer:
    """One contestant.

    Attributes:
        title: what it is, for the table.
        target: `module:function` under `benchmarks.peers`; the function takes a `Job` and a `Clock`.
        needs: modules without which it is not measured.
        grid: values of its settings among which `benchmarks.search` looks; the first ones are where it begins.
        is_command: the function takes a `Job` and gives the command line of another program, whose whole time counts.
        scores: whether it writes an output, which is compared.
    """

    title: str
    target: str
    needs: tuple[str, ...] = ()
    grid: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    is_command: bool = False
    scores: bool = True

    def missing(self) -> str | None:
        """Why it cannot be measured here; None if it can."""
        absent = [name for name in self.needs if importlib.util.find_spec(name) is None]
        return f"{', '.join(absent)} cannot be imported" if absent else None


PEERS = {
    "loop": Peer(
        "the loop: pyarrow and torch",
        "loop:loop",
        grid={"read_rows": (131_072, 65_536, 1_048_576), "batch_rows": (8192, 2048, 32_768)},
    ),
    "loop_readahead": Peer("the loop, a thread reads ahead", "loop:loop_readahead"),
    "torchbeam": Peer("`torchbeam score`", "ours:torchbeam"),
}
