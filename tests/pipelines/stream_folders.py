"""What the tests of the command stream share: a model, folders of JSON lines, and the records in what comes out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from handlers import ModelDir

COLUMNS = [f"f{index}" for index in range(20)]


def save_model(folder: Path, seed: int = 0) -> ModelDir:
    """A classifier of 20 floats, exported, so that no code travels with it."""
    torch.manual_seed(seed)
    net = torch.nn.Sequential(torch.nn.Linear(20, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2)).eval()
    return ModelDir.save(
        net,
        folder,
        format="torch_export",
        example=(torch.zeros(2, 20),),
        task="classification",
        labels=("good", "bad"),
        inputs=[{"name": "input", "columns": COLUMNS}],
    )


def rows(count: int, seed: int = 1) -> list[dict[str, Any]]:
    """Rows of an id and 20 floats."""
    values = np.random.default_rng(seed).normal(size=(count, 20)).round(6)
    return [{"id": f"r{index}", **dict(zip(COLUMNS, row.tolist(), strict=True))} for index, row in enumerate(values)]


def put(folder: Path, name: str, lines: Sequence[bytes | dict[str, Any]]) -> None:
    """Moves a file of lines into a folder, as whoever writes there has to."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{name}"
    part.write_bytes(
        b"".join((json.dumps(each).encode() if isinstance(each, dict) else each) + b"\n" for each in lines)
    )
    part.rename(folder / name)


def records(folder: Path) -> list[dict[str, Any]]:
    """The objects in the files of a folder, in the order of their names."""
    return [json.loads(line) for file in sorted(folder.glob("*.jsonl")) for line in file.read_bytes().splitlines()]


@dataclass(frozen=True)
class Folders:
    """The folders of a stream."""

    root: Path

    @property
    def input(self) -> Path:
        return self.root / "in"

    def arguments(self, model: Path | str, *others: str) -> list[str]:
        """The arguments of the command."""
        folders = {"input": "in", "output": "out", "dead_letters": "dead", "accounts": "accounts"}
        given = [f"--{flag}=folder:{self.root / name}" for flag, name in folders.items()]
        return [*given, f"--model={model}", *others]

    def records(self, name: str) -> list[dict[str, Any]]:
        """What is in one of the folders."""
        return records(self.root / name)
