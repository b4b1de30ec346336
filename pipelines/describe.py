"""`python -m pipelines.describe`: describes a model directory: size, inputs, outputs, cost of a row, version."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

from handlers.errors import TorchbeamError, UsageError
from handlers.model.directory import ModelDir
from pipelines.command import process
from pipelines.command.errors import FINISHED
from pipelines.command.options import Command, TrustedModel, flag, parse_one
from pipelines.command.values import size

PROG = "torchbeam describe"
COMMAND = Command(
    prog=PROG,
    description="Describe a model directory: parameters, inputs, outputs, the cost of a row, the version.",
    usage="--model=DIR [--json]",
    exit_codes="0 described, 2 wrong usage or the directory cannot be used, 130 interrupted",
    interrupted="",
    runs_beam=False,
)


@dataclass(frozen=True)
class DescribeOptions(TrustedModel):
    """The model to describe, and the format."""

    TITLE = "describe"

    json: bool = flag("write JSON")
    verbose: bool = flag("show the tracebacks of errors")


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return process.execute(COMMAND, argv, _parse, _run)


def _parse(argv: list[str], command: Command) -> DescribeOptions:
    return parse_one(DescribeOptions, argv, command)


def _run(options: DescribeOptions) -> int:
    try:
        model = ModelDir(options.model, options.trust, options.registry)
        found = summary_of(model)
    except UsageError:
        raise
    except TorchbeamError as error:  # the directory cannot be used, so the command was given the wrong one
        raise UsageError(str(error)) from error
    print(json.dumps(found, indent=2, ensure_ascii=False) if options.json else "\n".join(lines_of(found)))
    return FINISHED


def summary_of(model: ModelDir) -> dict[str, Any]:
    """The summary of a model, which is loaded for it; see `handlers.model.summary`."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    model.set_environment()
    from handlers.model.summary import summary  # imports torch, which reads the environment

    return summary(model)


def lines_of(found: dict[str, Any]) -> list[str]:
    """One aligned line for each property."""
    lines = [
        *([("registry", found["registry"])] if found.get("registry") else []),
        ("name", found["name"]),
        ("task", found["task"]),
        ("format", found["format"]),
        ("version", found["version"]),
        *([("model", found["model"])] if found["model"] else []),
        ("license", found["license"] or "unknown"),
    ]
    if "parameters" in found:
        lines.append(("parameters", f"{found['parameters']:,} ({found['trainable_parameters']:,} trainable)"))
        lines += [(f"  {name}", f"{count:,}") for name, count in found["parameters_by_module"].items()]
    if "bytes" in found:
        lines.append(("memory", size(found["bytes"])))
    flops = found["flops_per_row"]
    lines.append(("FLOPs a row", "unknown" if flops is None else f"{flops:,}"))
    lines += [(f"input {each['name']}", _input(each)) for each in found["inputs"]]
    lines += [(f"sequences {name}", _plain(value)) for name, value in found["sequences"].items()]
    lines += [(f"feature {name}", text) for name, text in found["features"].items()]
    for each in found["outputs"]:
        shape = ", ".join(["rows", *map(str, each["shape"])])
        lines.append((f"output {each['name']}", f"{each['dtype']} of ({shape})"))
    if found["labels"]:
        shown = found["labels"][:10]
        lines.append(
            ("labels", ", ".join(shown) + (f", … {len(found['labels'])} in all" if len(found["labels"]) > 10 else ""))
        )
    for stage in ("preprocess", "postprocess"):
        lines += [(stage, name) for name in found[stage]]
    width = max(len(name) for name, _ in lines) + 2
    return [f"{name:{width}}{value}" for name, value in lines]


def _plain(value: Any) -> str:
    """Lists without brackets, other values as YAML on one line writes them."""
    if isinstance(value, list) and not any(isinstance(each, dict) for each in value):
        return ", ".join(map(str, value))
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)


def _input(each: dict[str, Any]) -> str:
    """One line about an input: its encoder, columns and options."""
    columns = f" of {', '.join(each['columns'])}" if each.get("columns") else ""
    options = {key: value for key, value in each.items() if key not in ("name", "columns", "encoder")}
    shown = ", ".join(f"{key} {value}" for key, value in options.items() if value not in (None, ""))
    return f"{each.get('encoder', 'numeric')}{columns}{f' ({shown})' if shown else ''}"


if __name__ == "__main__":
    process.run(main, PROG)
