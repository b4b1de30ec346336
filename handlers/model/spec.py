"""The schema of `model.yaml`: what a model is called, where its weights are, and which columns it takes and gives."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    ValidationError,
    model_validator,
)

from handlers.errors import UsageError

FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")

TensorDtype = Literal["float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]
Task = Literal["classification", "multilabel", "regression", "raw"]
Format = Literal["safetensors", "state_dict", "torch_export", "torchscript"]


def _function_name(value: str) -> str:
    if not FUNCTION.fullmatch(value):
        raise ValueError(f'"{value}" is not of the form module:function')
    return value


FunctionName = Annotated[str, AfterValidator(_function_name)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class InputSpec(_Strict):
    """One input of the model: which columns it is made of, and how they become a tensor of (rows, *shape).

    Attributes:
        name: the name of the parameter of `forward`; free where there is only one.
        columns: column names and patterns (`f_*`), in order; the column of the input's own name where there are none.
        encoder: `numeric` (numbers, flags, dates and lists of them) or `categorical` (values become codes, int64).
        dtype: of the tensor; float32 for numeric inputs and int64 for categorical ones, or what the exported model says.
        shape: of one row; `[number of values]` by default, `[]` for a single value without an axis of its own.
        fill: what stands in for a null; without it a null is a row error.
        allow_nonfinite: whether NaN and infinity may go into the model; if not, they are row errors.
        timestamp: the unit since 1970-01-01 UTC in which dates and timestamps are counted.
        categories: the values of a categorical input; the code of a value is its place in this list.
        num_categories: for columns that hold codes already: codes must be in 0 … num_categories - 1.
        unknown: the code of a value that `categories` does not have; without it such a value is a row error.
    """

    name: str
    columns: tuple[str, ...] = ()
    encoder: Literal["numeric", "categorical"] = "numeric"
    dtype: TensorDtype | None = None
    shape: tuple[Annotated[int, Field(gt=0)], ...] | None = None
    fill: float | int | str | None = None
    allow_nonfinite: bool = False
    timestamp: Literal["s", "ms", "us", "ns", "days"] | None = None
    categories: tuple[StrictStr, ...] | tuple[StrictInt, ...] | tuple[StrictBool, ...] | None = None
    num_categories: Annotated[int, Field(gt=0)] | None = None
    unknown: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _options_of_the_encoder(self) -> InputSpec:
        if self.encoder == "categorical":
            if (self.categories is None) == (self.num_categories is None):
                raise ValueError("a categorical input needs either categories or num_categories")
            for option in ("timestamp", "allow_nonfinite"):
                if getattr(self, option):
                    raise ValueError(f"{option} is an option of the numeric encoder")
        else:
            for option in ("categories", "num_categories", "unknown"):
                if getattr(self, option) is not None:
                    raise ValueError(f"{option} is an option of the categorical encoder")
            if isinstance(self.fill, str):
                raise ValueError("fill of a numeric input must be a number")
        if self.categories is not None:
            if not self.categories:
                raise ValueError("categories is empty")
            if len(set(self.categories)) != len(self.categories):
                raise ValueError("categories holds a value twice")
            if self.fill is not None and self.fill not in self.categories:
                raise ValueError("fill must be one of the categories")
        codes = range(self.num_categories or 0)
        if codes and self.fill is not None and self.fill not in codes:
            raise ValueError(f"fill must be a code in 0 … {codes[-1]}")
        return self

    @property
    def patterns(self) -> tuple[str, ...]:
        """The column names and patterns that this input is made of."""
        return self.columns or (self.name,)


class ModelSpec(_Strict):
    """The contents of `model.yaml`; docs/model-directory.md describes every field."""

    name: Annotated[str, Field(min_length=1)]
    task: Task = "raw"
    format: Format | None = None
    weights: Annotated[str, Field(min_length=1)] | None = None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    architecture: FunctionName | None = None
    arguments: dict[str, Any] = {}
    loader: FunctionName | None = None
    features: dict[str, str] = {}
    inputs: tuple[InputSpec, ...] = ()
    output: Literal["logits", "probabilities"] = "logits"
    labels: tuple[str, ...] | None = None
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    env_vars: dict[Annotated[str, Field(pattern=r"^[^=\x00]+$")], Annotated[str, Field(pattern=r"^[^\x00]*$")]] = {}
    preprocess: tuple[FunctionName, ...] = ()
    postprocess: tuple[FunctionName, ...] = ()

    @model_validator(mode="after")
    def _ways_to_load(self) -> ModelSpec:
        if self.loader:
            for option in ("format", "architecture"):
                if getattr(self, option):
                    raise ValueError(f"{option} has no meaning beside loader; leave one of them out")
        else:
            if self.format is None:
                raise ValueError("format is missing; write one of safetensors, state_dict, torch_export, torchscript")
            if self.weights is None:
                raise ValueError("weights is missing; write the name of the weights file")
            needs_architecture = self.format in ("safetensors", "state_dict")
            if needs_architecture and not self.architecture:
                raise ValueError(f"architecture is missing; {self.format} needs it, as module:Class")
            if not needs_architecture and self.architecture:
                raise ValueError(f"architecture has no meaning for {self.format}, which carries its own")
        if self.weights and (Path(self.weights).is_absolute() or ".." in Path(self.weights).parts):
            raise ValueError(f'weights must name a file in the model directory, not "{self.weights}"')
        names = [spec.name for spec in self.inputs]
        if len(set(names)) != len(names):
            raise ValueError("two inputs have the same name")
        if not self.inputs and self.format not in ("torch_export", "torchscript"):
            raise ValueError("inputs is missing; only torch_export and torchscript models can tell theirs")
        if self.task == "multilabel" and not self.labels:
            raise ValueError("labels is missing; multilabel needs them")
        return self


def parse_spec(text: str, path: str) -> ModelSpec:
    """Reads the text of a `model.yaml`; raises `UsageError` that names the field at fault and `path`."""
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path} must be a mapping of fields such as name, format and weights")
    try:
        return ModelSpec.model_validate(content)
    except ValidationError as error:
        raise UsageError(f"{path}: {_explain(error)}") from None


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    # Union members show up in the location as type names with brackets; people know only the fields and places.
    where = ".".join(str(part) for part in first["loc"] if not (isinstance(part, str) and "[" in part))
    if first["type"] == "extra_forbidden":
        return f'unknown field "{where}"; see docs/model-directory.md for the fields there are'
    if first["type"] == "missing":
        return f'field "{where}" is missing'
    message = first["msg"].removeprefix("Value error, ")
    if not where:
        return message
    given = first["input"]
    return f'field "{where}": {message}' + ("" if isinstance(given, dict) else f", not {str(given)[:80]!r}")
