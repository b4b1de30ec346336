"""A stream that is ended from outside, in all ways, and started again: nothing is lost, and what comes twice has one id."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from deadlines import WAIT_SECONDS
from stream_folders import COLUMNS, Folders, put, rows, save_model

pytestmark = pytest.mark.slow(40)


def _start(folders: Folders, model: str, *others: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.stream", *folders.arguments(model, "--max_batch_rows=50", *others)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _wait(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.05)


def _child(process: subprocess.Popen[str]) -> int:
    return int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])


@pytest.mark.timeout(1800)  # four starts took eight minutes on a machine with a load of 14
def test_kill_and_restart(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model")
    folders = Folders(tmp_path)
    given = rows(4000)
    bad = {index: b"bad %d" % index for index in range(7, 4000, 97)}
    lines = [bad.get(index, row) for index, row in enumerate(given)]
    for start in range(0, 2000, 500):
        put(folders.input, f"{start:05}.jsonl", lines[start : start + 500])

    def files() -> int:
        return len(list((tmp_path / "out").glob("*.jsonl")))

    process = _start(folders, model.path)
    _wait(process, lambda: files() >= 3)
    os.kill(_child(process), signal.SIGKILL)
    err = process.communicate(timeout=WAIT_SECONDS)[1]
    assert process.returncode == 1
    assert "killed by SIGKILL" in err.splitlines()[-1]

    before = files()
    for start in range(2000, 4000, 500):
        put(folders.input, f"{start:05}.jsonl", lines[start : start + 500])
    process = _start(folders, model.path)
    _wait(process, lambda: files() > before + 3)
    process.kill()  # its child dies with it
    process.communicate(timeout=WAIT_SECONDS)
    _wait_for_the_lock(folders)

    process = _start(folders, model.path)
    _wait(process, lambda: len({row["message_id"] for row in folders.records("out")}) == 4000 - len(bad))
    _wait(process, lambda: len({row["message_id"] for row in folders.records("dead")}) == len(bad))
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == 130, err
    assert err.splitlines()[-1] == "torchbeam stream: interrupted; what was delivered is committed"
    assert " messages read, " in out

    predictions = {row["message_id"]: row for row in folders.records("out")}
    x = torch.tensor([[row[name] for name in COLUMNS] for row in given], dtype=torch.float32)
    wanted = model.load().module(x).softmax(1).max(1).values
    by_row = {tuple(row[name] for name in COLUMNS): row["confidence"] for row in predictions.values()}
    assert len(by_row) == 4000 - len(bad)
    for index, row in enumerate(given):
        if index not in bad:
            found = by_row[tuple(row[name] for name in COLUMNS)]
            assert found == pytest.approx(float(wanted[index]), abs=1e-6)
    dead = {row["message_id"]: row for row in folders.records("dead")}
    assert sorted(row["value"] for row in dead.values()) == sorted(value.decode() for value in bad.values())
    assert not dead.keys() & predictions.keys()
    # The newest record of each chunk counts: the rest of a chunk that was delivered twice is in the records after it.
    last = {each["from_offset"]: each for each in folders.records("accounts")}
    assert sum(each["read"] for each in last.values()) == 4000
    assert sum(each["dead"] for each in last.values()) == len(bad)

    process = _start(folders, model.path)  # a further start has nothing to do, and ends when it is told to
    position_file = tmp_path / "in" / ".torchbeam" / "torchbeam" / "position"
    position = position_file.read_text()
    put(folders.input, "z.jsonl", rows(1, seed=9))
    _wait(process, lambda: position_file.read_text() != position)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == 130, err
    assert out.startswith("1 messages read, 1 scored, 0 dropped, 0 dead letters")


def _wait_for_the_lock(folders: Folders) -> None:
    """Waits until the process that died has let go of the folder."""
    import fcntl

    end = time.monotonic() + WAIT_SECONDS
    with (folders.input / ".torchbeam" / "torchbeam" / "lock").open() as file:
        while time.monotonic() < end:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError:
                time.sleep(0.01)
    raise AssertionError("the folder is still locked")
