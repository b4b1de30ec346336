"""Writes docs/api.md from the signatures and docstrings of the public names.

python docs/make_api.py
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any, ForwardRef

import torchbeam

PAGE = Path(__file__).parent / "api.md"
WIDTH = 100  # of a signature on one line
OURS = ("handlers", "transforms", "pipelines")

# Every public name, in the order of the page.
CHAPTERS = {
    "From Python": [
        *("score", "load", "Model", "ScoreResult"),
        *("spark.score", "spark.SparkScores", "ray.score", "ray.RayScores"),
    ],
    "Models": ["ModelDir", "Trust", "StateDict", "train", "ModelRegistry", "RegisteredModel", "RowPredictor"],
    "Rows": ["TorchScore"],
    "Chunks": [
        "Score",
        "ScoredRows",
        "Counts",
        "plan_input",
        "Input",
        "ReadChunks",
        "Read",
        "FileRead",
        "Sequences",
        "SequenceRows",
        "WriteChunks",
        "Part",
    ],
    "Streams": ["ScoreStream", "MessageFormat", "MicroBatches"],
    "Several models": ["ScoreModels", "ModelSettings", "ByKey", "ModelSplit", "ModelCounts"],
    "Elements": [
        *("TorchModelHandler", "RunTorchInference", "SplitFailures", "Inferences", "DeadLetter", "FailedPrediction"),
        *("skip_failures", "Padding", "Ragged"),
    ],
    "Newer models while a pipeline runs": ["ModelWatch", "Refresh", "WatchModel"],
    "Where and how a model runs": ["Placement", "Batching", "ResourceHints"],
    "Errors": [
        *("TorchbeamError", "UsageError", "BrokenModelError", "TrainingError", "BrokenFileError", "ServiceError"),
        *("DeviceLostError", "AccountingError", "PublishError", "FailureRateError", "RowsFailedError"),
    ],
}

HEAD = """# API

Written by `make api` from the docstrings; do not edit. All names are those of `torchbeam`, and are imported where they are
first used: `import torchbeam` alone imports neither PyTorch nor Beam. `torchbeam.__version__` is the installed version.
Methods that Beam calls are left out.
"""

_SECTION = re.compile(r"^(Args|Attributes|Raises|Returns|Yields):$")


def page() -> str:
    """The whole page, in Markdown."""
    parts = [HEAD]
    for title, names in CHAPTERS.items():
        parts.append(f"## {title}\n")
        for name in names:
            parts += entry(name, attrgetter(name)(torchbeam))
    return "\n".join(parts).rstrip("\n") + "\n"


def entry(name: str, thing: Any) -> Iterator[str]:
    """The entry of a class or function, and of the methods of a class that are its own."""
    yield f"### {name}\n"
    is_error = isinstance(thing, type) and issubclass(thing, Exception)
    if is_error:
        yield f"Base: `{thing.__base__.__name__}`.\n"
    else:
        yield f"```python\n{signature(name, thing)}\n```\n"
    yield markdown(thing.__doc__)
    if isinstance(thing, type) and not is_error:
        for member, value in vars(thing).items():
            function = value.fget if isinstance(value, property) else getattr(value, "func", value)
            function = function.__func__ if isinstance(function, staticmethod | classmethod) else function
            if member.startswith("_") or not inspect.isfunction(function) or _is_of_others(thing, member):
                continue
            yield f"#### {name}.{member}\n"
            if function is value or isinstance(value, staticmethod | classmethod):
                yield f"```python\n{signature(member, function)}\n```\n"
            yield markdown(function.__doc__)


def _is_of_others(kind: type, member: str) -> bool:
    """Whether a method overrides one of a class that is not ours, which calls it."""
    return any(hasattr(base, member) for base in kind.__mro__[1:] if base.__module__.partition(".")[0] not in OURS)


def signature(name: str, thing: Any) -> str:
    """`name(arguments) -> result`, on several lines where it is long."""
    found = inspect.signature(thing)
    shown: list[str] = []
    star = False
    for parameter in found.parameters.values():
        if parameter.name == "self":
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not star:
            shown.append("*")
            star = True
        star = star or parameter.kind is parameter.VAR_POSITIONAL
        shown.append(_parameter(parameter))
    result = (
        ""
        if isinstance(thing, type) or found.return_annotation is found.empty
        else f" -> {_type(found.return_annotation)}"
    )
    line = f"{name}({', '.join(shown)}){result}"
    return line if len(line) <= WIDTH else "\n".join([f"{name}(", *(f"    {each}," for each in shown), f"){result}"])


def _parameter(parameter: inspect.Parameter) -> str:
    prefix = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    kind = "" if parameter.annotation is parameter.empty else f": {_type(parameter.annotation)}"
    default = "" if parameter.default is parameter.empty else f"{' = ' if kind else '='}{_value(parameter.default)}"
    return f"{prefix}{parameter.name}{kind}{default}"


def _type(annotation: Any) -> str:
    if isinstance(annotation, ForwardRef):  # of a NamedTuple
        return annotation.__forward_arg__
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _value(value: Any) -> str:
    """A default as one would write it: dataclasses with the fields alone that are not their defaults."""
    if dataclasses.is_dataclass(value):
        given = {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
        other = [
            f"{each.name}={given[each.name]!r}"
            for each in dataclasses.fields(value)
            if given[each.name] != each.default
        ]
        return f"{type(value).__name__}({', '.join(other)})"
    if repr(value) == "<factory>":  # of a dataclass
        return "{}"
    return f"{value:_}" if type(value) is int and value >= 10_000 else repr(value)


def markdown(docstring: str | None) -> str:
    """A docstring in Google's style, with its sections as lists."""
    lines = inspect.cleandoc(docstring or "").splitlines()
    out: list[str] = []
    section = ""
    for line in lines:
        if match := _SECTION.match(line):
            section = match.group(1)
            out += [f"**{section}**", ""]
        elif not line.startswith(" "):
            section = section if not line else ""
            out.append(line)
        elif section in ("Returns", "Yields"):
            out.append(line[4:])
        elif section and (item := re.match(r" {4}(\*{0,2}[\w.]+): (.*)", line)):
            out.append(f"- `{item.group(1)}`: {item.group(2)}")
        else:
            out.append(f"  {line.strip()}" if section else line)
    return "\n".join(out).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
    print(PAGE)
