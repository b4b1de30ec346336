"""The Flex Template `score`: its parameters and its Dockerfile."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import metadata as template_metadata
import pytest
from google.cloud.dataflow_v1beta3.types import TemplateMetadata

from pipelines import score
from pipelines.command.options import parser
from pipelines.jobs.options import ScoreOptions

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "templates" / "score"
PARAMETERS: list[dict[str, Any]] = json.loads((TEMPLATE / "metadata.json").read_text())["parameters"]
BY_NAME = {parameter["name"]: parameter for parameter in PARAMETERS}
L4 = "type:nvidia-l4;count:1;install-nvidia-driver"


class TestMetadata:
    def test_is_made_of_the_options(self) -> None:
        made = template_metadata.render(template_metadata.TEMPLATES["score"])
        assert (TEMPLATE / "metadata.json").read_text() == made, "run make template-metadata"

    def test_parameters_are_options_of_the_command(self) -> None:
        """Same names, same required ones, and a switch that takes the value a launcher gives."""
        groups = template_metadata.TEMPLATES["score"].groups
        actions = {action.dest: action for action in parser(score.COMMAND, groups)._actions if action.dest != "help"}
        left_out = template_metadata.TEMPLATES["score"].left_out
        assert list(BY_NAME) == [name for name in actions if name not in left_out]
        assert left_out < set(actions)
        for name, parameter in BY_NAME.items():
            assert parameter["isOptional"] is not actions[name].required, name
        # A run needs either model or models, which a template cannot say.
        assert {name for name in BY_NAME if not BY_NAME[name]["isOptional"]} == {"input", "output"}

    def test_dataflow_knows_every_field(self) -> None:
        read = TemplateMetadata.from_json((TEMPLATE / "metadata.json").read_text(), ignore_unknown_fields=False)
        assert [parameter.name for parameter in read.parameters] == list(BY_NAME)
        assert all(parameter.help_text and parameter.label and parameter.param_type for parameter in read.parameters)

    @pytest.mark.parametrize(
        ("name", "good", "bad"),
        [
            (
                "input",
                ["gs://b/data/*.parquet", "gs://b/x", "bigquery:p.d.t", "bigquery:SELECT 1"],
                ["/tmp/x", "s3://b/x", "x", ""],
            ),
            ("input_format", ["parquet", "csv", "jsonl"], ["xml", "PARQUET"]),
            ("model", ["gs://b/models/credit", "gs://b/m.pt2"], ["models/credit", "gs://", "http://x/y"]),
            ("models", ["gs://b/models.yaml"], ["models.yaml", "gs://"]),
            ("registry", ["gs://b/models"], ["models", "gs://"]),
            ("output", ["gs://b/scored", "gs://b/scored/", "bigquery:p.d.t"], ["scored", "gs:/b"]),
            ("report", ["gs://b/r.json"], ["r.json"]),
            ("limit", ["1", "1000"], ["0", "-3", "many", "1.5"]),
            ("batch_size", ["auto", "256"], ["0", "-3", "many"]),
            ("device", ["auto", "cpu", "cuda", "cuda:1"], ["tpu", "cuda:", "gpu"]),
            ("precision", ["float32", "bfloat16", "float16"], ["int4", "float64"]),
            ("compile", ["true", "false"], ["perhaps", "1"]),
            ("probabilities", ["true", "false"], ["perhaps"]),
            ("overwrite", ["true", "false"], ["perhaps"]),
            ("model_copies", ["1", "4"], ["0", "two"]),
            (
                "accelerator",
                [
                    L4,
                    "type:nvidia-tesla-t4;count:2;install-nvidia-driver;use_nvidia_mps",
                    f"{L4};machine_type:g2-standard-8",
                ],
                ["nvidia-l4", "type:", "type:nvidia-l4 count:1"],
            ),
            ("min_ram", ["16GB", "16GiB", "1.5TB", "16 GB"], ["4", "lots", "16G", "16gb"]),
            ("chunk_bytes", ["64MB", "8MiB", "0.5GB"], ["64", "lots", "64M", "64mb"]),
            ("model_version", ["93a8315dcb20", 64 * "0"], ["latest", "93a8", 65 * "0"]),
            ("no_model_code", ["true", "false"], ["perhaps"]),
            ("allow_env", ["MY_MODEL_MODE"], ["A=B", "1A", ""]),
            ("preprocess", ["credit.rows:clean"], ["credit.rows", "a:b:c", ":b"]),
            ("postprocess", ["credit.rows:only_confident"], ["only_confident"]),
            ("columns", ["*", "id,name", "f_*"], ["", ",", "a,,b"]),
            ("output_format", ["parquet", "csv", "jsonl"], ["xml"]),
        ],
    )
    def test_patterns(self, name: str, good: list[str], bad: list[str]) -> None:
        """They take what the command takes, and refuse what it refuses, or what makes no sense on a launcher."""
        (pattern,) = BY_NAME[name]["regexes"]
        assert [text for text in good if not re.fullmatch(pattern, text)] == []
        assert [text for text in bad if re.fullmatch(pattern, text)] == []
        needed = ("input", "output") if name == "models" else ("input", "model", "output")
        rest = [f"--{other}=gs://b/x" for other in needed if other != name]
        for text in good:
            assert ScoreOptions.parse([*rest, f"--{name}={text}"], score.COMMAND)

    def test_every_parameter_has_examples(self) -> None:
        (marks,) = [mark for mark in TestMetadata.test_patterns.pytestmark if mark.name == "parametrize"]
        assert {case[0] for case in marks.args[1]} == set(BY_NAME)

    def test_launches_in_the_docs(self) -> None:
        """Every value that a launch in the docs gives to a parameter is one that its pattern takes."""
        found = 0
        for launch in re.findall(r"--parameters=\^~\^([^']+)'", (ROOT / "docs" / "dataflow.md").read_text()):
            for assignment in re.sub(r"\s+", "", launch).split("~"):
                name, _, value = assignment.partition("=")
                if name in BY_NAME:
                    found += 1
                    assert all(re.fullmatch(pattern, value) for pattern in BY_NAME[name].get("regexes", [])), assignment
        assert found > 3


def locked(file: Path) -> dict[str, str]:
    """The blocks of a lock, without its comments, by name==version."""
    blocks = re.split(r"\n(?=\S)", file.read_text())
    return {
        block.split()[0]: "\n".join(line for line in block.splitlines() if not line.lstrip().startswith("#")).rstrip(
            "\\ \n"
        )
        for block in blocks
        if re.match(r"[A-Za-z0-9]", block)
    }


def version_in(lock: dict[str, str], name: str) -> str:
    (found,) = [key.partition("==")[2] for key in lock if key.startswith(f"{name}==")]
    return found


class TestImage:
    DOCKERFILE = (TEMPLATE / "Dockerfile").read_text()
    LOCK = locked(ROOT / "requirements.lock")
    IMAGE_LOCK = locked(ROOT / "templates" / "requirements.lock")

    def arguments(self) -> dict[str, str]:
        before = self.DOCKERFILE.partition("\nFROM ")[0]
        return dict(line.removeprefix("ARG ").split("=", 1) for line in before.splitlines() if line.startswith("ARG "))

    def test_versions_are_those_of_the_lock(self) -> None:
        arguments = self.arguments()
        assert arguments["BEAM"] == version_in(self.LOCK, "apache-beam")
        assert arguments["SDK"] == "apache/beam_python${PYTHON}_sdk:${BEAM}"
        requires = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
        low, high = (tuple(map(int, part.strip(">=<").split("."))) for part in requires.split(","))
        assert low <= tuple(map(int, arguments["PYTHON"].split("."))) < high
        assert f"/python{arguments['PYTHON'].replace('.', '')}-template-launcher-base:" in arguments["LAUNCHER"]

    def test_cuda_is_that_of_pytorch(self) -> None:
        """The base of GPU images, wherever it is named; a base of the same major version serves PyTorch's."""
        major = version_in(self.LOCK, "cuda-toolkit").split(".")[0]
        for file in (TEMPLATE / "Dockerfile", ROOT / "templates" / "flex_template.sh", ROOT / "docs" / "dataflow.md"):
            named = re.findall(r"nvidia/cuda:(\d+)\.[\d.]+-base-ubuntu([\d.]+)", file.read_text())
            assert named, file
            assert set(named) == {(major, self.arguments()["BASE"].removeprefix("ubuntu:"))}, file

    def test_versions_are_in_one_block(self) -> None:
        after = self.DOCKERFILE.partition("\nFROM ")[2]
        steps = "\n".join(line for line in after.splitlines() if not line.lstrip().startswith("#"))
        assert re.findall(r"\d+\.\d+|:latest", steps) == []

    def test_lock_of_the_image_is_part_of_the_lock(self) -> None:
        """The same versions with the same hashes, without the tools of development."""
        assert set(self.IMAGE_LOCK) < set(self.LOCK)
        assert {
            key for key, block in self.IMAGE_LOCK.items() if block.split("\\", 1)[1] != self.LOCK[key].split("\\", 1)[1]
        } == set()
        assert all("--hash=sha256:" in block for block in self.IMAGE_LOCK.values())
        names = {key.split("==")[0] for key in self.IMAGE_LOCK}
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        assert {re.split(r"[\[<>=]", dependency)[0] for dependency in project["dependencies"]} <= names
        assert not names & {"pytest", "mypy", "ruff", "hypothesis"}

    def test_what_is_copied_is_there(self) -> None:
        ignored = (ROOT / ".dockerignore").read_text().split()
        for line in re.findall(r"^COPY (?!--from)(.+)$", self.DOCKERFILE, re.MULTILINE):
            for source in shlex.split(line)[:-1]:
                assert (ROOT / source).exists(), source
                assert f"!{source}" in ignored, source

    def test_steps(self) -> None:
        assert "--require-hashes -r templates/requirements.lock" in self.DOCKERFILE
        assert 'ENTRYPOINT ["/opt/apache/beam/boot"]' in self.DOCKERFILE
        (script,) = re.findall(r"FLEX_TEMPLATE_PYTHON_PY_FILE=/torchbeam/(\S+)", self.DOCKERFILE)
        for template in template_metadata.TEMPLATES:
            assert (ROOT / script.replace("${TEMPLATE}", template)).exists()
        assert "FLEX_TEMPLATE_PYTHON_REQUIREMENTS_FILE=" not in self.DOCKERFILE
        assert "FLEX_TEMPLATE_PYTHON_SETUP_FILE=" not in self.DOCKERFILE


def test_commands_that_make_prints() -> None:
    """`make template` prints and runs nothing; it asks for what it needs."""
    make = ["make", "--no-print-directory", "-C", str(ROOT), "template"]
    done = subprocess.run(make, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "PROJECT=" in done.stderr
    done = subprocess.run(
        [*make, "PROJECT=my-project-1", "BUCKET=my-bucket"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for part in (
        "gcloud builds submit",
        "flex-template build gs://my-bucket/",
        "flex-template run",
        "--project=my-project-1",
    ):
        assert part in done.stdout, part
    # The shell can read what was printed.
    assert subprocess.run(["bash", "-n"], input=done.stdout, text=True, check=False).returncode == 0
