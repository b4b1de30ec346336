"""The command sends a job to a stand-in for Dataflow: what is posted and staged, and how the job is followed."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from apache_beam.internal.gcp import auth
from apache_beam.io.filesystems import FileSystems
from apache_beam.runners.dataflow import dataflow_runner
from deadlines import WAIT_SECONDS
from fake_dataflow import (
    ACCELERATOR,
    JOB_ID,
    MIN_RAM,
    FakeDataflow,
    StagedPipeline,
    assert_hints_of_the_inference_step_alone,
)

from pipelines import score
from pipelines.dataflow import job as dataflow_job
from pipelines.dataflow import settings as dataflow
from pipelines.dataflow.job import Submitted
from transforms import progress_bar
from transforms.sinks.claims import JOB_LIFETIME, Claim, publishing

ROOT = Path(__file__).parents[3]
L4 = "type:nvidia-l4;count:1;install-nvidia-driver"

pytestmark = pytest.mark.slow(40)


@dataclass(frozen=True)
class Done:
    """What a command ended with."""

    returncode: int
    stdout: str
    stderr: str


Submit = Callable[..., Done]


@pytest.fixture
def submit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Submit:
    """Runs the command in this process, without what Beam keeps in it from one run to the next."""
    monkeypatch.setattr(auth._Credentials, "_credentials_init", False)
    monkeypatch.setattr(FileSystems, "_pipeline_options", None)

    def submit(*arguments: str) -> Done:
        capsys.readouterr()
        code = score.main([*arguments])
        return Done(code, *capsys.readouterr())

    return submit


class TestSubmission:
    def test_hints_image_and_setup_file(
        self, submit: Submit, command: list[str], service: FakeDataflow, tmp_path: Path
    ) -> None:
        """The package by --setup_file, an image, both hints: in the posted job and in the staged pipeline."""
        source = tmp_path / "source"
        for name in ("handlers", "pipelines", "torchbeam", "transforms"):
            shutil.copytree(ROOT / name, source / name)
        for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, source)
        done = submit(
            *command,
            f"--accelerator={L4}",
            "--min_ram=16GB",
            f"--setup_file={source / 'setup.py'}",
            "--sdk_container_image=registry.example/torchbeam:1",
        )
        assert done.returncode == 0, done.stderr
        assert f"id {JOB_ID}" in done.stdout
        assert (
            f"https://console.cloud.google.com/dataflow/jobs/us-central1/{JOB_ID}?project=my-project-1" in done.stdout
        )
        assert f"{tmp_path}/out/report.json" in done.stdout
        assert "error" not in done.stderr

        (job,) = service.posted
        assert service.paths == ["POST /v1b3/projects/my-project-1/locations/us-central1/jobs"]
        assert job["type"] in ("JOB_TYPE_BATCH", 1)
        environment = job["environment"]
        assert "no_use_multiple_sdk_containers" in environment["experiments"]
        (pool,) = environment["workerPools"]
        assert pool["numThreadsPerWorker"] == dataflow.GPU_THREADS
        images = {image["containerImage"] for image in pool["sdkHarnessContainerImages"]}
        assert images == {"registry.example/torchbeam:1"}
        assert "workflow.tar.gz" in {package["name"] for package in pool["packages"]}

        staged = StagedPipeline.read(tmp_path / "staging")
        assert_hints_of_the_inference_step_alone(staged, {ACCELERATOR: L4, MIN_RAM: "16000000000"})
        assert staged.images() == {"registry.example/torchbeam:1"}
        artifacts = staged.artifacts()
        assert len(artifacts) == 2
        assert all("workflow.tar.gz" in names for names in artifacts)
        assert (tmp_path / "staging" / "workflow.tar.gz").stat().st_size > 50_000

    def test_package_is_staged_by_itself(
        self, submit: Submit, command: list[str], service: FakeDataflow, tmp_path: Path
    ) -> None:
        done = submit(*command)
        assert done.returncode == 0, done.stderr
        staged = StagedPipeline.read(tmp_path / "staging")
        assert staged.hints() == {}
        assert "Score/RunInference/BeamML_RunInference" in staged.steps()
        (image,) = staged.images()
        assert image.startswith("gcr.io/cloud-dataflow/")
        (names,) = staged.artifacts()
        (wheel,) = [name for name in names if name.startswith("torchbeam-")]
        assert (tmp_path / "staging" / wheel).exists()
        assert (tmp_path / "staging" / "extra_packages.txt").read_text().split() == [wheel]
        environment = service.posted[0]["environment"]
        assert "no_use_multiple_sdk_containers" not in environment["experiments"]

    def test_the_job_holds_its_output(
        self, submit: Submit, command: list[str], tmp_path: Path, service: FakeDataflow
    ) -> None:
        """The command ends long before the job, whose last step releases the claim; here nobody runs it."""
        done = submit(*command)
        assert done.returncode == 0, done.stderr
        output = tmp_path / "out"
        claim = Claim.from_json((output / "_claim.json").read_text())
        assert (claim.process, claim.runner, claim.lifetime) == (None, "DataflowRunner", JOB_LIFETIME)
        done = submit(*command, "--overwrite")
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert f"is being written by run {claim.run_id} (DataflowRunner, started on {claim.host}) since " in line
        assert f"if it has failed or was killed, remove {output / '_claim.json'}, or wait until " in line
        assert len(service.posted) == 1
        with publishing(str(output), claim.run_id, "DataflowRunner"):
            pass
        assert not (output / "_claim.json").exists()

    def test_image_that_has_the_package(self, submit: Submit, command: list[str], tmp_path: Path) -> None:
        """Nothing of ours is staged beside an image of the user's."""
        done = submit(*command, "--sdk_container_image=registry.example/torchbeam:1")
        assert done.returncode == 0, done.stderr
        (names,) = StagedPipeline.read(tmp_path / "staging").artifacts()
        assert not [name for name in names if "torchbeam" in name or "workflow" in name]

    def test_job_that_is_refused(
        self, submit: Submit, command: list[str], service: FakeDataflow, tmp_path: Path
    ) -> None:
        service.refuse = (403, "my-project-1 has not enabled the Dataflow API")
        done = submit(*command)
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert line.startswith("torchbeam score: error: Dataflow did not take the job: ")
        assert "has not enabled the Dataflow API" in line
        assert done.stdout == ""
        assert not (tmp_path / "out").exists()

    def test_options_that_beam_refuses(self, submit: Submit, command: list[str]) -> None:
        done = submit(*command, "--sdk_container_image=one", "--worker_harness_container_image=another")
        assert done.returncode == 2, done.stderr
        (line,) = done.stderr.splitlines()
        assert "--worker_harness_container_image" in line


@pytest.fixture
def shortly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beam asks for the job, and `watch` shows it, many times a second."""
    clock = SimpleNamespace(time=time.time, sleep=lambda seconds: time.sleep(seconds / 50))
    monkeypatch.setattr(dataflow_runner, "time", clock)
    monkeypatch.setattr(dataflow_job, "PROGRESS_SECONDS", 0.1)
    monkeypatch.setattr(progress_bar, "LOG_SECONDS", 0.1)


@pytest.mark.usefixtures("shortly")
@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning"
)  # Beam's, which the command tells of
class TestFollowing:
    def test_job_that_ends_well(
        self, submit: Submit, command: list[str], service: FakeDataflow, tmp_path: Path
    ) -> None:
        """The summary is of the report, which the last step of the job writes."""
        service.states = ["JOB_STATE_PENDING", *["JOB_STATE_RUNNING"] * 30, "JOB_STATE_DONE"]
        service.counters = {"rows_scored": 1200, "rows_failed_encode": 3}
        here = [argument for argument in command if not argument.startswith("--runner")]
        ours = [argument for argument in here if argument.split("=")[0] in ("--input", "--model", "--output")]
        assert submit(*ours).returncode == 0  # in place of Dataflow's workers
        report = json.loads((tmp_path / "out" / "report.json").read_text())
        done = submit(*command, "--wait", "--overwrite")
        assert done.returncode == 0, done.stderr
        assert "the job is running" in done.stderr
        assert "scoring: 1,203 rows" in done.stderr
        assert "3 dead letters" in done.stderr
        assert f"id {JOB_ID}" in done.stdout
        assert f"{report['rows_scored']:,}" in done.stdout
        assert "predictions" in done.stdout

    def test_job_that_fails(self, submit: Submit, command: list[str], service: FakeDataflow) -> None:
        service.states = ["JOB_STATE_RUNNING", "JOB_STATE_RUNNING", "JOB_STATE_FAILED"]
        text = (
            "Traceback (most recent call last):\n  File x\nhandlers.errors.UsageError: --device cuda was asked for, but"
        )
        message = {"id": "1", "time": "2026-01-01T00:00:01Z", "messageImportance": "JOB_MESSAGE_ERROR"}
        service.messages = [message | {"messageText": text}]
        done = submit(*command, "--wait")
        assert done.returncode == 2, done.stderr
        assert done.stderr.splitlines()[-1] == "torchbeam score: error: --device cuda was asked for, but"

    def test_service_that_tells_nothing_any_more(
        self, submit: Submit, command: list[str], service: FakeDataflow
    ) -> None:
        service.silent = True
        done = submit(*command, "--wait")
        assert done.returncode == 1, done.stderr
        assert f"job      job, id {JOB_ID}" in done.stdout
        last = done.stderr.splitlines()[-1]
        assert "Dataflow does not answer any more" in last
        assert "the job may go on: https://console.cloud.google.com/dataflow/jobs/us-central1/" in last

    @pytest.mark.parametrize(("state", "kind"), [("RUNNING", dataflow.NotFollowedError), ("FAILED", RuntimeError)])
    def test_only_a_job_that_has_ended_has_failed(self, state: str, kind: type[Exception]) -> None:
        """What a job that goes on has written must stay, so its end is told by another error."""

        class Result:
            def __init__(self) -> None:
                self.state = state

            def wait_until_finish(self) -> None:
                raise RuntimeError("Job did not reach to a terminal state")

        with pytest.raises(kind, match="terminal state"):
            dataflow_job.follow(Submitted(Result(), "1", "job", "https://…"), None)  # type: ignore[arg-type]

    def test_stopped_while_it_follows(self, command: list[str], service: FakeDataflow, tmp_path: Path) -> None:
        """The job goes on, and the last line says where."""
        service.states = ["JOB_STATE_RUNNING"]
        process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.score", *command, "--wait"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        end = time.monotonic() + WAIT_SECONDS
        while not any(path.startswith("GET") for path in service.paths):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < end
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=WAIT_SECONDS)
        assert process.returncode == 130, err
        assert f"id {JOB_ID}" in out
        last = err.splitlines()[-1]
        assert "the job goes on: https://console.cloud.google.com/dataflow/jobs/us-central1/" in last
        assert (tmp_path / "out" / "_claim.json").exists()
