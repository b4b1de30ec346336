"""`torchbeam doctor stream`: what would fail before a stream runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from stream_runs import save_linear, value

from pipelines.doctor import main


def lines(text: str) -> dict[str, str]:
    """The state of every check by its name."""
    return {
        line.split()[1]: line.split()[0] for line in text.splitlines() if len(line.split()) > 2 and line[0] in "okwps"
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_linear(tmp_path / "model")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "1.jsonl").write_bytes(value(0) + b"\n")
    return tmp_path


def test_nothing_is_wrong(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [
        f"--{name}=folder:{folder / at}" for name, at in (("input", "in"), ("output", "out"), ("dead_letters", "dead"))
    ]
    assert main(["stream", f"--model={folder / 'model'}", *paths]) == 0
    out = capsys.readouterr().out
    assert out.endswith("no problems, no warnings\n")
    found = lines(out)
    assert {name for name, state in found.items() if state == "skipped"} == {"accounts", "metrics"}
    assert "messages have a, b; predictions get predicted_class, confidence, model_version" in out
    # Nothing is read, and nothing committed.
    assert not list((folder / "out").glob("*.jsonl"))


def test_each_problem_has_its_line(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PUBSUB_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere/key.json")
    given = [
        "--runner=SparkRunner",
        f"--input=folder:{folder / 'lost'}",
        "--output=pubsub://my-project-1/topics/scored",
        "--dead_letters=folder:/proc/x",
        f"--model={folder / 'model'}",
        "--refresh_every=60s",
    ]
    assert main(["stream", *given]) == 2
    out = capsys.readouterr().out
    found = lines(out)
    assert {name for name, state in found.items() if state == "problem"} == {
        "runner",
        "input",
        "output",
        "dead_letters",
    }
    assert "SparkRunner cannot run a stream" in out
    assert "newer ones are looked for every 60 s" in out


def test_what_is_not_given_is_not_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stream"]) == 0
    found = lines(capsys.readouterr().out)
    assert {name for name, state in found.items() if state == "skipped"} == {
        *("model", "input", "output", "dead_letters", "accounts", "columns", "metrics")
    }
