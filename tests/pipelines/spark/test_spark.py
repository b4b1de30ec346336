"""The same answers on Spark as in process, and what is left when something there dies: nothing twice, nothing half."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deadlines import said
from poisoned_table import POISONED, Table, save_model
from spark_cluster import Cluster, Run, processes, wait_for

from pipelines import score

pytestmark = pytest.mark.slow(200)

Start = Callable[..., Run]
COUNTED = ("rows_read", "rows_scored", "rows_dropped", "rows_dead", "files_read", "files_dead", "dead_by_error")


@dataclass(frozen=True)
class Scored:
    """What a run gave, in an order of its own."""

    predictions: pa.Table
    dead_letters: pa.Table
    report: dict[str, object]

    @staticmethod
    def read(output: Path) -> Scored:
        left = [path.name for path in output.iterdir() if path.name.startswith("_")]
        assert left == []
        dead = pq.read_table(output / "dead_letters").sort_by("id")
        report = json.loads((output / "report.json").read_text())
        return Scored(pq.read_table(output / "predictions").sort_by("id"), dead, report)

    def check(self, expected: Scored) -> None:
        assert {name: self.report[name] for name in COUNTED} == {name: expected.report[name] for name in COUNTED}
        assert self.predictions.schema.equals(expected.predictions.schema)
        exact = [name for name in expected.predictions.column_names if name != "confidence"]
        assert self.predictions.select(exact).equals(expected.predictions.select(exact))
        np.testing.assert_allclose(
            self.predictions["confidence"], expected.predictions["confidence"], atol=1e-6, rtol=0
        )
        assert self.dead_letters.equals(expected.dead_letters)


def in_process(table: Table, model: Path, output: Path) -> Scored:
    assert score.main([f"--input={table.folder}", f"--model={model}", f"--output={output}"]) == 0
    return Scored.read(output)


@pytest.fixture(scope="module")
def expected(poisoned: Table, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Scored:
    return in_process(poisoned, model, tmp_path_factory.mktemp("expected") / "out")


def test_local(
    run: Start,
    job_server: Path,
    poisoned: Table,
    model: Path,
    expected: Scored,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    master = "--spark_master_url=local[2]"
    code, out, err = run(master, input=poisoned.folder, model=model, output=tmp_path / "out").finish()
    assert code == 0, err
    assert said(err) == []
    assert ["rows", "dead", str(POISONED)] in [line.split() for line in out.splitlines()]
    Scored.read(tmp_path / "out").check(expected)
    assert not processes(str(job_server), environment=str(tmp_path))
    assert not list((tmp_path / "temporary").iterdir())


def test_cluster(run: Start, cluster: Cluster, poisoned: Table, model: Path, expected: Scored, tmp_path: Path) -> None:
    code, _, err = run(*cluster.arguments, input=poisoned.folder, model=model, output=tmp_path / "out").finish()
    assert code == 0, err
    Scored.read(tmp_path / "out").check(expected)


@pytest.fixture(scope="module")
def slow_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slow") / "model"
    save_model(folder, architecture="poison_rows:Slow")
    return folder


@pytest.fixture(scope="module")
def slow_expected(poisoned: Table, slow_model: Path, tmp_path_factory: pytest.TempPathFactory, alive: Path) -> Scored:
    return in_process(poisoned, slow_model, tmp_path_factory.mktemp("expected") / "out")


@pytest.fixture(scope="module")
def alive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the slow model leaves a byte for every call, in this process, too."""
    file = tmp_path_factory.mktemp("alive") / "signs"
    os.environ["SLOW_MODEL_SIGNS_OF_LIFE"] = str(file)
    return file


@pytest.fixture
def started(run: Start, poisoned: Table, slow_model: Path, alive: Path, tmp_path: Path) -> Callable[..., Run]:
    """A run on a cluster with the slow model, in its middle."""

    def start(cluster: Cluster) -> Run:
        alive.write_bytes(b"")
        config = json.dumps({"env": {"SLOW_MODEL_SIGNS_OF_LIFE": str(alive)}})
        begun = run(
            *cluster.arguments,
            input=poisoned.folder,
            model=slow_model,
            output=tmp_path / "out",
            batch_size=200,
            environment_config=config,
            environment_type="PROCESS",
        )
        # The driver scores a sample by itself; only the workers pass this.
        wait_for(lambda: begun.process.poll() is not None or any(each.python_workers() for each in cluster.workers), "")
        alive.write_bytes(b"")
        wait_for(lambda: begun.process.poll() is not None or alive.stat().st_size > 100, "the middle of the run")
        assert begun.process.poll() is None, begun.finish()
        return begun

    return start


def busy(cluster: Cluster) -> int:
    """The worker that has a Python worker by now."""
    return next(index for index, worker in enumerate(cluster.workers) if worker.python_workers())


@pytest.mark.parametrize("victim", ["python worker", "executor", "spark worker"])
def test_killed_in_the_middle(
    victim: str, started: Start, cluster: Cluster, slow_expected: Scored, tmp_path: Path
) -> None:
    begun = started(cluster)
    worker = cluster.workers[busy(cluster)]
    if victim == "python worker":
        for pid in worker.python_workers():
            os.kill(pid, signal.SIGKILL)
    elif victim == "executor":
        (executor,) = worker.executors()
        os.kill(executor, signal.SIGKILL)
    else:
        worker.end()
    code, _, err = begun.finish()
    assert code == 0, err
    Scored.read(tmp_path / "out").check(slow_expected)


def test_driver_killed(
    started: Start, cluster: Cluster, job_server: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    begun = started(cluster)
    assert processes(str(job_server), environment=str(tmp_path))
    begun.process.send_signal(signal.SIGKILL)
    begun.process.wait()
    wait_for(lambda: not processes(str(job_server), environment=str(tmp_path)), "the end of the job server")
    wait_for(lambda: not list((tmp_path / "temporary").iterdir()), "the end of its files")
    wait_for(lambda: not any(each.executors() or each.python_workers() for each in cluster.workers), "executors")
    there = list((tmp_path / "out").iterdir()) if (tmp_path / "out").exists() else []  # killed before the first file
    assert not [
        path for path in there if not path.name.startswith(("_tmp-", "_claim.json"))
    ]  # the next run removes both


def test_interrupted(
    started: Start, cluster: Cluster, job_server: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By SIGTERM; that a command takes all signals alike is tested in test_process and test_interrupt."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    begun = started(cluster)
    assert processes(str(job_server), environment=str(tmp_path))
    begun.process.send_signal(signal.SIGTERM)
    code, out, err = begun.finish()
    assert code == 130, err
    assert err.splitlines()[-1] == "torchbeam score: interrupted; nothing was published"
    assert out == ""
    wait_for(lambda: not any(each.executors() or each.python_workers() for each in cluster.workers), "executors")
    assert not processes(str(job_server), environment=str(tmp_path))
    assert list((tmp_path / "out").rglob("*")) == []
    assert not (tmp_path / "out").exists()


def test_worker_that_dies_at_its_start(
    run: Start, job_server: Path, poisoned: Table, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plug.py").write_text("import os, sys; print('no current', file=sys.stderr, flush=True); os._exit(3)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    options = {"spark_master_url": "local[2]", "environment_type": "PROCESS", "beam_plugins": "plug"}
    code, _, err = run(input=poisoned.folder, model=model, output=tmp_path / "out", **options).finish()
    assert code == 1
    line = err.splitlines()[-1]
    assert line.startswith("torchbeam score: error: the run failed: WorkerError: the worker on ")
    assert line.endswith("ended with exit code 3 at its start: no current")
    assert not (tmp_path / "out" / "report.json").exists()
