"""Dataflow, as far as it goes without a cloud: the posted job, the staged pipeline, the arguments, the wheel."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from handlers.errors import UsageError
from handlers.model.directory import ModelDir
from handlers.predict.placement import Placement
from pipelines import score
from pipelines.command.options import ModelOptions
from pipelines.dataflow import settings as dataflow
from pipelines.dataflow.own_wheel import build_wheel
from pipelines.jobs import scoring as score_job
from pipelines.jobs.options import ScoreOptions
from pipelines.jobs.outputs import claimed_output

ROOT = Path(__file__).parents[3]
L4 = "type:nvidia-l4;count:1;install-nvidia-driver"
LAUNCH = ("--project=my-project-1", "--region=us-central1", "--temp_location=gs://my-bucket/tmp")


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
        command = [sys.executable, "-m", "pipelines.score", "--runner=DataflowRunner", *paths, *LAUNCH]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | nobody)
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
    with claimed_output(settled, print) as output:
        job = score_job.prepare(settled, ModelDir(str(model)), output)
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
