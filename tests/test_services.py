"""`tests/services.sh` where nothing can be had: one line for each kind of tests that will be skipped, and no failure."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parent / "services.sh"
TOOLS = ("bash", "cmp", "dirname", "env", "id", "paste", "sed", "timeout")


def run(home: Path, *tools: str) -> list[str]:
    """What the script says with `tools` beside the bare necessities, none of which is apt-get."""
    programs = home / "bin"
    programs.mkdir(parents=True)
    for name in TOOLS:
        found = shutil.which(name)
        assert found, name
        (programs / name).symlink_to(found)
    for name in tools:
        (programs / name).write_text("#!/bin/sh\nexit 1\n")
        (programs / name).chmod(0o755)
    done = subprocess.run(
        [SCRIPT], capture_output=True, text=True, check=False, env={"PATH": str(programs), "HOME": str(home)}
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    spark, kafka, gs, pubsub, prism, browser = run(tmp_path)
    assert spark.startswith(
        "tests: tests on Spark will be skipped: there is no java or no mvn on PATH; apt-get install "
    )
    assert kafka.startswith(
        "tests: tests on Kafka will be skipped: there is no java or no mvn on PATH; apt-get install "
    )
    assert gs.startswith("tests: tests on gs:// will be skipped: there is no fake-gcs-server and no go on PATH; ")
    assert pubsub == "tests: tests on pubsub:// will be skipped: there is no go on PATH"
    assert prism == "tests: tests on Prism will be skipped: there is no go on PATH"
    assert browser.startswith(
        "tests: the test of the report in a browser will be skipped: there is no chromium on PATH; "
    )


def test_what_cannot_be_built_is_said(tmp_path: Path) -> None:
    *_, spark, kafka, gcs, gs, building, pubsub, prism, _browser = run(tmp_path, "java", "mvn", "make", "go")
    assert spark == (
        "tests: tests on Spark will be skipped: the job server could not be built; see what `make spark-job-server` says"
    )
    assert kafka == "tests: tests on Kafka will be skipped: its jars could not be fetched; see what `make kafka` says"
    assert gcs == "tests: building fake-gcs-server"
    assert gs.startswith("tests: tests on gs:// will be skipped: fake-gcs-server could not be built; ")
    assert building == "tests: building the stand-in for Pub/Sub"
    assert pubsub.startswith("tests: tests on pubsub:// will be skipped: it could not be built; see what `go build`")
    assert prism == "tests: tests on Prism will be skipped: it could not be built; see what `make prism` says"
