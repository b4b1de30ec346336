"""`torchbeam models`, and `score` with names of a registry."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from deadlines import WAIT_SECONDS

from handlers.model.directory import ModelDir
from pipelines import cli
from transforms import progress
from transforms.registry.registry import ModelRegistry

Torchbeam = Callable[..., tuple[int, str, str]]

pytestmark = pytest.mark.slow(15)

HOLD = """
import time
from pathlib import Path

def hold(row: dict):
    end = time.monotonic() + 300
    while row["wait"] and not Path(row["wait"]).exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    return row
"""


@pytest.fixture
def torchbeam(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Torchbeam:
    """Runs a command; gives its exit code, stdout and stderr."""
    monkeypatch.delenv("TORCHBEAM_REGISTRY", raising=False)

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main(list(arguments))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def save(folder: Path, bias: float) -> Path:
    net = torch.nn.Linear(1, 1)
    torch.nn.init.ones_(net.weight)
    torch.nn.init.constant_(net.bias, bias)
    ModelDir.save(
        net,
        folder,
        task="regression",
        arguments={"in_features": 1, "out_features": 1},
        inputs=[{"name": "x", "columns": ["a"]}],
    )
    return folder


@pytest.fixture
def registry(tmp_path: Path, torchbeam: Torchbeam) -> str:
    """Two versions of `credit`, which add 1 and 2; the first is the champion."""
    folder = f"--registry={tmp_path / 'models'}"
    for number in (1, 2):
        model = save(tmp_path / f"made{number}", float(number))
        assert torchbeam("models", "push", f"--model={model}", "--name=credit", folder) == (0, f"credit@{number}\n", "")
    done = torchbeam("models", "promote", "--model=credit@1", "--alias=champion", folder)
    assert done == (0, "credit@champion is credit@1\n", "")
    return folder


def test_list_and_show(registry: str, torchbeam: Torchbeam) -> None:
    code, out, _ = torchbeam("models", "list", registry)
    assert code == 0
    assert [line.split() for line in out.splitlines()] == [
        ["model", "versions", "latest", "aliases"],
        ["credit", "2", "2", "champion:", "1"],
    ]
    torchbeam("models", "promote", "--model=credit", "--alias=champion", registry)
    code, out, _ = torchbeam("models", "list", "--json", registry)
    assert json.loads(out) == [
        {"name": "credit", "versions": [1, 2], "latest": 2, "aliases": {"champion": 2}, "previous": {"champion": [1]}}
    ]
    code, out, _ = torchbeam("models", "show", "--model=credit@1", registry)
    assert code == 0
    lines = dict(line.split(maxsplit=1) for line in out.splitlines() if line)
    assert lines["registry"] == "credit@1"
    assert lines["files"] == "as they were pushed"
    assert "champion  2 (before: 1)" in out
    shown = json.loads(torchbeam("models", "show", "--json", "--model=credit@champion", registry)[1])
    assert (shown["registry"], shown["as_pushed"], shown["parameters"]) == ("credit@2", True, 2)
    assert torchbeam("models", "rollback", "--name=credit", "--alias=champion", registry)[1] == (
        "credit@champion is credit@1\n"
    )


def test_list_goes_on_after_damaged_aliases(registry: str, torchbeam: Torchbeam) -> None:
    folder = Path(registry.partition("=")[2])
    assert torchbeam("models", "push", registry, "--model=credit@1", "--name=a")[0] == 0
    (folder / "a" / "aliases.json").write_text('{"champion": 3}')
    code, out, err = torchbeam("models", "list", registry)
    assert code == 1
    (line,) = err.splitlines()
    assert line.startswith(f"torchbeam models list: error: {folder}/a/aliases.json is not a file of aliases")
    assert [row.split() for row in out.splitlines()[1:]] == [
        ["a", "1", "1", "(damaged)"],
        ["credit", "2", "2", "champion:", "1"],
    ]
    code, out, err = torchbeam("models", "list", registry, "--json")
    assert (code, [bool(model.get("error")) for model in json.loads(out)]) == (1, [True, False])
    assert torchbeam("models", "show", registry, "--model=credit@1")[0] == 0
    code, out, err = torchbeam("models", "show", registry, "--model=a@1")
    assert (code, len(err.splitlines())) == (2, 1)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["promote", "credit@1", "champion"],
            'unexpected argument "credit@1"; write --model=NAME@VERSION --alias=ALIAS',
        ),
        (["promote", "--model=credit@9", "--alias=champion"], 'has no version 9 of "credit"; it has: 1, 2'),
        (["promote", "--model=credit@1", "--alias=latest"], '--alias "latest" always stands for the newest version'),
        (["promote", "--model=a/b", "--alias=x"], "--model must be a model of the registry, as credit@3"),
        (["rollback", "--name=credit", "--alias=champion"], "credit@champion has no version before"),
        (["rollback", "--name=credit", "--alias=none"], 'has no alias "none"; it has: champion, latest'),
        (["push", "--model=nowhere", "--name=credit"], "--model nowhere does not exist"),
        (["push", "--model=credit@1", "--name=../credit"], "--name must be letters"),
        (["push", "--model=credit@1"], "--name"),
        (["list", "--bogus=1"], "unknown option --bogus; see --help"),
        (["list", "--registri=x"], "unknown option --registri; did you mean --registry?"),
        (["show", "--model=debit"], 'has no model "debit"; it has: credit'),
    ],
)
def test_wrong_usage_is_one_line(registry: str, torchbeam: Torchbeam, arguments: list[str], line: str) -> None:
    code, out, err = torchbeam("models", *arguments, registry)
    assert (code, out) == (2, "")
    (found,) = err.splitlines()
    assert found.startswith(f"torchbeam models {arguments[0]}: error: ")
    assert line in found


def test_actions_and_the_registry_must_be_named(torchbeam: Torchbeam) -> None:
    assert torchbeam("models")[0] == 2
    assert torchbeam("models", "--help")[0] == 0
    assert 'unknown action "lst"; use one of: list, show, push' in torchbeam("models", "lst")[2]
    assert "name the registry with --registry=DIR or the environment variable" in torchbeam("models", "list")[2]
    line = torchbeam("score", "--input=x", "--model=credit@champion", "--output=y")[2]
    assert 'there is no file or folder "credit@champion"' in line
    assert len(line.splitlines()) == 1


def test_commands_take_names(registry: str, torchbeam: Torchbeam, tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1.0, 2.0], "y": [2.5, 3.0]}), tmp_path / "x.parquet")
    given = (f"--input={tmp_path / 'x.parquet'}", "--model=credit@champion", registry)
    code, out, err = torchbeam("doctor", *given, f"--output={tmp_path / 'out'}")
    assert code == 0, out + err
    assert "credit@1: made1" in out
    code, out, _ = torchbeam("describe", "--json", *given[1:])
    assert json.loads(out)["registry"] == "credit@1"
    code, _, err = torchbeam("evaluate", *given, "--label=y", f"--output={tmp_path / 'metrics'}")
    assert code == 0, err
    metrics = json.loads((tmp_path / "metrics" / "metrics.json").read_text())
    assert metrics["model"]["registry"] == "credit@1"
    assert metrics["mae"] == pytest.approx(0.25)  # it adds 1


def test_a_run_keeps_the_version_that_it_began_with(registry: str, torchbeam: Torchbeam, tmp_path: Path) -> None:
    """The alias moves while rows are scored; the next run takes the other version."""
    (tmp_path / "credit_hold.py").write_text(HOLD)
    promoted = tmp_path / "promoted"
    rows = 300_000  # beyond the sample that the driver scores, and more than one chunk
    waiting = [""] * (rows - 1) + [str(promoted)]
    table = pa.table({"a": [1.0] * rows, "wait": waiting})
    pq.write_table(table, tmp_path / "x.parquet")
    folder = registry.partition("=")[2]
    given = (f"--input={tmp_path / 'x.parquet'}", "--model=credit@champion", registry, "--columns=a")

    begun = threading.Event()
    add = progress.add

    def promote() -> None:
        assert begun.wait(WAIT_SECONDS)
        ModelRegistry(folder).promote("credit@2", "champion")
        promoted.touch()

    def count(run_id: str, counts: object) -> None:
        begun.set()
        add(run_id, counts)  # type: ignore[arg-type]

    other = threading.Thread(target=promote)
    other.start()
    sys.path.insert(0, str(tmp_path))
    progress.add = count  # type: ignore[assignment]
    try:
        assert torchbeam("score", *given, "--preprocess=credit_hold:hold", f"--output={tmp_path / 'one'}")[0] == 0
    finally:
        progress.add = add
        sys.path.remove(str(tmp_path))
        begun.set()
        other.join()
    pq.write_table(table.slice(0, 10), tmp_path / "x.parquet")
    assert torchbeam("score", *given, f"--output={tmp_path / 'two'}")[0] == 0
    for output, version, answer in (("one", 1, 2.0), ("two", 2, 3.0)):
        report = json.loads((tmp_path / output / "report.json").read_text())
        assert report["model"]["registry"] == f"credit@{version}"
        assert report["model"]["version"] == ModelDir(Path(folder, "credit", str(version))).version
        found = pq.read_table(tmp_path / output / "predictions")
        assert set(found["prediction"].to_pylist()) == {answer}
