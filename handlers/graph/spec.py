"""The schema of `models.yaml`: the models of one run, on which rows each runs, and what one takes from another."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from handlers.batching import ResourceHints, in_bytes
from handlers.errors import UsageError
from handlers.model.spec import message_of, not_yaml

MAX_CHARACTERS = 1_000_000
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_NAME_PART = r"[A-Za-z0-9._-]*"


def _name(value: str) -> str:
    if not NAME.fullmatch(value):
        raise ValueError("must be a name of letters, digits and _ that does not begin with a digit")
    return value


def _expression(value: Any) -> Any:
    return str(value).lower() if isinstance(value, bool) else value  # YAML reads `when: true` as a flag


def _memory(value: str) -> str:
    in_bytes(value, "4GB")  # raises ValueError with the reason
    return value


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Name = Annotated[str, AfterValidator(_name)]
Text = Annotated[str, Field(min_length=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class HintsSpec(_Strict):
    """Resource hints of the step that the model runs in."""

    accelerator: str | None = None
    min_ram: str | None = None

    @model_validator(mode="after")
    def _valid(self) -> HintsSpec:
        _ = self.hints
        return self

    @property
    def hints(self) -> ResourceHints:
        """The same for Beam."""
        try:
            return ResourceHints(self.accelerator, self.min_ram)
        except UsageError as error:
            raise ValueError(str(error).removeprefix("--")) from None


class ByKeySpec(_Strict):
    """A model for each value of a column.

    Attributes:
        column: the column of the key.
        models: a folder of model directories and, as its last part, the name of the column in braces; or names in the
            registry with the name of the column in braces; or the model of each key.
        default: the model of rows whose key has none; without it they become dead letters.
        memory: bytes of parameters that are held at once in a process, with a unit.
    """

    column: Text
    models: Text | Annotated[dict[str, Text], Field(min_length=1)]
    default: Text | None = None
    memory: Annotated[str, AfterValidator(_memory)] = "4GB"

    @model_validator(mode="after")
    def _template(self) -> ByKeySpec:
        if isinstance(self.models, str) and self.names is None:
            key = f"{{{self.column}}}"
            folder, _, last = self.models.rpartition("/")
            if last != key or not folder or "{" in folder:
                raise ValueError(
                    f'models must be a folder and the key as its last part, as "models/{key}"; or names in the registry, as '
                    f'"credit-{key}@champion"; or a mapping from keys to models'
                )
        return self

    @property
    def names(self) -> tuple[str, str, str] | None:
        """Of names in the registry the parts before and after the key, and the version or alias; else None."""
        if not isinstance(self.models, str):
            return None
        found = re.fullmatch(
            rf"({_NAME_PART})\{{{re.escape(self.column)}\}}({_NAME_PART})@([A-Za-z0-9_-]+)", self.models, re.ASCII
        )
        return (found[1], found[2], found[3]) if found else None

    @property
    def folder(self) -> str:
        """The folder whose subfolders are the models; of others what messages call it."""
        return self.models.rpartition("/")[0] if isinstance(self.models, str) and self.names is None else "by_key"

    @property
    def memory_bytes(self) -> int:
        """`memory` in bytes."""
        return in_bytes(self.memory, "4GB")


class ModelEntry(_Strict):
    """One model of a run; docs/several-models.md describes every field."""

    name: Name
    model: Text | None = None
    version: Annotated[str, Field(pattern=r"^[0-9a-f]{12,64}$")] | None = None
    by_key: ByKeySpec | None = None
    when: Annotated[Text | None, BeforeValidator(_expression)] = None
    inputs_from: Annotated[tuple[Name, ...], BeforeValidator(_listed)] = ()
    on_failure: Literal["dead_letter", "continue"] = "dead_letter"
    hints: HintsSpec | None = None
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] | None = None
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] | None = None

    @model_validator(mode="after")
    def _one_source(self) -> ModelEntry:
        if (self.model is None) == (self.by_key is None):
            raise ValueError("give either model, a model directory, or by_key, a model for each value of a column")
        if self.version is not None and self.by_key is not None:
            raise ValueError("version is of one model; leave it out with by_key")
        return self


@dataclass(frozen=True)
class ModelSplit:
    """Each row by one model, chosen by a hash of a column: the shares, above 0 and 1 together, by model."""

    by: str
    shares: tuple[tuple[str, float], ...]


class ModelsSpec(_Strict):
    """The contents of `models.yaml`."""

    models: Annotated[tuple[ModelEntry, ...], Field(min_length=1)]
    split: dict[str, str | float] | None = None
    compare: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> ModelsSpec:
        names: list[str] = []
        for entry in self.models:
            if entry.name in names:
                raise ValueError(f'two models have the name "{entry.name}"')
            for other in entry.inputs_from:
                if other not in names:
                    raise ValueError(f'model "{entry.name}" has inputs_from "{other}", which is no model before it')
            names.append(entry.name)
        _ = self.shares
        for name in self.compare:
            if name not in names:
                raise ValueError(f'compare names "{name}", which is no model; there are: {", ".join(names)}')
        if self.compare and (len(self.compare) != 2 or self.compare[0] == self.compare[1]):
            raise ValueError(f"compare takes the names of two models, not of {len(set(self.compare))}")
        return self

    @property
    def shares(self) -> ModelSplit | None:
        """The split, checked."""
        if self.split is None:
            return None
        given = dict(self.split)
        by = given.pop("by", None)
        if not isinstance(by, str) or not by:
            raise ValueError("split needs by, the column whose value chooses the model")
        entries = {entry.name: entry for entry in self.models}
        for name, share in given.items():
            if name not in entries:
                raise ValueError(f'split names "{name}", which is no model; there are: {", ".join(entries)}')
            if isinstance(share, str) or not 0 < share <= 1:
                raise ValueError(f'the share of "{name}" in split must be a number above 0 and at most 1, not {share}')
            if entries[name].when is not None:
                raise ValueError(f'model "{name}" has when and a share in split; leave one of them out')
            if entries[name].inputs_from and set(entries[name].inputs_from) & given.keys():
                raise ValueError(f'model "{name}" takes inputs_from another model of split, which never runs with it')
        if len(given) < 2:
            raise ValueError("split needs the shares of two or more models")
        if abs(sum(map(float, given.values())) - 1) > 1e-9:
            raise ValueError(f"the shares in split must be 1 together, not {sum(map(float, given.values())):g}")
        return ModelSplit(by, tuple((name, float(share)) for name, share in given.items()))

    @property
    def single(self) -> ModelEntry | None:
        """The model of a run that has just one, on all rows: it is scored as without `models.yaml`."""
        first = self.models[0]
        return first if len(self.models) == 1 and first.when is None and first.by_key is None else None


def parse_models(text: str, path: str) -> ModelsSpec:
    """Reads the text of a `models.yaml`; raises `UsageError` that names the field at fault and `path`."""
    if len(text) > MAX_CHARACTERS:
        raise UsageError(f"{path} has {len(text):,} characters, and a models.yaml may have {MAX_CHARACTERS:,}")
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise not_yaml(path, error) from None
    if not isinstance(content, dict):
        raise UsageError(f"{path} must be a mapping with models, and optionally split and compare")
    try:
        return ModelsSpec.model_validate(content)
    except ValidationError as error:
        raise UsageError(f"{path}: {_explain(error, content)}") from None


def named_models(named: Sequence[tuple[str, str]]) -> ModelsSpec:
    """The models of `--model=NAME=DIR`, each on all rows; raises `UsageError`."""
    try:
        return ModelsSpec.model_validate({"models": [{"name": name, "model": path} for name, path in named]})
    except ValidationError as error:
        raise UsageError(f"--model: {_explain(error, {})}") from None


def _explain(error: ValidationError, content: dict[str, Any]) -> str:
    first = error.errors()[0]
    location = list(first["loc"])
    if first["type"].endswith("_type") and location and location[-1] in ("int", "literal['auto']", "str", "float"):
        location.pop()  # a member of a union, which people do not know
    if location and location[-1] in ("constrained-int", "int", "literal['auto']"):
        location.pop()
    where = ".".join(map(str, location))
    whose = ""
    if location[:1] == ["models"] and len(location) > 1 and isinstance(location[1], int):
        entry = content.get("models", [])[location[1]] if isinstance(content.get("models"), list | tuple) else None
        if isinstance(entry, dict) and isinstance(entry.get("name"), str):
            whose = f' of model "{entry["name"]}"'
            where = ".".join(map(str, location[2:]))
    if first["type"] == "extra_forbidden":
        return f'unknown field "{where}"{whose}; see docs/several-models.md for the fields there are'
    if first["type"] == "missing":
        return f'field "{where}"{whose} is missing'
    message = message_of(first)
    if not where:
        return f"model {entry_name}: {message}" if (entry_name := whose.removeprefix(" of model ")) else message
    given = first["input"]
    shown = "" if isinstance(given, dict | list) else f", not {str(given)[:80]!r}"
    return f'field "{where}"{whose}: {message}{shown}'
