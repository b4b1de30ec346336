"""The script of the Flex Template `score`, run as the launcher runs it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deadlines import WAIT_SECONDS
from fake_dataflow import (
    ACCELERATOR,
    JOB_ID,
    MIN_RAM,
    StagedPipeline,
    assert_hints_of_the_inference_step_alone,
    fake_dataflow,
    launch_arguments,
)
from poisoned_table import save_model

from handlers.model.directory import ModelDir

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "templates" / "score"
PARAMETERS: list[dict[str, Any]] = json.loads((TEMPLATE / "metadata.json").read_text())["parameters"]
BY_NAME = {parameter["name"]: parameter for parameter in PARAMETERS}
L4 = "type:nvidia-l4;count:1;install-nvidia-driver"

pytestmark = pytest.mark.slow(15)


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python in which this package is installed from a wheel, as a user has it, and nothing else of this folder.

    What it depends on is borrowed from the environment of the tests by a path; installing PyTorch anew takes minutes.
    """
    folder = tmp_path_factory.mktemp("clean")
    for name in ("handlers", "pipelines", "torchbeam", "transforms"):
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wheel = ["wheel", "--no-deps", "--no-build-isolation", "-w", str(folder / "dist"), str(folder / "source")]
    subprocess.run([*pip, *wheel], check=True, timeout=WAIT_SECONDS)
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True, timeout=WAIT_SECONDS
    )
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    (built,) = (folder / "dist").glob("torchbeam-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(built)], check=True, timeout=WAIT_SECONDS)
    # A path in a .pth is searched, but the .pth files in it are not read: the source tree of the tests is not found.
    borrowed = [path for path in sys.path if Path(path).name == "site-packages"]
    (site / "borrowed.pth").write_text("\n".join(borrowed) + "\n")
    shutil.rmtree(folder / "source")
    return folder / "venv" / "bin" / "python"


@pytest.fixture(scope="session")
def paths(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small table and a model that takes it."""
    folder = tmp_path_factory.mktemp("paths")
    save_model(folder / "model")
    columns = {f"f_{index}": [0.5, 1.5, 2.5] for index in range(4)}
    table = pa.table({"id": [1, 2, 3], "amount": [1.0, 2.0, 3.0], **columns, "vec": [[0.1] * 4] * 3, "code": [100] * 3})
    pq.write_table(table, folder / "in.parquet")
    return folder / "in.parquet", folder / "model"


def values_of_all_parameters(table: Path, model: Path, output: Path) -> dict[str, str]:
    """A value for each parameter that goes with the others; paths are local because there is no bucket."""
    values = {
        "input": str(table),
        "input_format": "parquet",
        "limit": "1000",
        "model": str(model),
        "registry": str(model.parent),
        "batch_size": "256",
        "device": "auto",
        "precision": "float32",
        "compile": "false",
        "model_copies": "1",
        "accelerator": L4,
        "min_ram": "16GiB",
        "chunk_bytes": "32MiB",
        "model_version": ModelDir(model).version,
        "no_model_code": "false",
        "allow_env": "MY_MODEL_MODE",
        "preprocess": "poison_rows:mended",
        "postprocess": "poison_rows:add_margin",
        "output": str(output),
        "output_format": "parquet",
        "columns": "id,code",
        "probabilities": "true",
        "overwrite": "true",
        "report": str(output / "own-report.json"),
    }
    for name, value in values.items():
        if not value.startswith("/"):
            assert all(re.fullmatch(pattern, value) for pattern in BY_NAME[name].get("regexes", [])), name
    assert set(values) == set(BY_NAME) - {"models"}  # which goes instead of model
    return values


def launch(python: Path, values: dict[str, str], *others: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs the script as the launcher does: by its path, from elsewhere, each parameter as --name=value."""
    # Local paths stand in for buckets, so they have to be called shared.
    arguments = [*(f"--{name}={value}" for name, value in values.items()), *others, "--shared_filesystem=true"]
    return subprocess.run(
        [str(python), str(TEMPLATE / "main.py"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT_SECONDS,
        cwd=cwd,
        env={"HOME": str(cwd), "PATH": "/usr/bin:/bin"},
    )


class TestLaunch:
    def test_environment_has_only_the_package(self, python: Path, tmp_path: Path) -> None:
        code = (
            "import handlers, pipelines, transforms; print(pipelines.__file__, handlers.__file__, transforms.__file__)"
        )
        done = subprocess.run([str(python), "-I", "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
        assert all(path.startswith(str(python.parents[1])) for path in done.stdout.split()), done.stdout

    def test_posted_job_and_staged_pipeline(self, python: Path, paths: tuple[Path, Path], tmp_path: Path) -> None:
        """All parameters at once: hints, image of Beam, the package among the artifacts."""
        values = values_of_all_parameters(*paths, tmp_path / "out")
        with fake_dataflow() as service:
            done = launch(python, values, *launch_arguments(tmp_path / "staging", service.url), cwd=tmp_path)
            assert done.returncode == 0, done.stderr
            assert JOB_ID in done.stdout
            assert values["report"] in done.stdout
            (job,) = service.posted
        (pool,) = job["environment"]["workerPools"]
        packages = {package["name"] for package in pool["packages"]}
        (wheel,) = [name for name in packages if name.startswith("torchbeam-")]
        staged = StagedPipeline.read(tmp_path / "staging")
        assert_hints_of_the_inference_step_alone(staged, {ACCELERATOR: L4, MIN_RAM: str(16 * 2**30)})
        assert all(wheel in names for names in staged.artifacts())

    def test_graph_for_the_launcher(self, python: Path, paths: tuple[Path, Path], tmp_path: Path) -> None:
        """The launcher has the graph written to a file, which it submits itself; the image is the template's own."""
        values = values_of_all_parameters(*paths, tmp_path / "out")
        image = "europe-west1-docker.pkg.dev/my-project-1/torchbeam/score:1"
        done = launch(
            python,
            values,
            *launch_arguments(tmp_path / "staging", "http://localhost:1"),
            "--runner=DataflowRunner",
            "--job_name=score-1",
            f"--sdk_container_image={image}",
            f"--template_location={tmp_path / 'staging' / 'job_object'}",
            "--an_option_of_a_later_launcher=1",
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        job = json.loads((tmp_path / "staging" / "job_object").read_text())
        assert job["name"] == "score-1"
        (pool,) = job["environment"]["workerPools"]
        assert {found["containerImage"] for found in pool["sdkHarnessContainerImages"]} == {image}
        assert not [package for package in pool["packages"] if "torchbeam" in package["name"]]
        staged = StagedPipeline.read(tmp_path / "staging")
        assert staged.images() == {image}
        assert_hints_of_the_inference_step_alone(staged, {ACCELERATOR: L4, MIN_RAM: str(16 * 2**30)})

    def test_wrong_parameter(self, python: Path, paths: tuple[Path, Path], tmp_path: Path) -> None:
        values = values_of_all_parameters(*paths, tmp_path / "out") | {"min_ram": "16"}
        done = launch(python, values, *launch_arguments(tmp_path / "staging", "http://localhost:1"), cwd=tmp_path)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert "--min_ram" in line
