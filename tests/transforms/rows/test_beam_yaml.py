"""`type: TorchScore` in a pipeline of Beam YAML, run by Beam's own command in an environment that has `apache-beam[yaml]`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from importlib.metadata import requires, version
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from packaging.requirements import Requirement

from handlers import ModelDir
from pipelines.command.supervisor import supervised_command
from torchbeam import score

pytestmark = pytest.mark.slow(20)

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs" / "yaml.md"
SECONDS = 240


@pytest.fixture(scope="session")
def python() -> str:
    """A Python that has what Beam YAML needs in front of the packages of this one; made once, kept in the user's cache."""
    wanted = [Requirement(each) for each in requires("apache-beam") or () if "extra" in each]
    names = sorted(str(each).partition(";")[0].strip() for each in wanted if each.marker and _of_yaml(each))
    assert names, "apache-beam has no extra yaml"
    names.append(f"numpy=={version('numpy')}")  # that with which torch and pyarrow were tried
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "torchbeam", "beam-yaml")
    home = cache / sys.implementation.cache_tag
    record, program = home / "torchbeam.json", home / "bin" / "python"
    found = json.loads(record.read_text()) if record.exists() else None
    if found != names or not program.exists():  # its symbolic link may lead to a Python that was removed
        making = cache / f"making-{os.getpid()}"
        shutil.rmtree(making, ignore_errors=True)
        venv.create(making, with_pip=True, symlinks=True)
        install = [str(making / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        try:
            subprocess.run([*install, *names], capture_output=True, text=True, check=True, timeout=SECONDS)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            shutil.rmtree(making, ignore_errors=True)
            pytest.skip(f"pip cannot install {', '.join(names)}: {str(error.stderr or error).strip()[-300:]}")
        (making / "torchbeam.json").write_text(json.dumps(names))
        shutil.rmtree(home, ignore_errors=True)
        making.rename(home)
    return str(program)


def _of_yaml(requirement: Requirement) -> bool:
    assert requirement.marker is not None
    return requirement.marker.evaluate({"extra": "yaml"}) and not requirement.marker.evaluate({"extra": ""})


def run(python: str, pipeline: dict[str, Any], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a pipeline by `python -m apache_beam.yaml.main`."""
    file = folder / "pipeline.yaml"
    file.write_text(yaml.safe_dump(pipeline, sort_keys=False))
    # The packages of this environment come after those of the other, which has another pandas.
    own = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    path = os.pathsep.join([str(ROOT), own, *(each for each in sys.path if each.endswith("site-packages"))])
    command = [python, "-m", "apache_beam.yaml.main", f"--yaml_pipeline_file={file}", "--runner=FnApiRunner"]
    return subprocess.run(
        supervised_command(command),
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
        env=os.environ | {"PYTHONPATH": path} | environment,
        cwd=folder,
    )


def written(folder: Path, name: str) -> list[dict[str, Any]]:
    """The rows of a WriteToJson, by their id."""
    rows = [json.loads(line) for file in folder.glob(f"{name}-*") for line in file.read_text().splitlines()]
    return sorted(rows, key=lambda row: row.get("element", row)["id"])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelDir:
    return ModelDir.save(
        torch.nn.Linear(2, 3),
        tmp_path_factory.mktemp("linear") / "model",
        task="classification",
        labels=["x", "y", "z"],
        inputs=[{"name": "x", "columns": ["a", "b"]}],
        arguments={"in_features": 2, "out_features": 3},
    )


def documented() -> dict[str, Any]:
    """The pipeline of docs/yaml.md."""
    text = DOCS.read_text().partition("```yaml\n")[2].partition("```")[0]
    pipeline: dict[str, Any] = yaml.safe_load(text)
    return pipeline


def test_the_pipeline_of_the_docs_gives_what_score_gives(python: str, model: ModelDir, tmp_path: Path) -> None:
    rows = [
        {"id": row, "a": None if row % 10 == 3 else row / 8, "b": 1.5 - row / 16, "name": f"näme {row}"}
        for row in range(60)
    ]
    lines = [",".join("" if value is None else str(value) for value in row.values()) for row in rows]
    (tmp_path / "customers.csv").write_text("\n".join(["id,a,b,name", *lines]))
    registry = tmp_path / "models"
    shutil.copytree(model.path, registry / "credit" / "1")
    (registry / "credit" / "aliases.json").write_text('{"champion": {"version": 1}}')

    done = run(python, documented(), tmp_path, TORCHBEAM_REGISTRY=str(registry))
    assert done.returncode == 0, done.stderr[-5000:]

    expected = score(model, rows, columns=["id", "name"], probabilities=True)
    want = [{**row, "percent": row["confidence"] * 100} for row in expected.predictions]
    got = written(tmp_path, "scored")
    assert len(got) == len(want) == 54
    for one, other in zip(got, want, strict=True):
        assert one == pytest.approx(other, abs=1e-6)
    reasons = [
        {
            "element": {name: row[name] for name in rows[0]},
            "msg": row["dead_letter"]["message"],
            **{name: row["dead_letter"][name] for name in ("stage", "type", "model_version", "raw")},
        }
        for row in expected.dead_letters
    ]
    assert len(reasons) == 6
    assert written(tmp_path, "failed") == reasons


def test_without_error_handling_a_bad_row_fails_the_pipeline(python: str, model: ModelDir, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("id,a,b\n1,0.5,1.0\n2,,1.0\n")
    pipeline = documented()
    pipeline["pipeline"] = {
        "type": "chain",
        "transforms": [
            {"type": "ReadFromCsv", "config": {"path": f"{tmp_path}/rows.csv"}},
            {"type": "TorchScore", "config": {"model": model.path}},
            {"type": "WriteToJson", "config": {"path": f"{tmp_path}/scored"}},
        ],
    }
    done = run(python, pipeline, tmp_path)
    assert done.returncode != 0
    assert 'RowsFailedError: a row was not scored: column "a" holds null' in done.stderr
    assert not written(tmp_path, "scored")
