"""Dataflow, as far as it goes without a cloud: the posted job, the staged pipeline, the arguments, the wheel."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_dataflow import (
    ACCELERATOR,
    JOB_ID,
    MIN_RAM,
    FakeDataflow,
    StagedPipeline,
    assert_hints_of_the_inference_step_alone,
    fake_dataflow,
    launch_arguments,
)
from poisoned_table import Table

from handlers.errors import UsageError
from handlers.model.directory import ModelDir
from handlers.predict.placement import Placement
from pipelines import score
from pipelines.command.options import ModelOptions
from pipelines.dataflow import job as dataflow_job
from pipelines.dataflow import settings as dataflow
from pipelines.dataflow.job import Submitted
from pipelines.dataflow.own_wheel import build_wheel
from pipelines.jobs import scoring as score_job
from pipelines.jobs.options import ScoreOptions

ROOT = Path(__file__).parents[3]
L4 = "type:nvidia-l4;count:1;install-nvidia-driver"
LAUNCH = ("--project=my-project-1", "--region=us-central1", "--temp_location=gs://my-bucket/tmp")


@pytest.fixture
def service() -> Iterator[FakeDataflow]:
    with fake_dataflow() as fake:
        yield fake


@pytest.fixture
def table(tmp_path: Path, poisoned: Table) -> Path:
    good = [row for row in range(3000) if row not in poisoned.poison]
    pq.write_table(poisoned.table.take(pa.array(good)), tmp_path / "in.parquet")
    return tmp_path / "in.parquet"


@pytest.fixture
def command(table: Path, model: Path, tmp_path: Path, service: FakeDataflow) -> list[str]:
    paths = [f"--input={table}", f"--model={model}", f"--output={tmp_path / 'out'}"]
    return ["--runner=DataflowRunner", *paths, *launch_arguments(tmp_path / "staging", service.url)]


def submit(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own: Beam keeps some options of a runner for the whole process."""
    return subprocess.run(
        [sys.executable, "-m", "pipelines.score", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        env=os.environ | env,
    )


@pytest.mark.slow
class TestSubmission:
    def test_hints_image_and_setup_file(self, command: list[str], service: FakeDataflow, tmp_path: Path) -> None:
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

    def test_package_is_staged_by_itself(self, command: list[str], service: FakeDataflow, tmp_path: Path) -> None:
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

    def test_image_that_has_the_package(self, command: list[str], tmp_path: Path) -> None:
        """Nothing of ours is staged beside an image of the user's."""
        done = submit(*command, "--sdk_container_image=registry.example/torchbeam:1")
        assert done.returncode == 0, done.stderr
        (names,) = StagedPipeline.read(tmp_path / "staging").artifacts()
        assert not [name for name in names if "torchbeam" in name or "workflow" in name]

    def test_job_that_is_refused(self, command: list[str], service: FakeDataflow) -> None:
        service.refuse = (403, "my-project-1 has not enabled the Dataflow API")
        done = submit(*command)
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert line.startswith("torchbeam score: error: Dataflow did not take the job: ")
        assert "has not enabled the Dataflow API" in line
        assert done.stdout == ""

    def test_options_that_beam_refuses(self, command: list[str]) -> None:
        done = submit(*command, "--sdk_container_image=one", "--worker_harness_container_image=another")
        assert done.returncode == 2, done.stderr
        (line,) = done.stderr.splitlines()
        assert "--worker_harness_container_image" in line


@pytest.mark.slow
class TestFollowing:
    def test_job_that_ends_well(self, command: list[str], service: FakeDataflow, tmp_path: Path) -> None:
        """The summary is of the report, which the last step of the job writes."""
        service.states = ["JOB_STATE_PENDING", *["JOB_STATE_RUNNING"] * 4, "JOB_STATE_DONE"]
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

    def test_job_that_fails(self, command: list[str], service: FakeDataflow) -> None:
        service.states = ["JOB_STATE_RUNNING", "JOB_STATE_RUNNING", "JOB_STATE_FAILED"]
        text = (
            "Traceback (most recent call last):\n  File x\nhandlers.errors.UsageError: --device cuda was asked for, but"
        )
        message = {"id": "1", "time": "2026-01-01T00:00:01Z", "messageImportance": "JOB_MESSAGE_ERROR"}
        service.messages = [message | {"messageText": text}]
        done = submit(*command, "--wait")
        assert done.returncode == 2, done.stderr
        assert done.stderr.splitlines()[-1] == "torchbeam score: error: --device cuda was asked for, but"

    def test_service_that_tells_nothing_any_more(self, command: list[str], service: FakeDataflow) -> None:
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
        end = time.monotonic() + 120
        while not any(path.startswith("GET") for path in service.paths):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < end
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 130, err
        assert f"id {JOB_ID}" in out
        last = err.splitlines()[-1]
        assert "the job goes on: https://console.cloud.google.com/dataflow/jobs/us-central1/" in last


class TestLaunch:
    @pytest.mark.parametrize("missing", ["project", "region", "temp_location"])
    def test_missing(self, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("CLOUDSDK_COMPUTE_REGION", raising=False)
        rest = [argument for argument in LAUNCH if not argument.startswith(f"--{missing}")]
        with pytest.raises(UsageError, match=f"needs --{missing}; for example --{missing}="):
            dataflow.settle(options(), rest)

    def test_missing_is_told_before_anything_heavy(self) -> None:
        code = (
            "import sys\nfrom pipelines import score\n"
            "assert score.main(['--runner=DataflowRunner', '--input=gs://b/x', '--model=gs://b/m', '--output=gs://b/o']) == 2\n"
            "heavy = {'torch', 'apache_beam', 'pyarrow'} & set(sys.modules)\nassert not heavy, heavy"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        (line,) = done.stderr.splitlines()
        assert "--project, --region, --temp_location" in line

    def test_no_credentials(self, tmp_path: Path) -> None:
        """Told at once; the storage client would try again for minutes without any."""
        nobody = {"HOME": str(tmp_path), "CLOUDSDK_CONFIG": str(tmp_path), "NO_GCE_CHECK": "true"}
        nobody |= {"GOOGLE_APPLICATION_CREDENTIALS": ""}
        paths = [f"--{name}=gs://my-bucket/x" for name in ("input", "model", "output")]
        done = submit("--runner=DataflowRunner", *paths, *LAUNCH, **nobody)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert "gcloud auth application-default login" in line

    def test_region_of_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CLOUDSDK_COMPUTE_REGION", "europe-west4")
        _, arguments = dataflow.settle(options(), [LAUNCH[0], LAUNCH[2]])
        assert arguments[-1] == "--region=europe-west4"
        assert dataflow.settle(options(), LAUNCH)[1] == LAUNCH

    @pytest.mark.parametrize(
        "location", ["/tmp/x", "my-bucket/tmp", "gs://my-bucket", "gs://My_Bucket/tmp", "s3://bucket/x"]
    )
    def test_temp_location_that_is_no_bucket(self, location: str) -> None:
        with pytest.raises(UsageError, match="gs://my-bucket/tmp"):
            dataflow.settle(options(), [*LAUNCH[:2], f"--temp_location={location}"])

    def test_streaming(self) -> None:
        with pytest.raises(UsageError, match="--streaming"):
            dataflow.settle(options(), [*LAUNCH, "--streaming"])

    def test_setup_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(UsageError, match=r"nowhere/setup\.py"):
            dataflow.settle(options(), [*LAUNCH, "--setup_file=nowhere/setup.py"])
        (tmp_path / "setup.py").touch()
        monkeypatch.chdir(tmp_path)
        _, arguments = dataflow.settle(options(), [*LAUNCH, "--setup_file=setup.py"])
        assert arguments[-1] == f"--setup_file={tmp_path / 'setup.py'}"


class TestAccelerators:
    def test_without_one_nothing_is_added(self) -> None:
        assert dataflow.settle(options(), LAUNCH) == (options(), LAUNCH)
        assert dataflow.settle(options(min_ram="16GB"), LAUNCH) == (options(min_ram="16GB"), LAUNCH)

    @pytest.mark.parametrize("pool", [False, True])
    def test_one_process_and_few_threads(self, pool: bool) -> None:
        """The same for workers of the step and for a pool; a GPU that a worker does not see is an error."""
        asked = [f"--dataflow_service_options=worker_accelerator={L4}"] if pool else []
        model, arguments = dataflow.settle(options(accelerator=None if pool else L4), [*LAUNCH, *asked])
        assert arguments[len(LAUNCH) + len(asked) :] == (
            "--experiments=no_use_multiple_sdk_containers",
            "--number_of_worker_harness_threads=4",
        )
        assert model.device == "cuda"

    def test_what_the_user_says_stays(self) -> None:
        given = (*LAUNCH, "--experiments=x,no_use_multiple_sdk_containers", "--number_of_worker_harness_threads=2")
        model, arguments = dataflow.settle(options(accelerator=L4, device="cuda:0"), given)
        assert arguments == given
        assert model.device == "cuda:0"

    def test_copies_are_a_process_for_each_vcpu(self) -> None:
        fits = (*LAUNCH, "--machine_type=g2-standard-4")
        assert dataflow.settle(options(accelerator=L4, model_copies=4), fits)[1] == fits
        within = f"{L4};machine_type:g2-standard-8"
        assert dataflow.settle(options(accelerator=within, model_copies=8), LAUNCH)[1] == LAUNCH
        with pytest.raises(UsageError, match="--model_copies=8"):
            dataflow.settle(options(accelerator=within, model_copies=2), LAUNCH)
        with pytest.raises(UsageError, match="name a --machine_type with 2 vCPUs"):
            dataflow.settle(options(accelerator=L4, model_copies=2), LAUNCH)
        with pytest.raises(UsageError, match="leave it out"):
            dataflow.settle(
                options(accelerator=L4, model_copies=4), (*fits, "--experiments=no_use_multiple_sdk_containers")
            )
        two = L4.replace("count:1", "count:2")
        with pytest.raises(UsageError, match="for 2 processes"):
            dataflow.settle(options(accelerator=two), LAUNCH)
        custom = (*LAUNCH, "--machine_type=n1-custom-2-8192")
        assert dataflow.settle(options(accelerator=two), custom)[1] == custom

    @pytest.mark.parametrize("hint", [{"accelerator": L4}, {"min_ram": "16GB"}])
    def test_step_or_pool_but_not_both(self, hint: dict[str, str]) -> None:
        with pytest.raises(UsageError, match="does not take both"):
            dataflow.settle(
                options(**hint), [*LAUNCH, f"--dataflow_service_options=enable_prime,worker_accelerator={L4}"]
            )
        name = next(iter(hint))
        with pytest.raises(UsageError, match=f"--resource_hint={name}"):
            dataflow.settle(options(**hint), [*LAUNCH, f"--resource_hints={name}={hint[name]}"])
        with pytest.raises(UsageError, match="flexrs_goal"):
            dataflow.settle(options(**hint), [*LAUNCH, "--flexrs_goal=COST_OPTIMIZED"])

    def test_the_older_ways_to_say_it(self) -> None:
        with pytest.raises(UsageError, match="does not take both"):
            dataflow.settle(options(accelerator=L4), [*LAUNCH, f"--experiments=worker_accelerator={L4}"])
        of_all = [f"--resource_hints=accelerator={L4}"]
        with pytest.raises(UsageError, match="does not take both"):
            dataflow.settle(options(), [*LAUNCH, *of_all, f"--experiments=worker_accelerator={L4}"])
        model, arguments = dataflow.settle(options(), [*LAUNCH, *of_all])
        assert model.device == "cuda"
        assert "--experiments=no_use_multiple_sdk_containers" in arguments

    def test_dry_run(self) -> None:
        with pytest.raises(UsageError, match="--dry_run leaves nothing to follow"):
            dataflow.settle(options(), [*LAUNCH, "--dry_run=true"])

    def test_gpu_without_a_driver(self) -> None:
        with pytest.raises(UsageError, match="install-nvidia-driver"):
            dataflow.settle(options(accelerator="type:nvidia-tesla-t4;count:1"), LAUNCH)

    def test_mps_is_for_copies(self) -> None:
        mps = f"{L4};use_nvidia_mps"
        with pytest.raises(UsageError, match="--model_copies"):
            dataflow.settle(options(accelerator=mps), LAUNCH)
        arguments = (*LAUNCH, "--machine_type=g2-standard-4")
        assert dataflow.settle(options(accelerator=mps, model_copies=4), arguments)[1] == arguments

    def test_an_accelerator_that_is_no_gpu(self) -> None:
        """Dataflow has others; what to start with them is left to the user."""
        tpu = options(accelerator="type:tpu-v5-lite-podslice;topology:1x1")
        assert dataflow.settle(tpu, LAUNCH) == (tpu, LAUNCH)


def options(**changed: object) -> ModelOptions:
    return ModelOptions(model="gs://my-bucket/model", **changed)  # type: ignore[arg-type]


def test_workers_get_the_placement(table: Path, model: Path, tmp_path: Path) -> None:
    """A GPU for sure, and so many processes on it; the driver needs none."""
    paths = [f"--input={table}", f"--model={model}", f"--output={tmp_path / 'out'}", "--shared_filesystem"]
    gpu = [f"--accelerator={L4}", "--machine_type=g2-standard-4", "--model_copies=4", "--precision=bfloat16"]
    settled = ScoreOptions.parse(["--runner=DataflowRunner", *paths, *LAUNCH, *gpu], score.COMMAND).settled()
    job = score_job.prepare(settled, ModelDir(str(model)))
    assert job.score.placement == Placement("cuda", "bfloat16", compile=False, copies=4)


def test_template_launchers_may_pass_what_beam_does_not_know(tmp_path: Path) -> None:
    assert not dataflow.from_template(LAUNCH)
    assert dataflow.from_template([*LAUNCH, "--template_location=gs://my-bucket/t"])


def test_other_runners_are_left_alone() -> None:
    parsed = ScoreOptions.parse(["--input=x", "--model=m", "--output=o", "--accelerator=type:nvidia-l4"], score.COMMAND)
    assert parsed.settled() is parsed


def test_wheel_can_be_installed_and_has_everything(tmp_path: Path) -> None:
    """What pip makes of it is what is here: all modules, their types, the command, the dependencies."""
    wheel = build_wheel(tmp_path)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--target",
            str(tmp_path / "site"),
            str(wheel),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for package in ("handlers", "pipelines", "torchbeam", "transforms"):
        for file in (ROOT / package).rglob("*.py"):
            installed = tmp_path / "site" / file.relative_to(ROOT)
            assert installed.read_bytes() == file.read_bytes()
    assert (tmp_path / "site" / "bin" / "torchbeam").exists()
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = [name for name in archive.namelist() if name.endswith("/METADATA")]
        text = archive.read(metadata).decode()
        assert not [name for name in archive.namelist() if name.startswith("tests")]
    assert "Requires-Dist: apache-beam[gcp]" in text
    assert "Requires-Dist: torch" in text
