"""A model config: a `model.yaml` from before there are weights, which says what a model is trained on.

Its `features`, `preprocess` and `inputs` are those of the model directory that training writes, so that scoring computes
what training saw. Modules in a folder `code/` next to it are those of the model directory, too.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, ValidationError, model_validator

from handlers.errors import UsageError
from handlers.model import files
from handlers.model.directory import MODEL_FILE
from handlers.model.spec import FUNCTION, ModelSpec, explain, parse_yaml
from handlers.model.trust import CODE_FOLDER
from handlers.model_code import NO_CODE, ModelCode

BUILT_IN = ("mlp", "lstm", "huggingface")


def check_architecture(text: str) -> str:
    """A built-in architecture, or `module:Class`; raises ValueError for anything else."""
    if text not in BUILT_IN and not FUNCTION.fullmatch(text):
        raise ValueError(f'must be {", ".join(BUILT_IN)} or module:Class, not "{text}"')
    return text


class ConfigSpec(ModelSpec):
    """The fields of a config: those of `model.yaml`, and options of the training.

    Attributes:
        architecture: a built-in one, or `module:Class`.
        training: options of `torchbeam train` by their names; those of the command line win.
    """

    name: Annotated[str, Field(min_length=1)] = "model"
    architecture: Annotated[str, AfterValidator(check_architecture)] | None = None
    training: dict[str, str | int | float | bool | None] = Field(default={})

    @model_validator(mode="after")
    def _ways_to_load(self) -> ConfigSpec:
        names = [spec.name for spec in self.inputs]
        if len(set(names)) != len(names):
            raise ValueError("two inputs have the same name")
        return self


@dataclass(frozen=True)
class ModelConfig:
    """A config, read and checked. Picklable; it travels to the workers.

    Attributes:
        path: of its file; empty where there is none.
        spec: its fields.
        code_files: SHA-256 of the files in `code/` next to it, by their paths in there.
    """

    path: str = ""
    spec: ConfigSpec = field(default_factory=ConfigSpec)
    code_files: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def open(path: str | os.PathLike[str]) -> ModelConfig:
        """Reads a config: a YAML file, or the `model.yaml` of a folder.

        Raises:
            UsageError: names the file and the field at fault.
        """
        file = Path(path).absolute()
        if file.is_dir():
            file = file / MODEL_FILE
        try:
            text = file.read_text()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UsageError(f"--model {os.fspath(path)} cannot be read: {reason}; give the YAML of a model") from None
        content = {"name": _name_of(file)} | parse_yaml(text, str(path))
        try:
            spec = ConfigSpec.model_validate(content)
        except ValidationError as error:
            raise UsageError(f"{path}: {explain(error)}") from None
        code = file.parent / CODE_FOLDER
        return ModelConfig(str(file), spec, files.digests(code) if code.is_dir() else {})

    @property
    def code_folder(self) -> Path | None:
        """The folder of its own modules; None where there are none."""
        return Path(self.path).parent / CODE_FOLDER if self.code_files else None

    def code(self) -> ModelCode:
        """Its own modules, which can be imported in this process from now on."""
        digest, folder = files.digest_of(self.code_files), self.code_folder
        if folder is None:
            return NO_CODE
        if not folder.is_dir():
            raise UsageError(f"{folder} is not on this worker; put the config where every worker can read it")
        return ModelCode.known(digest) or ModelCode.add(digest, folder, self.code_files)


def _name_of(file: Path) -> str:
    """The folder of a `model.yaml`, else the name of the file."""
    return file.parent.name or "model" if file.name == MODEL_FILE else file.stem
