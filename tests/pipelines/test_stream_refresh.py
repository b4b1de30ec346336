"""A stream whose model is refreshed while messages arrive: nothing is lost or scored twice, and every row names its model."""

from __future__ import annotations

import json
import logging
import re
import shutil
import socket
import threading
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from deadlines import WAIT_SECONDS

from handlers.model.directory import ModelDir
from pipelines import stream

pytestmark = pytest.mark.slow(15)
FILES, ROWS = 40, 25
COUNT = FILES * ROWS
_wait = threading.Event().wait


def until(what: Callable[[], Any]) -> None:
    """Waits for something that a run does."""
    for _ in range(15_000):
        if what():
            return
        _wait(0.02)
    raise AssertionError("it did not happen within five minutes")


def write(folder: Path, slope: float, **fields: Any) -> ModelDir:
    """A model that gives a and b times the slope, copied whole into its place."""
    module = torch.nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.eye(2) * slope)
    ModelDir.save(
        module,
        folder.parents[1] / "made" / folder.name,
        name="doubles",
        inputs=[{"name": "x", "columns": ["a", "b"]}],
        arguments={"in_features": 2, "out_features": 2, "bias": False},
        **fields,
    )
    folder.parent.mkdir(exist_ok=True)
    (folder.parents[1] / "made" / folder.name).rename(folder)
    return ModelDir(folder)


class Feeder(threading.Thread):
    """Moves files of messages into the folder, and does other things between them."""

    def __init__(self, folder: Path, steps: dict[int, Callable[[], None]]) -> None:
        super().__init__()
        self._folder = folder
        self._steps = steps
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            for number in range(FILES):
                self._steps.get(number, lambda: None)()
                lines = [json.dumps({"a": number, "b": row}) for row in range(ROWS)]
                if number % 10 == 3:
                    lines[7] = "{"  # a dead letter under each model
                part = self._folder / f".{number:03}"
                part.write_text("\n".join(lines) + "\n")
                part.rename(self._folder / f"{number:03}.jsonl")
        except BaseException as error:
            self.error = error


def records(folder: Path) -> Iterator[dict[str, Any]]:
    for file in sorted(folder.glob("*.jsonl")):
        for line in file.read_text().splitlines():
            yield json.loads(line)


def rows_of(folder: Path, file: int) -> int:
    return sum(record["a"] == file for record in records(folder))


def run(tmp_path: Path, steps: dict[int, Callable[[], None]], model: str, *options: str) -> int:
    feeder = Feeder(tmp_path / "in", steps)
    feeder.start()
    code = stream.main(
        [
            f"--input=folder:{tmp_path / 'in'}",
            f"--output=folder:{tmp_path / 'out'}",
            f"--dead_letters=folder:{tmp_path / 'dead'}",
            f"--accounts=folder:{tmp_path / 'accounts'}",
            f"--model={model}",
            f"--stop_after={COUNT}",
            "--max_batch_delay=10ms",
            *options,
        ]
    )
    assert not [thread for thread in threading.enumerate() if thread.name == "torchbeam-refresh"]
    feeder.join(WAIT_SECONDS)
    assert feeder.error is None
    return code


def check_all(tmp_path: Path, slopes: dict[str, float]) -> dict[str, int]:
    """Every message comes out once, with the answer of the model that it names; gives the rows of each model."""
    found = list(records(tmp_path / "out"))
    dead = list(records(tmp_path / "dead"))
    ids = Counter(record["message_id"] for record in [*found, *dead])
    assert set(ids.values()) == {1}
    assert len(ids) == COUNT
    assert len(dead) == FILES // 10
    accounts = list(records(tmp_path / "accounts"))
    totals = {name: sum(each[name] for each in accounts) for name in ("read", "scored", "dropped", "dead")}
    assert totals == {"read": COUNT, "scored": COUNT - FILES // 10, "dropped": 0, "dead": FILES // 10}
    by_version: Counter[str] = Counter()
    for record in found:
        slope = slopes[record["model_version"]]
        assert record["output"] == pytest.approx([slope * record["a"], slope * record["b"]], abs=1e-6)
        by_version[record["model_version"]] += 1
    assert {record["error"]["model_version"] for record in dead} <= slopes.keys()
    return by_version


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("localhost", 0))
        return int(bound.getsockname()[1])


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[str], list[str]]:
    """The lines of the log in which a pattern is found."""
    caplog.set_level(logging.INFO, "torchbeam.refresh")

    def found(pattern: str) -> list[str]:
        return [record.getMessage() for record in list(caplog.records) if re.search(pattern, record.getMessage())]

    return found


def test_a_refresh_in_mid_stream(tmp_path: Path, said: Callable[[str], list[str]]) -> None:
    (tmp_path / "in").mkdir()
    first = write(tmp_path / "models/1", 2.0)
    versions = {first.version: 2.0}

    def newer() -> None:
        until(lambda: rows_of(tmp_path / "out", 0))
        versions[write(tmp_path / "models/2", 3.0).version] = 3.0

    def broken() -> None:
        until(lambda: said("the model is now version"))
        shutil.copytree(tmp_path / "models/2", tmp_path / "models/3")
        (tmp_path / "models/3/weights.safetensors").write_bytes(b"cut")

    def other_columns() -> None:
        until(lambda: said("models/3 is refused"))
        write(tmp_path / "models/4", 4.0, task="regression")

    def back() -> None:  # the withdrawn version is followed by a good one
        until(lambda: said("models/4 is refused"))
        versions[write(tmp_path / "models/5", 5.0).version] = 5.0

    def wait() -> None:
        until(lambda: len(said("the model is now version")) == 2)

    steps = {10: newer, 15: broken, 20: other_columns, 25: back, 35: wait}
    port = free_port()
    options = ("--refresh_every=20ms", f"--metrics_port={port}")
    assert run(tmp_path, steps, f"{tmp_path / 'models'}/*", *options) == 0
    by_version = check_all(tmp_path, versions)
    assert by_version.keys() == versions.keys()
    assert by_version[first.version] >= 10 * ROWS - 1
    assert len(said("models/3 is refused: .*weights were changed or damaged")) == 1
    assert len(said("models/4 is refused: its output columns are not those of the run")) == 1
    assert not said("Traceback")
    with urllib.request.urlopen(f"http://localhost:{port}/metrics") as response:
        metrics = response.read().decode()
    for outcome in ("taken", "refused"):
        assert f'torchbeam_model_refreshes_total{{outcome="{outcome}"}} 2.0' in metrics


def test_a_pointer_and_a_name_in_a_registry(tmp_path: Path, said: Callable[[str], list[str]]) -> None:
    (tmp_path / "in").mkdir()
    versions = {write(tmp_path / "registry/doubles/1", 2.0).version: 2.0}
    aliases = tmp_path / "registry/doubles/aliases.json"
    aliases.write_text('{"champion": {"version": 1}}')

    def promote() -> None:
        until(lambda: rows_of(tmp_path / "out", 0))
        versions[write(tmp_path / "registry/doubles/2", 3.0).version] = 3.0
        aliases.write_text('{"champion": {"version": 2, "previous": [1]}}')

    def wait() -> None:
        until(lambda: said("the model is now version"))

    options = (f"--registry={tmp_path / 'registry'}", "--refresh_every=20ms")
    assert run(tmp_path, {10: promote, 30: wait}, "doubles@champion", *options) == 0
    assert check_all(tmp_path, versions).keys() == versions.keys()


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("models/*", ["--refresh_every=60s"], "no directory with a model.yaml matches"),
        ("models/*", [], "no directory with a model.yaml matches"),
        ("CURRENT", ["--refresh_every=60s"], "does not exist; it must be a model directory"),
        ("credit@champion", ["--refresh_every=60s"], "for a model of a registry, name its folder with --registry"),
        ("made", ["--refresh_every=60"], "--refresh_every must be a duration with its unit"),
        ("made", ["--refresh_every=60s", "--model_version=123456789012"], "which --model_version has no meaning for"),
        ("made", ["--refresh_every=60s", "--device_map=auto"], "which --device_map has no meaning for"),
        ("made", ["--newest_by=size"], "--newest_by"),
    ],
)
def test_wrong_usage(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    model: str,
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    arguments = ["--input=folder:in", "--output=folder:out", "--dead_letters=folder:dead", f"--model={model}"]
    assert stream.main([*arguments, *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
