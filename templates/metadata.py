"""Makes `metadata.json` of a Flex Template from the options of its command, so that the two cannot part.

    python templates/metadata.py score      writes templates/score/metadata.json

The file tells Dataflow the parameters, and the console how to ask for them.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.command.options import ModelOptions, RunOptions, SinkOptions, SourceOptions
from pipelines.command.several import SeveralModelsOptions
from pipelines.jobs.stream_options import (
    StreamModelOptions,
    StreamRunOptions,
    StreamSinkOptions,
    StreamSourceOptions,
)

# Paths on a launcher are those of Cloud Storage (the image has no client of S3); a table of BigQuery is `bigquery:…`.
PATH = r"gs://[^/\s]+(/.*)?"
TABLE = r"bigquery:.+"
ACCELERATOR = r"type:[a-z0-9-]+(;[a-z_-]+(:[^;\s]+)?)*"
RAM = r"[0-9]+(\.[0-9]+)?\s?([KMGTP]i?B)"
FUNCTION = r"[A-Za-z_][\w.]*:[A-Za-z_]\w*"
REGISTERED = r"[A-Za-z0-9][A-Za-z0-9._-]*@[A-Za-z0-9_-]+|models:/.+"
NUMBER = r"[1-9][0-9]*"
DURATION = r"[0-9]+(\.[0-9]+)?(ms|s|m|h)"
TOPIC = r"(kafka://[^/\s]+/[^/\s]+|pubsub://[^/\s]+/topics/[^/\s]+)"
SOURCE = r"(kafka://[^/\s]+/[^/\s]+|pubsub://[^/\s]+/(topics|subscriptions)/[^/\s]+)"

OF_MODEL = {
    "registry": PATH,
    "batch_size": f"auto|{NUMBER}",
    "device": r"auto|cpu|cuda(:[0-9]+)?",
    "model_copies": NUMBER,
    "accelerator": ACCELERATOR,
    "min_ram": RAM,
    "model_version": r"[0-9a-f]{12,64}",
    "allow_env": r"[A-Za-z_][A-Za-z0-9_]*",
    "preprocess": FUNCTION,
    "postprocess": FUNCTION,
}


@dataclass(frozen=True)
class Template:
    """What the options alone do not tell.

    Attributes:
        left_out: options that make no sense for a job that a launcher submits.
        values: the pattern of each option whose text has a form.
        streaming: whether its job runs until it is drained.
    """

    name: str
    description: str
    groups: tuple[type, ...]
    left_out: frozenset[str]
    values: Mapping[str, str]
    streaming: bool = False


TEMPLATES = {
    "score": Template(
        name="Score a table with a PyTorch model",
        description="Scores files of rows with a PyTorch model through RunInference, with every row accounted for.",
        groups=(SourceOptions, ModelOptions, SeveralModelsOptions, SinkOptions, RunOptions),
        # The launcher chooses the runner and does not wait to count; local paths and its terminal are nobody's.
        left_out=frozenset(
            {
                *("runner", "spark_version", "spark_master_ui", "wait", "max_failure_rate", "shared_filesystem"),
                *("verbose", "device_map"),  # the image is without the extra `large`
            }
        ),
        values={
            "input": f"{PATH}|{TABLE}",
            "limit": NUMBER,
            "model": f"{PATH}|{REGISTERED}",
            "models": PATH,
            **OF_MODEL,
            "chunk_bytes": RAM,
            "output": f"{PATH}|{TABLE}",
            "columns": r"[^,]+(,[^,]+)*",
            "report": PATH,
        },
    ),
    "stream": Template(
        name="Score a stream with a PyTorch model",
        description="Scores the messages of Kafka or Pub/Sub with a PyTorch model through RunInference, in micro-batches.",
        groups=(StreamSourceOptions, StreamModelOptions, StreamSinkOptions, StreamRunOptions),
        left_out=frozenset(
            {
                *("runner", "wait", "shared_filesystem", "verbose", "device_map"),
                *("stop_after", "metrics_port"),  # of a process on one machine
            }
        ),
        values={
            "input": SOURCE,
            "group": r"[A-Za-z0-9._-]+",
            "kafka_config": PATH,
            "schema": PATH,
            "sample": PATH,
            "schema_registry": r"https?://.+",
            "max_message_bytes": r"[0-9]+(\.[0-9]+)?\s?([KMG]i?)?B",
            "max_batch_rows": NUMBER,
            "max_batch_delay": DURATION,
            "model": f"{PATH}|{REGISTERED}",
            "refresh_every": DURATION,
            **OF_MODEL,
            "output": TOPIC,
            "dead_letters": TOPIC,
            "accounts": TOPIC,
            "columns": r"[^,]+(,[^,]+)*",
            "window": DURATION,
        },
        streaming=True,
    ),
}


def metadata(template: Template) -> dict[str, Any]:
    """The content of `metadata.json`."""
    parameters = [
        _parameter(item, group.TITLE, template)  # type: ignore[attr-defined]
        for group in template.groups
        for item in dataclasses.fields(group)
        if item.name not in template.left_out
    ]
    modes = {"supportsAtLeastOnce": True, "supportsExactlyOnce": True} if template.streaming else {}
    return {
        "name": template.name,
        "description": template.description,
        "streaming": template.streaming,
        **modes,
        "parameters": parameters,
    }


def _parameter(item: dataclasses.Field[Any], group: str, template: Template) -> dict[str, Any]:
    about = item.metadata
    text = about["help"].replace("local, gs:// or s3://", "gs://")
    made: dict[str, Any] = {
        "name": about.get("flag") or item.name,
        "label": item.name.replace("_", " ").capitalize(),
        "helpText": text[0].upper() + text[1:] + ".",
        "groupName": group.capitalize(),
        "isOptional": item.default is not dataclasses.MISSING,
        "paramType": "TEXT",
    }
    if about.get("switch"):
        made |= {"paramType": "BOOLEAN", "defaultValue": str(item.default).lower(), "regexes": ["^(true|false)$"]}
    elif about["choices"]:
        choices = list(about["choices"])
        made |= {"paramType": "ENUM", "enumOptions": [{"value": choice, "label": choice} for choice in choices]}
        made["regexes"] = [f"^({'|'.join(choices)})$"]
        if item.default is not None:
            made["defaultValue"] = item.default
    elif item.name in template.values:
        made["regexes"] = [f"^({template.values[item.name]})$"]
    return made


def main(names: list[str]) -> int:
    """Writes the files of the templates that are named, or of all."""
    for name in names or TEMPLATES:
        file = Path(__file__).parent / name / "metadata.json"
        file.write_text(render(TEMPLATES[name]))
        print(file)
    return 0


def render(template: Template) -> str:
    """The text of `metadata.json`."""
    return json.dumps(metadata(template), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
