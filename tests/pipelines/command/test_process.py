"""Commands as processes: streams that are gone, and what ends them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deadlines import WAIT_SECONDS, said
from poisoned_table import Table, save_model

from pipelines import score

pytestmark = pytest.mark.slow(30)


@pytest.mark.parametrize("stdout", ["closed", "full"])
def test_a_summary_that_nobody_reads(poisoned: Table, model: Path, tmp_path: Path, stdout: str) -> None:
    pq.write_table(poisoned.table.slice(0, 100), tmp_path / "in.parquet")
    flags = f"--input={tmp_path / 'in.parquet'} --model={model} --output={tmp_path / 'out'}"
    to = {"closed": "| true", "full": ">/dev/full"}[stdout]
    command = f"set -o pipefail; {sys.executable} -m pipelines.score {flags} {to}"
    found = subprocess.run(["bash", "-c", command], stderr=subprocess.PIPE, text=True, check=False)
    assert (found.returncode, said(found.stderr)) == (0, [])
    assert json.loads((tmp_path / "out" / "report.json").read_text())["rows_read"] == 100


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        ("os._exit(0)", "exit code 0; "),
        ("os.abort()", "ended by SIGABRT; the model or a native library has crashed; set PYTHONFAULTHANDLER=1"),
        ("os.kill(os.getpid(), 9)", "killed by SIGKILL, as the system does where memory runs out; "),
    ],
)
def test_a_model_that_ends_its_process(tmp_path: Path, poisoned: Table, end: str, expected: str) -> None:
    save_model(tmp_path / "model", architecture="poison_rows:Ends", preprocess=[], postprocess=[])
    pq.write_table(poisoned.table.slice(0, 100), tmp_path / "in.parquet")
    flags = [
        f"--{flag}={tmp_path / path}" for flag, path in (("input", "in.parquet"), ("model", "model"), ("output", "out"))
    ]
    found = subprocess.run(
        [sys.executable, "-m", "pipelines.score", *flags],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"ENDING_MODEL": end},
    )
    assert found.returncode == 1, found.stderr
    (line,) = said(found.stderr)
    assert line.startswith("torchbeam score: error: the process ended without finishing the run: " + expected)
    assert found.stdout == ""
    assert not (tmp_path / "out" / "report.json").exists()


def test_a_doctor_whom_nobody_hears() -> None:
    command = f"{sys.executable} -m pipelines.doctor >/dev/full"
    found = subprocess.run(["bash", "-c", command], stderr=subprocess.PIPE, text=True, check=False)
    assert found.returncode == 1
    assert (
        found.stderr
        == "torchbeam doctor: error: the output of this command cannot be written: No space left on device\n"
    )


def test_a_model_that_ends_the_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(tmp_path / "model", preprocess=[], postprocess=[])
    code = tmp_path / "model" / "code"
    code.mkdir(exist_ok=True)
    (code / "ends_it_all.py").write_text("import sys\n\n\ndef f(row: dict) -> dict:\n    sys.exit(0)\n")
    pq.write_table(pa.table({f"f_{n}": [1.0] for n in range(8)} | {"amount": [1.0]}), tmp_path / "in.parquet")
    flags = [f"--input={tmp_path / 'in.parquet'}", f"--model={tmp_path / 'model'}", f"--output={tmp_path / 'out'}"]
    assert score.main([*flags, "--preprocess=ends_it_all:f"]) != 0
    assert len(capsys.readouterr().err.splitlines()) == 1


def started(program: str, **options: object) -> subprocess.Popen[str]:
    """A command whose body is `program`, with its own id and its parent's on the first line of its stdout."""
    lines = [
        "import os, signal, sys, time",
        "from pipelines.command import process",
        "def main():",
        "    print(os.getpid(), os.getppid(), flush=True)",
        *(f"    {line}" for line in program.splitlines()),
        "process.run(main, 'prog')",
    ]
    return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
        [sys.executable, "-c", "\n".join(lines)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


# Waits to be interrupted, counts for a while how often, and ends with that as its exit code.
COUNTS = """times = 0
end = time.monotonic() + 300
while time.monotonic() < end:
    try:
        print("ready", flush=True)
        time.sleep(0.05)
    except KeyboardInterrupt:
        times += 1
        end = time.monotonic() + 0.3
return times"""


class TestSignals:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    @pytest.mark.parametrize("send", [os.kill, os.killpg], ids=["the process", "its group, as a terminal does"])
    def test_interrupts_the_command_once(self, send: Callable[[int, int], None], number: signal.Signals) -> None:
        # Tests may run where a signal is ignored, as under nohup, which the command would inherit and respect.
        process = started(COUNTS, start_new_session=True, preexec_fn=lambda: signal.signal(number, signal.SIG_DFL))
        assert process.stdout is not None
        assert "ready" in process.stdout.readline() + process.stdout.readline()
        send(process.pid, number)
        _, err = process.communicate(timeout=WAIT_SECONDS)
        assert (process.returncode, err) == (1, "")

    def test_nohup(self) -> None:
        process = started(
            "os.kill(os.getppid(), signal.SIGHUP); os.kill(os.getpid(), signal.SIGHUP); return 7",
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
        )
        assert process.communicate(timeout=WAIT_SECONDS)[1] == ""
        assert process.returncode == 7

    def test_a_command_that_does_not_catch_them(self) -> None:
        process = started("time.sleep(60)")
        assert process.stdout is not None
        process.stdout.readline()
        process.terminate()
        assert process.communicate(timeout=WAIT_SECONDS)[1] == ""
        assert process.returncode == 130

    def test_a_killed_process_leaves_nothing(self) -> None:
        process = started("sum(range(10**12))")  # one call of native code, in which no other thread gets a turn
        assert process.stdout is not None
        child, parent = map(int, process.stdout.readline().split())
        assert parent == process.pid
        process.kill()
        process.wait()
        assert process.stdout.read() == ""  # its end: nobody has it open any more
        end = time.monotonic() + WAIT_SECONDS
        while Path(f"/proc/{child}").exists() and " Z " not in Path(f"/proc/{child}/stat").read_text():
            assert time.monotonic() < end


class TestStreams:
    def test_exit_codes_and_both_streams(self) -> None:
        process = started("print('out'); print('err', file=sys.stderr); return 3")
        out, err = process.communicate(timeout=WAIT_SECONDS)
        assert out.splitlines()[1:] == ["out"]
        assert (process.returncode, err) == (3, "err\n")

    def test_standard_input_and_the_terminal_are_the_commands(self) -> None:
        terminal, other = os.openpty()
        process = started("print(input(), sys.stderr.isatty(), os.getpgrp() == os.getpgid(os.getppid()))", stdin=other)
        os.write(terminal, b"read\n")
        out, _ = process.communicate(timeout=WAIT_SECONDS)
        os.close(terminal)
        os.close(other)
        assert out.splitlines()[1:] == ["read False True"]

    @pytest.mark.parametrize(
        ("end", "said"), [("os._exit(3)", "exit code 3"), ("os.kill(os.getpid(), 11)", "ended by SIGSEGV")]
    )
    def test_a_command_that_does_not_come_to_its_end(self, end: str, said: str) -> None:
        process = started(end)
        err = process.communicate(timeout=WAIT_SECONDS)[1]
        assert process.returncode == 1
        (line,) = err.splitlines()
        assert line.startswith(f"prog: error: the process ended without finishing the run: {said}; ")

    def test_system_exit(self) -> None:
        process = started("sys.exit(5)")
        assert process.communicate(timeout=WAIT_SECONDS)[1] == ""
        assert process.returncode == 5
