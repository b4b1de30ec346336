"""Processes that promote, push and read a registry at the same time."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path

import pytest
from registry_processes import promote_many, push_many, read_many

from handlers.model.registry import read_aliases
from transforms.registry.registry import ModelRegistry

pytestmark = pytest.mark.slow(15)


def test_processes_at_once(registry: ModelRegistry, make: Callable[..., Path], tmp_path: Path) -> None:
    first, second = make(0.0), make(1.0)
    registry.push(first, "credit")
    registry.push(second, "credit")
    registry.promote("credit@1", "champion")
    with ProcessPoolExecutor(3, get_context("spawn")) as processes:
        promotes = [processes.submit(promote_many, registry.folder, seed, 30) for seed in range(2)]
        reads = processes.submit(read_many, registry.folder, 300)
        done = [job.result() for job in promotes]
        assert reads.result() <= {1, 2}
        other = str(tmp_path / "pushes")
        pushes = [processes.submit(push_many, other, str(model), 4) for model in (first, second, first)]
        pushed = [job.result() for job in pushes]
    # Every change is in the file, once: each differs from the one before it.
    alias = read_aliases(registry.folder, "credit")["champion"]
    history = [alias.version, *alias.previous]
    assert all(one != other for one, other in pairwise(history))
    lines = [line for lost in done for line in lost]
    assert all("was changed by another process at the same time" in line for line in lines)
    assert 2 <= len(history) <= 1 + 60 - len(lines)
    left = {path.name for path in Path(registry.folder, "credit").iterdir()}
    assert left == {"1", "2", "aliases.json"}
    assert json.loads(Path(registry.folder, "credit", "aliases.json").read_text())

    assert sorted(int(name.partition("@")[2]) for each in pushed for name in each) == list(range(1, 13))
    assert {path.name for path in Path(other, "credit").iterdir()} == {str(number) for number in range(1, 13)}
