"""The schema of `model.yaml`: the name of a model, where its weights are, and which columns it takes and gives."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from handlers.encode.specs import SPECS, AnyInput
from handlers.errors import UsageError
from handlers.model.device_map import PlacementSpec
from handlers.model.formats import FORMATS
from handlers.model.sequences import SequencesSpec
from handlers.predict.heads import TASKS, Head

if TYPE_CHECKING:  # it imports torch
    from handlers.predict.loaded import LoadedModel

FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def _function_name(value: str) -> str:
    if not FUNCTION.fullmatch(value):
        raise ValueError(f'"{value}" is not of the form module:function')
    return value


def _key_of(table: Mapping[str, object]) -> AfterValidator:
    """Accepts the names in a table; the error lists them."""

    def check(value: str) -> str:
        if value not in table:
            raise ValueError(f"must be one of {', '.join(table)}")
        return value

    return AfterValidator(check)


FunctionName = Annotated[str, AfterValidator(_function_name)]
Task = Annotated[str, _key_of(TASKS)]
FormatName = Annotated[str, _key_of(FORMATS)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSpec(_Strict):
    """The contents of `model.yaml`; docs/model-directory.md describes every field."""

    name: Annotated[str, Field(min_length=1)]
    task: Task = "raw"
    format: FormatName | None = None
    weights: Annotated[str, Field(min_length=1)] | None = None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    architecture: FunctionName | None = None
    arguments: dict[str, Any] = {}
    loader: FunctionName | None = None
    placement: PlacementSpec | None = None
    sequences: SequencesSpec | None = None
    features: dict[str, str] = {}
    inputs: tuple[AnyInput, ...] = ()
    output: Literal["logits", "probabilities"] = "logits"
    labels: tuple[str, ...] | None = None
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    pooling: Literal["mean", "cls", "last", "max"] | None = None
    normalize: bool | None = None
    env_vars: dict[Annotated[str, Field(pattern=r"^[^=\x00]+$")], Annotated[str, Field(pattern=r"^[^\x00]*$")]] = {}
    preprocess: tuple[FunctionName, ...] = ()
    postprocess: tuple[FunctionName, ...] = ()

    @model_validator(mode="after")
    def _ways_to_load(self) -> ModelSpec:
        if self.loader:
            for option in ("format", "architecture"):
                if getattr(self, option):
                    raise ValueError(f"{option} has no meaning together with loader; remove one of them")
        else:
            if self.format is None:
                raise ValueError(f"format is missing; write one of {', '.join(FORMATS)}")
            if self.weights is None and not FORMATS[self.format].is_directory:
                raise ValueError("weights is missing; write the name of the weights file")
            needs_architecture = FORMATS[self.format].needs_architecture
            if needs_architecture and not self.architecture:
                raise ValueError(f"architecture is missing; {self.format} needs it, as module:Class")
            if not needs_architecture and self.architecture:
                raise ValueError(f"architecture has no meaning for {self.format}, which contains its own")
        if self.weights and (Path(self.weights).is_absolute() or ".." in Path(self.weights).parts):
            raise ValueError(f'weights must name a file in the model directory, not "{self.weights}"')
        names = [spec.name for spec in self.inputs]
        if len(set(names)) != len(names):
            raise ValueError("two inputs have the same name")
        if not self.inputs and not (self.format and FORMATS[self.format].tells_inputs):
            *others, last = (name for name, each in FORMATS.items() if each.tells_inputs)
            raise ValueError(f"inputs is missing; only {', '.join(others)} and {last} models declare theirs")
        frames = [name for name, each in FORMATS.items() if each.takes_frames]
        if self.format not in frames and any(spec.encoder == "frame" for spec in self.inputs):
            raise ValueError(f"encoder frame is for models of format {' and '.join(frames)}")
        if self.placement and not (self.format and FORMATS[self.format].can_be_placed):
            able = " and ".join(name for name, each in FORMATS.items() if each.can_be_placed)
            raise ValueError(f"placement works with format {able} only; save the model as safetensors")
        if self.task == "multilabel" and not self.labels:
            raise ValueError("labels is missing; multilabel needs them")
        if self.task == "forecast":
            if self.sequences is None:
                raise ValueError("sequences is missing; task forecast needs it")
            if self.sequences.horizon is None:
                raise ValueError("sequences.horizon is missing; task forecast needs it")
            if not self.sequences.targets:
                raise ValueError("sequences.target is missing; task forecast needs it where there are no columns")
        for option in ("pooling", "normalize"):
            if getattr(self, option) is not None and not (self.format == "huggingface" and self.task == "embedding"):
                raise ValueError(f"{option} is an option of format huggingface with task embedding")
        return self

    @property
    def numeric_columns(self) -> tuple[str, ...]:
        """Names and patterns of the columns that feed inputs of floats: text formats read them as float64."""
        inputs = [name for each in self.inputs if each.takes_fractions for name in each.patterns]
        statistics = [each.column for each in self.sequences.computed if each.function] if self.sequences else []
        return tuple(dict.fromkeys([*inputs, *statistics]))

    @property
    def head(self) -> Head:
        """How the outputs become columns, as `model.yaml` says; see `head_of`."""
        sequences = self.sequences if self.task == "forecast" else None
        horizon, targets = (sequences.horizon or 1, sequences.targets) if sequences else (1, ())
        return Head(self.task, self.labels, self.output, self.threshold, horizon=horizon, targets=targets)


def head_of(spec: ModelSpec, model: LoadedModel) -> Head:
    """How the outputs become columns: as `model.yaml` says, and what it leaves out as the model itself knows."""
    output = spec.output if "output" in spec.model_fields_set else model.output or spec.output
    return replace(spec.head, labels=spec.labels or model.labels, output=output)


def parse_spec(text: str, path: str) -> ModelSpec:
    """Reads the text of a `model.yaml`; raises `UsageError` that names the field at fault and `path`."""
    return spec_of(parse_yaml(text, path), path)


def not_yaml(path: str, error: Exception) -> UsageError:
    """The error of a file that is not YAML, with the line and column where it breaks off."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is not None and problem:
        return UsageError(f"{path} is not YAML: line {mark.line + 1}, column {mark.column + 1}: {problem}")
    return UsageError(f"{path} is not YAML: {' '.join(str(error).split())}")


def parse_yaml(text: str, path: str) -> dict[str, Any]:
    """The fields in the text of a `model.yaml`, not validated yet; raises `UsageError` where it is not a mapping."""
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise not_yaml(path, error) from None
    if not isinstance(content, dict):
        raise UsageError(f"{path} must be a mapping of fields such as name, format and weights")
    return content


def spec_of(content: Mapping[str, Any], path: str) -> ModelSpec:
    """Validates the fields of a `model.yaml`; raises `UsageError` that names the field at fault and `path`."""
    try:
        return ModelSpec.model_validate(content)
    except ValidationError as error:
        raise UsageError(f"{path}: {explain(error)}") from None


def sequences_spec(content: Mapping[str, Any]) -> SequencesSpec:
    """Validates the fields of `sequences`; raises `UsageError` that names the field at fault."""
    try:
        return SequencesSpec.model_validate(content)
    except ValidationError as error:
        raise UsageError(f"sequences: {explain(error)}") from None


# Pydantic speaks of Python's types, which the author of a YAML file need not know.
_IN_YAML = {
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "string_type": "must be text",
    "bool_type": "must be true or false",
    "too_short": "must not be empty",
}


def message_of(error: ErrorDetails) -> str:
    """The message of an error of pydantic, in the words of YAML."""
    return _IN_YAML.get(error["type"]) or error["msg"].removeprefix("Value error, ")


def explain(error: ValidationError) -> str:
    """What is wrong with a `model.yaml`, in a line that names the field."""
    first = error.errors()[0]
    # Union members show up in the location: types as names with brackets, inputs by their encoder. People know only the
    # fields and their indices.
    location = first["loc"]
    parts = [part for part in location if not (isinstance(part, str) and "[" in part)]
    encoder = ""
    if len(parts) > 2 and parts[0] == "inputs" and parts[2] in SPECS:
        encoder = str(parts.pop(2))
    where = ".".join(map(str, parts))
    if first["type"] == "extra_forbidden":
        others = [name for name, spec in SPECS.items() if name != encoder and parts[-1] in spec.model_fields]
        if encoder and others:
            return f"{where}: {parts[-1]} is an option of the {others[0]} encoder, and this input has encoder {encoder}"
        return f'unknown field "{where}"; see docs/model-directory.md for the fields there are'
    if first["type"] == "union_tag_invalid":
        return f'field "{where}.encoder": must be one of {", ".join(SPECS)}, not {str(first["input"].get("encoder"))[:80]!r}'
    if first["type"] == "missing":
        return f'field "{where}" is missing'
    message = message_of(first)
    if not where:
        return message
    given = first["input"]
    return f'field "{where}": {message}' + ("" if isinstance(given, dict) else f", not {str(given)[:80]!r}")
