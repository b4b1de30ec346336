"""Wrong buckets, missing rights, broken connections and Ctrl-C: a clear line, or a run as if nothing had been."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import fake_stores
import pyarrow as pa
import pytest
from cloud_runs import PATHS, check, expected, one_line, run
from deadlines import WAIT_SECONDS, said
from fake_stores import BUCKET, Fault, Store

from pipelines import score

pytestmark = pytest.mark.slow(60)


@pytest.mark.parametrize("flag", ["input", "model", "output", "report"])
def test_wrong_bucket(ready: Store, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = ready.url("x", bucket="nowhere")
    assert run(ready, **PATHS | {flag: wrong}) == 2
    assert f"--{flag} {wrong} cannot be reached: " in one_line(capsys)
    assert not ready.names("out")


@pytest.mark.parametrize(
    ("methods", "part", "code", "message"),
    [
        (["GET", "HEAD"], "", 2, "--input {in} cannot be reached: "),
        (["GET"], ".parquet", 2, "none of the 2 input files can be read: "),
        (["GET"], "weights", 2, "model {models/linear} cannot be read: "),
        (["GET", "HEAD"], "out/report.json", 2, "--output {out} cannot be listed: "),
        (["POST", "PUT"], "_tmp", 2, "--output {out} cannot be written: "),
        (["POST", "PUT"], "/predictions/", 1, "/predictions cannot be written: "),
        (["POST", "PUT"], "report.json", 1, "{out} cannot be published: "),
    ],
)
def test_forbidden(
    ready: Store,
    methods: list[str],
    part: str,
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if part == "report.json" and ready.scheme == "gs":
        part = "upload"  # its name is in the body of the request
        ready.proxy.fault = _after(ready, "batch", lambda method, path: method == "POST" and "upload" in path)
    elif ready.scheme == "gs" and methods == ["POST", "PUT"]:
        # The request that begins an upload has the name in its body, and only the next one has it in its path.
        ready.proxy.forbid("PUT", part=part)
    else:
        ready.proxy.forbid(*methods, part=part)
    assert run(ready, **PATHS) == code
    line = one_line(capsys)
    assert re.sub(r"{(.*)}", lambda name: ready.url(name[1]), message) in line
    assert "403" in line or "Access Denied" in line or "does not have access" in line
    assert len(line) < 450
    assert "while running" not in line  # the name of a step says nothing to its reader
    assert not [name for name in ready.names("out") if "_tmp" in name or "report" in name]


@pytest.mark.parametrize("store", ["gs"], indirect=True)
def test_rights_on_objects_are_enough(ready: Store, model: Path, table: pa.Table) -> None:
    """Google's client also asks for the bucket itself, which takes a right that roles for objects do not have."""
    ready.proxy.fault = lambda method, path: "forbid" if path.startswith(f"/storage/v1/b/{BUCKET}?") else None
    assert run(ready, **PATHS) == 0
    check(ready, "out", expected(model, table))


def test_one_file_of_two_is_forbidden(ready: Store, model: Path, table: pa.Table) -> None:
    ready.proxy.forbid("GET", part="x.parquet")
    assert run(ready, **PATHS) == 0
    check(ready, "out", expected(model, table.slice(600)))
    failed = json.loads(ready.get("out/failed_files.jsonl"))
    assert failed["path"] == ready.url("in/x.parquet")


@pytest.mark.parametrize(
    ("part", "fault"),
    [
        ("weights.safetensors", "close"),
        ("weights.safetensors", "cut"),
        ("x.parquet", "close"),
        ("x.parquet", "cut"),
        ("prefix=in", "close"),
        ("prefix=out/", "close"),
        ("report.json", "close"),
    ],
)
def test_reading_breaks_once(ready: Store, model: Path, table: pa.Table, part: str, fault: Fault) -> None:
    hit = ready.proxy.once(fault, "GET", part)
    assert run(ready, **PATHS) == 0
    assert hit
    check(ready, "out", expected(model, table))


@pytest.mark.parametrize(
    ("store", "method", "part"),
    [
        ("s3", "POST", "part-"),  # begins an upload
        ("s3", "PUT", "_tmp-"),  # uploads a part
        ("s3", "PUT", "out/predictions/"),  # copies to the final name
        ("s3", "POST", "delete"),
        ("s3", "PUT", "report.json"),
        ("gs", "POST", "upload"),
        ("gs", "PUT", "part-"),
        ("gs", "POST", "batch"),  # copies or deletes
        ("gs", "PUT", "report.json"),
    ],
    indirect=["store"],
)
def test_writing_breaks_once(
    method: str,
    part: str,
    ready: Store,
    model: Path,
    table: pa.Table,
) -> None:
    hit = ready.proxy.once("close", method, part)
    assert run(ready, **PATHS) == 0
    assert hit
    check(ready, "out", expected(model, table))


def test_nobody_answers(store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"  # bound, but not listening
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", nobody)
        flags = [f"--{flag}={store.url(path)}" for flag, path in PATHS.items()]
        started = time.monotonic()
        assert score.main([*flags, f"--s3_endpoint_url={nobody}", "--s3_region_name=us-east-1"]) == 2
        assert time.monotonic() - started < WAIT_SECONDS  # Beam's own client of S3 gives up after ten minutes
    line = one_line(capsys)
    assert f"--input {store.url('in')} cannot be reached: " in line
    if store.url("").startswith("gs://"):  # said before credentials are looked for and requests repeated
        assert f"no connection to {nobody.removeprefix('http://')} in 3 attempts of at most 5 s (" in line


def test_no_keys(
    s3: fake_stores.S3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in os.environ:
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert run(s3, **PATHS) == 2
    assert "Unable to locate credentials" in one_line(capsys)


def test_the_extra_is_not_installed(
    s3: fake_stores.S3, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    assert run(s3, **PATHS) == 2
    assert "--input s3://bucket/in: s3:// needs boto3; pip install 'torchbeam[aws]'" in one_line(capsys)


def test_a_scheme_that_nobody_knows(capsys: pytest.CaptureFixture[str]) -> None:
    assert score.main(["--input=nope://x/y", "--model=m", "--output=out"]) == 2
    assert "--input nope://x/y: paths of nope:// are not read here; use a local path, gs:// or s3://" in one_line(
        capsys
    )


def _after(store: Store, mark: str, bad: Callable[[str, str], bool]) -> Callable[[str, str], Fault | None]:
    """Forbids what is `bad` once the predictions have been published."""

    def decide(method: str, path: str) -> Fault | None:
        published = bool(store.names("out/predictions/"))
        return "forbid" if published and bad(method, path) else None

    return decide


def test_interrupted(ready: Store, tmp_path: Path) -> None:
    """Ctrl-C while the predictions are written: nothing is published, and nothing stays."""
    waiting, go_on = threading.Event(), threading.Event()

    def hold(method: str, path: str) -> Fault | None:
        if method == "PUT" and "/predictions/" in path:
            waiting.set()
            go_on.wait(WAIT_SECONDS)
        return None

    ready.proxy.fault = hold
    flags = [f"--{flag}={ready.url(path)}" for flag, path in PATHS.items()]
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.score", *flags, *ready.options], stderr=subprocess.PIPE, text=True
    )
    assert waiting.wait(WAIT_SECONDS)
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    go_on.set()
    _, err = process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == 130, err
    assert said(err) == ["torchbeam score: interrupted; nothing was published"]
    assert not ready.names("out")
