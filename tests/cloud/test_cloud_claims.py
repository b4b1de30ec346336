"""Claims in a bucket: two that write at once, runs that meet, and what a run that was killed has left."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Barrier

import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from cloud_runs import PATHS, check, expected, one_line, run
from fake_stores import Fault, Store

from handlers.model import stores
from pipelines import score
from pipelines.jobs.options import ScoreOptions
from pipelines.jobs.outputs import claimed_output
from transforms.conditional_files import ChangedError, conditional_file
from transforms.file_ops import written_below
from transforms.processes import Process
from transforms.sinks.claims import LIFETIME, Claim, OutputClaim
from transforms.sinks.temporary import ABANDONED, remove_abandoned

ELSEWHERE = Process(17, "1", "another host")
OTHER = "aaaaaaaaaaaa"


@pytest.fixture
def bucket(store: Store) -> Store:
    """A bucket that Beam knows how to reach."""
    stores.connect({"output": store.url("out")}, PipelineOptions(list(store.options)))
    return store


def test_a_file_is_written_only_as_it_was_seen(bucket: Store) -> None:
    file = conditional_file(bucket.url("out/_file.json"))
    assert file.read() is None
    file.write("one", None)
    first = file.read()
    assert first is not None
    assert first.text == "one"
    with pytest.raises(ChangedError):
        file.write("two", None)
    file.write("two", first)
    with pytest.raises(ChangedError):
        file.write("three", first)
    with pytest.raises(ChangedError):
        file.remove(first)
    assert bucket.get("out/_file.json") == b"two"
    second = file.read()
    assert second is not None
    file.remove(second)
    assert bucket.names() == []
    with pytest.raises(ChangedError):
        file.write("three", second)
    with pytest.raises(ChangedError):
        file.remove(second)
    assert bucket.names() == []
    assert file.atomic


@pytest.mark.parametrize("there", [False, True])
def test_one_of_many_writers_wins(bucket: Store, there: bool) -> None:
    path = bucket.url("out/_file.json")
    if there:
        conditional_file(path).write("old", None)
    seen = conditional_file(path).read()
    barrier = Barrier(4)

    def write(number: int) -> int | None:
        file = conditional_file(path)
        barrier.wait()
        with suppress(ChangedError):
            file.write(str(number), seen)
            return number
        return None

    with ThreadPoolExecutor(4) as threads:
        (won,) = [number for number in threads.map(write, range(4)) if number is not None]
    assert bucket.get("out/_file.json") == str(won).encode()


def test_an_answer_that_is_lost_is_no_other_writer(bucket: Store) -> None:
    """The request is repeated, and finds what the first one has written."""
    method = "PUT" if bucket.scheme == "s3" else "POST"
    hit = bucket.proxy.once("cut", method, "_file.json" if bucket.scheme == "s3" else "/upload/")
    file = conditional_file(bucket.url("out/_file.json"))
    file.write("one", None)
    assert hit
    assert bucket.get("out/_file.json") == b"one"


def claim_for_another(store: Store, age: float = 0.0) -> None:
    """Claims the output for a run on another host, `age` seconds ago."""
    OutputClaim(store.url("out"), OTHER, "SparkRunner", ELSEWHERE, lambda: time.time() - age).take()


@pytest.mark.slow
class TestRuns:
    @pytest.fixture
    def claimed(self, ready: Store) -> Store:
        stores.connect({"output": ready.url("out")}, PipelineOptions(list(ready.options)))
        return ready

    def test_an_output_that_another_run_writes(self, claimed: Store, capsys: pytest.CaptureFixture[str]) -> None:
        claim_for_another(claimed)
        before = {name: claimed.get(name) for name in claimed.names("out")}
        claimed.proxy.seen.clear()
        assert run(claimed, "--overwrite", **PATHS) == 2
        line = one_line(capsys)
        assert f"--output {claimed.url('out')} is being written by run {OTHER} (process 17 on " in line
        assert f"remove {claimed.url('out/_claim.json')}, or wait until " in line
        assert {name: claimed.get(name) for name in claimed.names("out")} == before
        assert not [seen for seen in claimed.proxy.seen if "/in/" in seen.path], "it has read rows"

    def test_what_a_run_that_was_killed_has_left(
        self, claimed: Store, model: Path, table: pa.Table, capsys: pytest.CaptureFixture[str]
    ) -> None:
        claim_for_another(claimed, age=LIFETIME + 60)
        claimed.put(f"out/_tmp-{OTHER}/predictions/part-1.parquet", b"rows")
        claimed.put("out/_tmp-bbbbbbbbbbbb/predictions/part-1.parquet", b"of a job without a claim")
        assert run(claimed, **PATHS) == 0
        assert capsys.readouterr().err.splitlines()[0] == (
            f"torchbeam score: removed _tmp-{OTHER} in {claimed.url('out')}, which a run that was killed had left"
        )
        assert [name for name in claimed.names("out") if "/_" in name] == [
            "out/_tmp-bbbbbbbbbbbb/predictions/part-1.parquet"
        ]
        stores.connect({"output": claimed.url("out")}, PipelineOptions(list(claimed.options)))
        (written,) = last_writes(claimed)
        assert remove_abandoned(claimed.url("out"), "c" * 12, None, written + ABANDONED - 60) == []
        assert remove_abandoned(claimed.url("out"), "c" * 12, None, written + ABANDONED + 60) == ["_tmp-bbbbbbbbbbbb"]
        check(claimed, "out", expected(model, table))
        assert not [name for name in claimed.names("out") if "/_" in name]

    def test_a_run_whose_claim_is_taken_publishes_nothing(
        self, claimed: Store, capsys: pytest.CaptureFixture[str]
    ) -> None:
        taken = []

        def take(method: str, path: str) -> Fault | None:
            if not taken and "/dead_letters/" in path and method == "PUT":
                taken.append(path)
                mine = Claim.from_json(claimed.get("out/_claim.json").decode())
                claimed.put("out/_claim.json", replace(mine, run_id=OTHER, process=ELSEWHERE).to_json().encode())
            return None

        claimed.proxy.fault = take
        assert run(claimed, **PATHS) == 1
        assert taken
        assert "nothing is published: --output" in (line := one_line(capsys))
        assert f"is being written by run {OTHER} " in line
        assert claimed.names("out") == ["out/_claim.json"]
        assert json.loads(claimed.get("out/_claim.json"))["run_id"] == OTHER


def last_writes(store: Store) -> list[float]:
    return [written for written in written_below(store.url("out"), "_tmp-").values() if written is not None]


@pytest.mark.parametrize("store", ["s3"], indirect=True)
class TestWithoutConditionalWrites:
    def test_a_file_is_compared_and_written(self, bucket: Store) -> None:
        path = bucket.url("out/_file.json")
        hit = bucket.proxy.once("lack", "PUT", "_file.json")
        file = conditional_file(path)
        file.write("one", None)
        assert hit
        assert not file.atomic
        assert bucket.get("out/_file.json") == b"one"
        with pytest.raises(ChangedError):
            file.write("two", None)
        seen = file.read()
        assert seen is not None
        file.write("two", seen)
        assert bucket.get("out/_file.json") == b"two"

    def test_a_run_says_so(
        self, ready: Store, model: Path, table: pa.Table, capsys: pytest.CaptureFixture[str]
    ) -> None:
        hit = ready.proxy.once("lack", "PUT", "_claim.json")
        assert run(ready, **PATHS) == 0
        assert hit
        first = capsys.readouterr().err.splitlines()[0]
        assert first.startswith(
            f"torchbeam score: warning: the file system of --output {ready.url('out')} has no condit"
        )
        check(ready, "out", expected(model, table))


def test_a_driver_that_may_not_write(ready: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """In process it is an error; the workers of a cluster may have rights that the driver lacks."""
    stores.connect({"output": ready.url("out")}, PipelineOptions(list(ready.options)))
    ready.proxy.forbid("GET", part="_claim.json")
    assert run(ready, **PATHS) == 2
    assert f"--output {ready.url('out')} cannot be claimed: " in one_line(capsys)
    arguments = [f"--{flag}={ready.url(path)}" for flag, path in PATHS.items()]
    options = ScoreOptions.parse(["--runner=SparkRunner", *arguments, *ready.options], score.COMMAND)
    told: list[str] = []
    with claimed_output(options, told.append) as output:
        output.claim.hand_over()
        assert ready.names("out") == []
    (line,) = told
    assert line.startswith(
        f"warning: --output {ready.url('out')} cannot be claimed from here, so another run into it is "
    )
    assert "403" in line or "Access Denied" in line
