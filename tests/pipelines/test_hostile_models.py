"""Model directories that are not to be trusted: nothing of theirs runs and nothing is set, on any runner, in any command."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipelines import describe, doctor, score

NAMES = (
    *("JAVA_HOME", "TORCHBEAM_SPARK_JOB_SERVER_JAR", "BIGQUERY_EMULATOR_HOST", "LD_PRELOAD", "LD_LIBRARY_PATH"),
    *("PATH", "PYTHONPATH", "PYTHONSTARTUP", "HTTPS_PROXY", "http_proxy", "GOOGLE_APPLICATION_CREDENTIALS"),
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "OMP_TOOL_LIBRARIES", "SPARK_HOME"),
    *("JAVA_TOOL_OPTIONS", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "CUDA_INJECTION64_PATH", "TMPDIR", "HF_TOKEN"),
    *("TORCHINDUCTOR_CACHE_DIR",),
)
RUNNERS = ("FnApiRunner", "SparkRunner", "DataflowRunner")


def change(model: Path, **fields: object) -> None:
    file = model / "model.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | fields))


@pytest.fixture
def copy(model: Path, tmp_path: Path) -> Path:
    """A model directory to spoil."""
    return Path(shutil.copytree(model, tmp_path / "copy"))


def arguments(runner: str, model: Path, folder: Path) -> list[str]:
    """Those of a run that would be refused for nothing else."""
    given = [f"--runner={runner}", f"--input={folder}/x.csv", f"--model={model}", f"--output={folder}/out"]
    if runner == "DataflowRunner":
        given += ["--no_auth", "--project=my-project-1", "--region=us-central1", "--temp_location=gs://bucket/tmp"]
    return given


def environment() -> dict[str, str | None]:
    """What is set of all that the models of these tests try to set."""
    return {name: os.environ.get(name) for name in (*NAMES, "OMP_NUM_THREADS")}


@pytest.fixture
def java(copy: Path, tmp_path: Path) -> Path:
    """A folder with a `bin/java` that leaves a trace, named by JAVA_HOME of the model."""
    script = tmp_path / "evil" / "bin" / "java"
    script.parent.mkdir(parents=True)
    script.write_text(f"#!/bin/sh\ntouch {tmp_path}/was_run\necho 'openjdk version \"17.0.1\"' >&2\n")
    script.chmod(0o755)
    change(copy, env_vars={"JAVA_HOME": str(tmp_path / "evil")})
    (tmp_path / "x.csv").write_text("a\n1\n")
    return tmp_path / "was_run"


@pytest.mark.parametrize("runner", RUNNERS)
def test_java_of_the_model_is_not_run_by_score(java: Path, copy: Path, tmp_path: Path, runner: str) -> None:
    command = [sys.executable, "-m", "pipelines.score", *arguments(runner, copy, tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "env_vars sets 'JAVA_HOME'" in line
    assert not java.exists()
    assert not (tmp_path / "out").exists()


def test_java_of_the_model_is_not_run_by_the_doctor(java: Path, copy: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipelines.doctor", *arguments("SparkRunner", copy, tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    (line,) = [line for line in done.stdout.splitlines() if "env_vars" in line]
    assert line.startswith("problem  model")
    assert "env_vars sets 'JAVA_HOME'" in line
    assert not java.exists()


@pytest.mark.parametrize("runner", RUNNERS)
def test_every_hostile_name(copy: Path, tmp_path: Path, runner: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = environment()
    assert len(NAMES) > 20
    for name in NAMES:
        change(copy, env_vars={"OMP_NUM_THREADS": "3", name: "/tmp/x"})
        assert score.main(arguments(runner, copy, tmp_path)) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"env_vars sets {name!r}" in line
        assert environment() == before


def test_every_hostile_name_in_the_doctor(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = environment()
    for name in NAMES:
        change(copy, env_vars={name: "/tmp/x"})
        assert doctor.main([f"--model={copy}"]) == 2
        assert f"env_vars sets {name!r}" in capsys.readouterr().out
        assert environment() == before


def test_every_hostile_name_in_describe(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = environment()
    for name in NAMES:
        change(copy, env_vars={name: "/tmp/x"})
        assert describe.main([f"--model={copy}"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"env_vars sets {name!r}" in line
        assert environment() == before
    assert describe.main([f"--model={copy}", f"--allow_env={NAMES[-1]}", "--no_model_code"]) == 2
    assert "brings code of its own" in capsys.readouterr().err


def test_what_the_user_says_of_the_model(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*more: str) -> str:
        assert score.main([*arguments("FnApiRunner", copy, tmp_path), *more]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "brings code of its own (code/" in refused("--no_model_code")
    line = refused("--model_version=000000000000")
    version = line.partition("has version ")[2][:12]
    assert "x.csv" in refused(f"--model_version={version}"), "the next thing that is wrong"
    assert "--model_version must be 12 to 64 hexadecimal digits" in refused("--model_version=1")
    assert "--allow_env must be the name of an environment variable" in refused("--allow_env=A=B")
    change(copy, env_vars={"MY_A": "1", "MY_B": "2"})
    assert "env_vars sets 'MY_B'" in refused("--allow_env=MY_A")
    assert "x.csv" in refused("--allow_env=MY_A", "--allow_env=MY_B")
    assert doctor.main([f"--model={copy}", "--allow_env=MY_A", "--allow_env=MY_B", f"--model_version={version}"]) == 2
    assert f", not {version} (--model_version)" in capsys.readouterr().out
