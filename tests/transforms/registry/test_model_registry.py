"""A registry in a folder: pushes, aliases, and what is refused."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from handlers.errors import TorchbeamError, UsageError
from handlers.model.directory import ModelDir
from transforms.registry import registry as module
from transforms.registry.push import KILLED_SECONDS
from transforms.registry.registry import ModelRegistry, RegisteredModel

Make = Callable[..., Path]


def test_a_push_is_the_next_version(registry: ModelRegistry, make: Make) -> None:
    (make() / ".hidden").write_text("not of the model")
    assert registry.push(make(), "credit") == "credit@1"
    assert registry.push(ModelDir(make(1.0)), "credit") == "credit@2"
    assert registry.push("credit@1", "debit") == "debit@1"
    assert registry.models() == [
        RegisteredModel("credit", (1, 2), {}, {}),
        RegisteredModel("debit", (1,), {}, {}),
    ]
    opened = registry.open("credit")
    assert (opened.registered, opened.version) == ("credit@2", ModelDir(make(1.0)).version)
    folder = Path(registry.folder, "credit")
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]
    assert sorted(path.name for path in (folder / "1").iterdir()) == [
        ".registry.json",
        "model.yaml",
        "weights.safetensors",
    ]


def test_numbers_are_not_used_twice(registry: ModelRegistry, make: Make) -> None:
    registry.push(make(), "credit")
    (Path(registry.folder) / "credit" / "5").mkdir()  # unfinished
    assert registry.push(make(), "credit") == "credit@6"
    registry.promote("credit@6", "champion")
    (Path(registry.folder) / "credit" / "6").rename(Path(registry.folder) / "removed")
    assert registry.push(make(), "credit") == "credit@7"


def test_aliases_move_and_roll_back(registry: ModelRegistry, make: Make) -> None:
    for bias in (0.0, 1.0, 2.0):
        registry.push(make(bias), "credit")
    assert [registry.promote(f"credit@{version}", "champion") for version in (1, 3, 3, 2)] == [
        *("credit@1", "credit@3", "credit@3", "credit@2")
    ]
    registry.promote("credit@champion", "challenger")
    assert registry.models() == [
        RegisteredModel("credit", (1, 2, 3), {"challenger": 2, "champion": 2}, {"challenger": (), "champion": (3, 1)})
    ]
    assert registry.rollback("credit", "champion") == "credit@3"
    assert registry.rollback("credit", "champion") == "credit@1"
    with pytest.raises(UsageError, match="credit@champion has no version before"):
        registry.rollback("credit", "champion")
    assert registry.open("credit@champion").registered == "credit@1"
    assert registry.open("credit@challenger").registered == "credit@2"


def test_a_changed_version_is_neither_promoted_nor_opened(registry: ModelRegistry, make: Make) -> None:
    for bias in (0.0, 1.0):
        registry.push(make(bias), "credit")
        registry.promote("credit", "champion")
    (Path(registry.folder) / "credit" / "1" / "notes.txt").write_text("added later")
    for call in (
        lambda: registry.promote("credit@1", "challenger"),
        lambda: registry.rollback("credit", "champion"),
        lambda: registry.open("credit@1"),
        lambda: ModelDir("credit@1", registry=registry.folder),
    ):
        with pytest.raises(UsageError, match=r"credit@1 \(.*\) was changed after it was pushed"):
            call()
    weights = Path(registry.folder) / "credit" / "2" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(UsageError, match="the weights were changed or damaged"):
        registry.promote("credit@2", "challenger")
    assert registry.models()[0].aliases == {"champion": 2}


def test_what_is_refused_leaves_nothing(registry: ModelRegistry, make: Make, tmp_path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "m.pt"))
    calls: dict[str, Callable[[], object]] = {
        "is a bare file": lambda: registry.push(tmp_path / "m.pt", "credit"),
        "does not exist": lambda: registry.push(tmp_path / "none", "credit"),
        'name must be letters.*not "../x"': lambda: registry.push(make(), "../x"),
        'alias "latest" always': lambda: registry.promote("credit@1", "latest"),
        "alias must be": lambda: registry.promote("credit@1", "3"),
        "model must be": lambda: registry.promote("a b@1", "champion"),
        "is not a folder": lambda: registry.promote("credit@1", "champion"),
    }
    for line, call in calls.items():
        with pytest.raises(UsageError, match=line):
            call()
    assert not Path(registry.folder).exists()


def test_a_failed_push_leaves_no_folder(registry: ModelRegistry, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.push(make(), "credit")
    monkeypatch.setattr("transforms.registry.push.shutil.copyfile", lambda source, target: Path(target).write_text("x"))
    with pytest.raises(UsageError, match="was written to while it was copied; nothing was pushed"):
        registry.push(make(1.0), "credit")
    assert [path.name for path in Path(registry.folder, "credit").iterdir()] == ["1"]
    other = ModelRegistry(Path(registry.folder, "new", "registry"))
    with pytest.raises(UsageError, match="nothing was pushed"):
        other.push(make(1.0), "credit")
    assert not Path(registry.folder, "new").exists()


def test_what_a_killed_push_left_is_removed(registry: ModelRegistry, make: Make) -> None:
    registry.push(make(), "credit")
    folder = Path(registry.folder, "credit")
    for name in (".push-old", ".push-new", ".other"):
        (folder / name / "code").mkdir(parents=True)
        (folder / name / "code" / "a.py").write_text("")
    an_hour_ago = time.time() - KILLED_SECONDS - 60
    for name in (".push-old", ".push-new", ".other"):
        for each in (
            folder / name / "code",
            folder / name,
            *([folder / name / "code" / "a.py"] if "new" not in name else []),
        ):
            os.utime(each, (an_hour_ago, an_hour_ago))
    told: list[str] = []
    assert registry.push(make(1.0), "credit", told.append) == "credit@2"
    assert told == [f"removed {folder / '.push-old'}, which a killed push left"]
    assert sorted(path.name for path in folder.iterdir()) == [".other", ".push-new", "1", "2"]


def test_damaged_aliases_of_one_model(registry: ModelRegistry, make: Make) -> None:
    for name in ("credit", "fraud"):
        registry.push(make(), name)
        registry.promote(f"{name}@1", "champion")
    path = Path(registry.folder, "credit", "aliases.json")
    path.write_text("{")
    damaged, good = registry.models()
    assert (damaged.name, damaged.versions, damaged.aliases) == ("credit", (1,), {})
    assert damaged.error == f"{path} is not JSON, or not an object; restore it"
    assert (good.aliases, good.error) == ({"champion": 1}, "")


def test_the_loser_of_two_promotions_changes_nothing(
    registry: ModelRegistry, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process promotes between the reading and the writing of the file."""
    for bias in (0.0, 1.0):
        registry.push(make(bias), "credit")
    registry.promote("credit@1", "champion")
    file = Path(registry.folder, "credit", "aliases.json")
    render = module.registry.render_aliases

    def meanwhile(change: dict[str, object]) -> Callable[..., str]:
        def call(aliases: object) -> str:
            monkeypatch.setattr(module.registry, "render_aliases", render)
            file.write_text(json.dumps(json.loads(file.read_text()) | change))
            return render(aliases)  # type: ignore[arg-type]

        return call

    monkeypatch.setattr(module.registry, "render_aliases", meanwhile({"other": {"version": 1}}))
    assert registry.promote("credit@2", "champion") == "credit@2"  # a change of another alias does not matter
    assert registry.models()[0].aliases == {"champion": 2, "other": 1}
    monkeypatch.setattr(module.registry, "render_aliases", meanwhile({"champion": {"version": 2, "previous": []}}))
    with pytest.raises(
        TorchbeamError, match=r"credit@champion was changed by another process at the same time, to version 2"
    ):
        registry.promote("credit@1", "champion")
    assert registry.models()[0].aliases == {"champion": 2, "other": 1}
