"""A model in a zip file: unpacked once, and only if it is the one that was shipped."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from small_models import Touchy

from handlers.errors import UsageError
from handlers.model.directory import ModelDir
from transforms.shipping import ship


@pytest.fixture
def model(tmp_path: Path) -> ModelDir:
    inputs = [{"name": "x", "columns": ["a", "b"]}]
    return ModelDir.save(Touchy(), tmp_path / "model", task="regression", inputs=inputs)


def test_a_directory(model: ModelDir, tmp_path: Path) -> None:
    root = tmp_path / "files"
    root.mkdir()
    shipped, _ = ship(model, root)
    with ThreadPoolExecutor(4) as threads:
        opened = list(threads.map(lambda _: shipped.open(root), range(4)))
    assert {each.digest for each in opened} == {model.digest}
    assert sorted(each.name for each in root.iterdir()) == [shipped.name.removesuffix(".zip"), shipped.name]
    assert opened[0].load().module(torch.zeros(2, 2)).shape[0] == 2


def test_a_single_file(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    torch.jit.script(torch.nn.Linear(2, 1)).save(str(tmp_path / "linear.pt"))
    shipped, _ = ship(ModelDir(tmp_path / "linear.pt"), tmp_path / "files")
    assert shipped.open(tmp_path / "files").load().module(torch.zeros(3, 2)).shape == (3, 1)


def test_what_was_changed_is_refused(model: ModelDir, tmp_path: Path) -> None:
    root = tmp_path / "files"
    root.mkdir()
    shipped, file = ship(model, root)
    opened = shipped.open(root)
    with (Path(opened.path) / "model.yaml").open("a") as stream:
        stream.write("# changed\n")
    with pytest.raises(UsageError, match="version"):
        shipped.open(root)
    with file.open("ab") as archive:
        archive.write(b"x")
    with pytest.raises(UsageError, match="is not the model that was shipped"):
        shipped.open(root)
