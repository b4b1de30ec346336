"""The Flex Template `stream`: its parameters, and the job that its script submits."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import metadata as template_metadata
import pytest
from deadlines import WAIT_SECONDS
from fake_dataflow import JOB_ID, StagedPipeline, fake_dataflow, launch_arguments
from google.cloud.dataflow_v1beta3.types import TemplateMetadata
from stream_runs import save_linear

from pipelines import stream
from pipelines.command.options import parser
from pipelines.jobs.stream_options import StreamOptions

sys.path.append(str(Path(__file__).parents[1] / "transforms" / "streams"))
from pubsub_server import MISSING, PROGRAM, PROJECT, create_subscription, create_topic, pubsub_server

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "templates" / "stream"
BY_NAME = {each["name"]: each for each in json.loads((TEMPLATE / "metadata.json").read_text())["parameters"]}


def test_is_made_of_the_options() -> None:
    made = template_metadata.render(template_metadata.TEMPLATES["stream"])
    assert (TEMPLATE / "metadata.json").read_text() == made, "run make template-metadata"


def test_parameters_are_options_of_the_command() -> None:
    template = template_metadata.TEMPLATES["stream"]
    actions = {
        action.option_strings[0].removeprefix("--"): action
        for action in parser(stream.COMMAND, template.groups)._actions
        if action.dest != "help"
    }
    assert list(BY_NAME) == [name for name in actions if name not in template.left_out]
    assert template.left_out < set(actions)
    assert {name for name in BY_NAME if not BY_NAME[name]["isOptional"]} == {"input", "model", "output", "dead_letters"}


def test_dataflow_knows_every_field() -> None:
    read = TemplateMetadata.from_json((TEMPLATE / "metadata.json").read_text(), ignore_unknown_fields=False)
    assert [parameter.name for parameter in read.parameters] == list(BY_NAME)
    assert read.streaming


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        (
            "input",
            ["kafka://b:9092/t", "pubsub://p/subscriptions/s", "pubsub://p/topics/t"],
            ["folder:x", "kafka://b:9092"],
        ),
        ("output", ["kafka://b:9092/t", "pubsub://p/topics/t"], ["pubsub://p/subscriptions/s", "gs://b/x"]),
        ("max_batch_delay", ["50ms", "0.5s", "1m"], ["50", "fast"]),
        ("max_message_bytes", ["8MB", "1MiB", "100B"], ["8", "lots"]),
        ("refresh_every", ["60s", "1h"], ["60"]),
        ("model", ["gs://b/models/*", "credit@champion", "gs://b/CURRENT"], ["models/credit"]),
        ("from", ["earliest", "latest"], ["now"]),
        ("delivery", ["at_least_once", "exactly_once"], ["once"]),
        ("message_format", ["json", "avro", "text", "bytes"], ["xml"]),
    ],
)
def test_patterns(name: str, good: list[str], bad: list[str]) -> None:
    (pattern,) = BY_NAME[name]["regexes"]
    assert [text for text in good if not re.fullmatch(pattern, text)] == []
    assert [text for text in bad if re.fullmatch(pattern, text)] == []
    needed = {
        "input": "kafka://b:9092/t",
        "model": "m",
        "output": "kafka://b:9092/o",
        "dead_letters": "kafka://b:9092/d",
    }
    for text in good:
        given = needed | {name: text}
        assert StreamOptions.parse([f"--{flag}={value}" for flag, value in given.items()], stream.COMMAND)


@pytest.mark.slow(15)
@pytest.mark.skipif(not PROGRAM.exists(), reason=MISSING)
def test_posted_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script submits a streaming job: its reader is a splittable DoFn without an end."""
    save_linear(tmp_path / "model")
    with pubsub_server() as address, fake_dataflow() as service:
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", address)
        for topic in ("rows", "scored", "dead"):
            create_topic(topic)
        create_subscription("rows", "rows")
        values = {
            "input": f"pubsub://{PROJECT}/subscriptions/rows",
            "output": f"pubsub://{PROJECT}/topics/scored",
            "dead_letters": f"pubsub://{PROJECT}/topics/dead",
            "model": str(tmp_path / "model"),
            "probabilities": "true",
            "shared_filesystem": "true",  # a local path stands in for a bucket
        }
        arguments = [f"--{name}={value}" for name, value in values.items()]
        done = subprocess.run(
            [
                sys.executable,
                str(TEMPLATE / "main.py"),
                *arguments,
                *launch_arguments(tmp_path / "staging", service.url),
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=WAIT_SECONDS,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        assert done.returncode == 0, done.stderr
        assert JOB_ID in done.stdout
        (job,) = service.posted
    assert job["type"] in (2, "JOB_TYPE_STREAMING")  # of the API; Beam sends the number
    staged = StagedPipeline.read(tmp_path / "staging")
    assert any("ScoreStream/RunInference" in each.unique_name for each in staged.proto.components.transforms.values())
    urns = {each.spec.urn for each in staged.proto.components.transforms.values()}
    assert "beam:transform:pardo:v1" in urns
