"""`python -m pipelines.describe`: what a model directory holds: size, inputs, outputs, costs, version."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from typing import Any

from handlers.errors import TorchbeamError, UsageError, one_line
from handlers.isolation import contained
from handlers.model.directory import ModelDir
from handlers.redact import remember
from pipelines.command import process
from pipelines.command.options import Command, TrustedModel, flag, parser, pick

PROG = "torchbeam describe"
COMMAND = Command(
    prog=PROG,
    description="Tell what a model directory holds: parameters, inputs, outputs, the cost of a row, the version.",
    usage="--model=DIR [--json]",
    exit_codes="0 told, 2 the directory cannot be used, with what it lacks",
)


@dataclass(frozen=True)
class DescribeOptions(TrustedModel):
    """What is described."""

    TITLE = "describe"

    json: bool = flag("write JSON")


def main(argv: list[str] | None = None) -> int:
    """Runs the command and gives its exit code."""
    try:
        arguments = sys.argv[1:] if argv is None else argv
        remember(arguments)
        values, others = parser(COMMAND, (DescribeOptions,)).parse_known_args(arguments)
        if others:
            raise UsageError(f'unknown option "{others[0]}"; see --help')
        options = pick(DescribeOptions, values)
        found = contained(_summary, options)
    except TorchbeamError as error:
        print(f"{PROG}: error: {one_line(error, 1000)}", file=sys.stderr)
        return 2
    print(json.dumps(found, indent=2, ensure_ascii=False) if options.json else "\n".join(_lines(found)))
    return 0


def _summary(options: DescribeOptions) -> dict[str, Any]:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    model = ModelDir(options.model, options.trust)
    model.set_environment()
    from handlers.model.summary import summary  # torch takes its time, and reads the environment

    return summary(model)


def _lines(found: dict[str, Any]) -> list[str]:
    """For people: one line a thing, aligned."""
    lines = [
        ("name", found["name"]),
        ("task", found["task"]),
        ("format", found["format"]),
        ("version", found["version"]),
        ("license", found["license"] or "not told"),
    ]
    if "parameters" in found:
        lines.append(("parameters", f"{found['parameters']:,} ({found['trainable_parameters']:,} trainable)"))
        lines += [(f"  {name}", f"{count:,}") for name, count in found["parameters_by_module"].items()]
        lines.append(("memory", f"{found['bytes'] / 1e6:,.1f} MB"))
    flops = found["flops_per_row"]
    lines.append(("FLOPs a row", "not told" if flops is None else f"{flops:,}"))
    lines += [(f"input {each['name']}", _input(each)) for each in found["inputs"]]
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


def _input(each: dict[str, Any]) -> str:
    """An input in words: its encoder, its columns and its options."""
    columns = f" of {', '.join(each['columns'])}" if each.get("columns") else ""
    options = {key: value for key, value in each.items() if key not in ("name", "columns", "encoder")}
    told = ", ".join(f"{key} {value}" for key, value in options.items() if value not in (None, ""))
    return f"{each.get('encoder', 'numeric')}{columns}{f' ({told})' if told else ''}"


if __name__ == "__main__":
    process.run(main)
