"""What people see while rows are scored: in a terminal, in a log, in a notebook."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from deadlines import WAIT_SECONDS

import torchbeam
from handlers.model.directory import ModelDir
from transforms import progress_bar
from transforms.accounting import Counts
from transforms.progress_bar import ProgressBar, is_interactive

DONE = Counts(rows_scored=1500, rows_dead=20)


class State:
    """The progress of a run, and how often it was asked for."""

    def __init__(self, counts: Counts | None = DONE, state: str = "") -> None:
        self.answer = counts, state
        self.asked = threading.Semaphore(0)

    def __call__(self) -> tuple[Counts | None, str]:
        self.asked.release()
        return self.answer


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (State(), ["scoring: 1,520 rows", "rows/s, 20 dead letters (50%)"]),
        (State(DONE, "the job waits"), ["20 dead letters (the job waits) (50%)"]),
        (State(None), ["scoring: running (0%)"]),
    ],
)
def test_lines_in_a_log(
    state: State, expected: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress_bar, "LOG_SECONDS", 0.0)
    assert not is_interactive()
    with ProgressBar(state, 3040):
        for _ in range(3):
            assert state.asked.acquire(timeout=WAIT_SECONDS)
    first = capsys.readouterr().err.splitlines()[0]
    for part in expected:
        assert part in first


def test_a_bar_in_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in (("TTY_COMPATIBLE", "1"), ("COLUMNS", "150"), ("TERM", "xterm")):
        monkeypatch.setenv(name, value)
    state = State()
    assert is_interactive()
    with ProgressBar(state, 3040):
        for _ in range(2):
            assert state.asked.acquire(timeout=WAIT_SECONDS)
    shown = capsys.readouterr().err
    assert "1,520 rows" in shown
    assert "20 dead letters" in shown

    with ProgressBar(state, 3040, delay=3600):
        pass
    assert capsys.readouterr().err == ""


_CELL = """
import threading
import IPython.display
import pyarrow as pa
import torchbeam
from transforms.local import scoring

updated, real = threading.Semaphore(0), IPython.display.DisplayHandle.update
def update(self, *args, **kwargs):
    real(self, *args, **kwargs)
    updated.release()
IPython.display.DisplayHandle.update = update
scoring.PROGRESS_SECONDS = 0.0

batch = pa.record_batch({"x": [1.0, 2.0]})
def batches():
    yield batch
    assert updated.acquire(timeout=300)  # until the bar has moved once
    yield batch

found = torchbeam.score(MODEL, pa.RecordBatchReader.from_batches(batch.schema, batches()), device="cpu")
print(found.predictions["prediction"].to_pylist())
"""


@pytest.mark.slow(15)
def test_a_bar_in_a_notebook(tmp_path: Path) -> None:
    """A real kernel, without ipywidgets: the bar is an output of the cell, changes, and is empty at the end."""
    import torch
    from jupyter_client.manager import start_new_kernel

    layer = torch.nn.Linear(1, 1)
    torch.nn.init.constant_(layer.weight, 2.0)
    torch.nn.init.zeros_(layer.bias)
    arguments = {"in_features": 1, "out_features": 1}
    inputs = [{"name": "x", "columns": ["x"]}]
    model = ModelDir.save(layer, tmp_path / "m", task="regression", arguments=arguments, inputs=inputs)
    manager, client = start_new_kernel(startup_timeout=WAIT_SECONDS, cwd=str(Path(torchbeam.__file__).parents[1]))
    try:
        outputs: list[dict[str, Any]] = []
        reply = client.execute_interactive(
            _CELL.replace("MODEL", repr(model.path)), timeout=WAIT_SECONDS, output_hook=outputs.append
        )
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert reply["content"]["status"] == "ok", reply["content"]
    kinds = [each["msg_type"] for each in outputs]
    printed = "".join(each["content"]["text"] for each in outputs if each["msg_type"] == "stream")
    assert printed.splitlines()[-1] == "[2.0, 4.0, 2.0, 4.0]"
    shown = [each["content"] for each in outputs if each["msg_type"].endswith("display_data")]
    assert kinds.count("display_data") == 1
    assert kinds.count("update_display_data") >= 2
    assert len({each["transient"]["display_id"] for each in shown}) == 1
    assert "scoring" in shown[0]["data"]["text/html"]
    assert shown[-1]["data"]["text/html"] == ""
