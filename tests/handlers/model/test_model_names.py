"""Names of a registry, resolved: versions, aliases, paths that win, and what is said where there is none."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
from small_models import Save

from handlers.errors import UsageError
from handlers.model.directory import ModelDir
from handlers.model.registry import ENVIRONMENT, Alias, all_versions, parse_aliases, render_aliases, resolve


@pytest.fixture
def registry(tmp_path: Path, save: Save, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Versions 1, 2 and 10 of `credit`, an unfinished 11, and what is no version. Made by hand."""
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    root = tmp_path / "registry [1]"
    for version in ("1", "2", "10", "011", "old", ".push-x"):
        shutil.copytree(save(name=f"v{version}").path, root / "credit" / version)
    (root / "credit" / "11").mkdir()
    (root / "credit" / "11" / "weights.safetensors").write_bytes(b"unfinished")
    aliases = {"champion": {"version": 2, "previous": [1]}, "gone": {"version": 7}}
    (root / "credit" / "aliases.json").write_text(json.dumps(aliases))
    return root


@pytest.mark.parametrize(
    ("text", "version"), [("credit@1", 1), ("credit@10", 10), ("credit@latest", 10), ("credit@champion", 2)]
)
def test_a_name_stands_for_a_version(registry: Path, text: str, version: int) -> None:
    model = ModelDir(text, registry=registry)
    assert model.path == f"{registry}/credit/{version}"
    assert (model.registered, model.spec.name) == (f"credit@{version}", f"v{version}")
    assert all_versions(str(registry)) == {"credit": [1, 2, 10]}


def test_the_environment_names_the_registry(registry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, f"{registry}/")
    assert ModelDir("credit@champion").registered == "credit@2"
    assert ModelDir(registry / "credit" / "1").registered == "credit@1"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("credit@3", 'has no version 3 of "credit"; it has: 1, 2, 10'),
        ("credit@11", 'has no version 11 of "credit"'),
        ("credit@best", 'has no alias "best"; it has: champion, gone, latest'),
        ("credit@gone", "credit@gone is version 7, which is no longer in registry"),
        ("debit@1", 'has no model "debit"; it has: credit'),
        ("credit", "--model credit does not exist"),
        ("credit@../1", "does not exist"),
        ("credit/../credit@1", "does not exist"),
    ],
)
def test_what_is_not_there_is_one_line(registry: Path, text: str, line: str) -> None:
    with pytest.raises(UsageError) as error:
        ModelDir(text, registry=registry)
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_a_name_without_a_registry(registry: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"name its folder with --registry=DIR or the environment variable TORCHBEAM_"):
        resolve("credit@champion")
    with pytest.raises(UsageError, match="is not a folder"):
        resolve("credit@champion", tmp_path / "none")


def test_a_path_on_disk_wins(registry: Path, tmp_path: Path, save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(save(name="on_disk").path, tmp_path / "credit@champion")
    model = ModelDir("credit@champion", registry=registry)
    assert (model.spec.name, model.registered) == ("on_disk", "")


def test_workers_do_not_ask_the_registry_again(registry: Path) -> None:
    """What a run began with stays, whatever the alias becomes."""
    model = ModelDir("credit@champion", registry=registry)
    sent = pickle.dumps(model)
    (registry / "credit" / "aliases.json").write_text(render_aliases({"champion": Alias(10)}))
    assert pickle.loads(sent).local() == registry / "credit" / "2"
    assert ModelDir("credit@champion", registry=registry).registered == "credit@10"


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{",
        "[" * 100_000,
        '{"a": 3}',
        '{"a": {}}',
        '{"a": {"version": "x"}}',
        '{"a": {"version": 1e400}}',
        '{"a": {"version": 1, "previous": 3}}',
    ],
)
def test_a_broken_file_of_aliases_is_one_line(registry: Path, text: str) -> None:
    (registry / "credit" / "aliases.json").write_text(text)
    with pytest.raises(UsageError, match=r"aliases.json is not .*; restore it"):
        resolve("credit@champion", registry)
    assert resolve("credit@latest", registry).registered == "credit@10"


def test_huge_files_are_not_read(registry: Path) -> None:
    (registry / "credit" / "aliases.json").write_text(" " * (1 << 20) + "{}")
    with pytest.raises(UsageError, match="larger than"):
        resolve("credit@champion", registry)


def test_aliases_are_read_as_written() -> None:
    aliases = {"b": Alias(3, (2, 1)), "a": Alias(1)}
    assert parse_aliases(render_aliases(aliases), "") == aliases


@pytest.mark.parametrize("text", ["models:/", "models:/x", "models:/x/0", "models:/x@", "models:/a/b/c"])
def test_malformed_names_of_mlflow(text: str) -> None:
    with pytest.raises(UsageError, match="write models:/NAME/VERSION"):
        resolve(text)
