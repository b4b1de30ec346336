"""Model directories: `model.yaml` beside the weights, all that is needed to score with a model."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from handlers.encode.specs import InputSpec
from handlers.errors import UsageError
from handlers.functions import add_to_path
from handlers.model import remote
from handlers.model.formats import FORMATS
from handlers.model.formats.hub_config import is_hub_directory, with_defaults
from handlers.model.spec import ModelSpec, parse_yaml, spec_of
from handlers.paths import is_remote

if TYPE_CHECKING:
    import torch

    from handlers.predict.loaded import LoadedModel


MODEL_FILE = "model.yaml"
CODE_FOLDER = "code"
VERSION_DIGITS = 12


class ModelDir:
    """A model directory, or a bare `.pt2` or TorchScript file, read and checked but not loaded.

    It is small and can be pickled: what travels to workers is the path, the contents of `model.yaml` and the version.
    A path with a scheme (`gs://…`) is copied to this machine once and verified by its version.

    Attributes:
        path: where it was opened, local or remote.
        spec: the contents of `model.yaml`; for a bare file, what the file can tell.
        version: the first 12 hexadecimal digits of a SHA-256 over the names and contents of its files.

    Raises:
        UsageError: where it cannot be read, where a field is unknown, missing or wrong, or where the weights do not have
            the `sha256` that `model.yaml` gives.
    """

    path: str
    spec: ModelSpec
    version: str

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        if is_remote(self.path):
            local, self._absolute = remote.download(self.path, lambda folder: _version(_digests(folder))), ""
        else:
            local = Path(self.path)
            self._absolute = str(local.absolute())
        if local.is_file():
            self.spec = _bare_spec(local)
        elif local.is_dir():
            self.spec = _directory_spec(local, self.path)
        else:
            raise UsageError(
                f"--model {self.path} does not exist; it must be a model directory or a .pt2 or TorchScript file"
            )
        digests = _digests(local)
        self._check_weights(digests, local)
        self.version = _version(digests)

    def __repr__(self) -> str:
        return f"ModelDir({self.path!r}, version {self.version})"

    def local(self) -> Path:
        """The folder (or bare file) on this machine, verified to be the version that was opened."""
        if is_remote(self.path):
            return remote.cached(self.path, self.version, lambda folder: _version(_digests(folder)))
        local = Path(self._absolute)  # a worker's working directory is its own
        if not local.exists():
            raise UsageError(f"model {self.path} is not on this worker; put it where every worker can read it")
        if (found := _version(_digests(local))) != self.version:
            raise UsageError(f"model {self.path} changed after the run began: version {found}, not {self.version}")
        return local

    def set_environment(self) -> None:
        """Sets the model's `env_vars` in this process. Call it before torch is imported, where that can be had."""
        os.environ.update(self.spec.env_vars)

    def add_code(self) -> Path:
        """Makes the modules in `code/` importable; gives the local path."""
        local = self.local()
        if local.is_dir():
            add_to_path((local / CODE_FOLDER).resolve())
        return local

    def load(self) -> LoadedModel:
        """Loads the model on the CPU, in evaluation mode. See `handlers.model.loading.load_model`."""
        self.set_environment()
        from handlers.model.loading import load_model

        return load_model(self.spec, self.add_code())

    @property
    def weights(self) -> str | None:
        """The name of the weights file inside the directory; of the file itself where it is bare."""
        return self.spec.weights

    def _check_weights(self, digests: Mapping[str, str], local: Path) -> None:
        if self.spec.weights is None:
            return
        found = digests.get(self.spec.weights if local.is_dir() else local.name)
        if found is None:
            if not (local / self.spec.weights).exists():
                raise UsageError(
                    f"{self.path} has no file {self.spec.weights}, which {MODEL_FILE} names as its weights"
                )
        elif self.spec.sha256 and found != self.spec.sha256:
            raise UsageError(
                f"{self.path}/{self.spec.weights} has sha256 {found[:12]}…, but {MODEL_FILE} says {self.spec.sha256[:12]}…; "
                "the weights were changed or damaged"
            )

    @staticmethod
    def save(
        module: torch.nn.Module,
        path: str | os.PathLike[str],
        *,
        name: str | None = None,
        task: str | None = None,
        inputs: Sequence[InputSpec | Mapping[str, Any]] = (),
        format: str = "safetensors",
        architecture: str | None = None,
        arguments: Mapping[str, Any] | None = None,
        example: tuple[torch.Tensor, ...] | None = None,
        code: Sequence[str | os.PathLike[str]] = (),
        tokenizer: Any = None,
        image_processor: Any = None,
        **fields: Any,
    ) -> ModelDir:
        """Writes a model directory from a live module, reads it back and returns it.

        Args:
            module: the trained model; it is saved as it is in evaluation mode, on the CPU.
            path: the directory to make. Where it is a model directory already, its `model.yaml`, weights and `code/` are
                replaced, and other files in it stay.
            name: what the model is called; the name of the directory by default.
            task: what its outputs mean; `raw` by default, and what the model tells for huggingface.
            inputs: its inputs, as `InputSpec` or the mappings that `model.yaml` would hold.
            format: how the weights are written.
            architecture: `module:Class` of the module; for safetensors and state_dict, and found by itself for a class
                that can be imported.
            arguments: what the class is constructed with.
            example: for torch_export: one tensor an input, of (rows, …) with at least two rows.
            code: modules and packages of your own that the model needs on every worker; copied into `code/`.
            tokenizer: of transformers, for huggingface; saved beside the model.
            image_processor: the same.
            fields: further fields of `model.yaml`: labels, features, preprocess, postprocess, env_vars, threshold, output.

        Raises:
            UsageError: where the result would not be a valid model directory.
        """
        from handlers.model.loading import save_weights

        target = Path(path)
        if target.exists() and (not target.is_dir() or any(target.iterdir())) and not (target / MODEL_FILE).is_file():
            raise UsageError(f"{target} is there and is no model directory; save to a new one")
        if format in ("safetensors", "state_dict") and architecture is None:
            architecture = f"{type(module).__module__}:{type(module).__qualname__}"
            name_of_class, of_script = type(module).__qualname__, architecture.startswith("__main__:")
            if of_script or "<locals>" in name_of_class:
                where = "in the script that runs" if of_script else "inside a function"
                raise UsageError(f"class {name_of_class} is defined {where}; move it to the top of a module of its own")
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
            folder = Path(scratch)
            weights = save_weights(module, folder, format, example)
            for part in (tokenizer, image_processor):
                if part is not None:
                    part.save_pretrained(folder)
            whole = FORMATS[format].is_directory
            content = {
                "name": name or target.name,
                "task": task,
                "format": format,
                "weights": None if whole else weights.name,
                "sha256": None if whole else _sha256(weights),
                "architecture": architecture,
                "arguments": dict(arguments or {}),
                "inputs": [spec.given() if isinstance(spec, InputSpec) else dict(spec) for spec in inputs],
                **fields,
            }
            text = yaml.safe_dump(_plain({key: value for key, value in content.items() if value}), sort_keys=False)
            (folder / MODEL_FILE).write_text(text)
            _directory_spec(folder, str(target))
            for item in map(Path, code):
                _copy(item, folder / CODE_FOLDER / item.name)
            _replace(folder, target)
        return ModelDir(target)


def _directory_spec(local: Path, path: str) -> ModelSpec:
    """What `model.yaml` says, and what a directory of Hugging Face's tells beside it or by itself."""
    file = local / MODEL_FILE
    if file.is_file():
        content = parse_yaml(_read_text(file), f"{path}/{MODEL_FILE}")
    elif is_hub_directory(local):
        content = {"format": "huggingface"}
    else:
        raise UsageError(f"{path} has no {MODEL_FILE}; write one, or save the model with ModelDir.save")
    if content.get("format") == "huggingface":
        content = with_defaults(content, local)
    return spec_of(content, f"{path}/{MODEL_FILE}")


def _replace(new: Path, target: Path) -> None:
    """Puts the files of `new` into `target`, in the place of the model that is there."""
    target.mkdir(exist_ok=True)
    if (target / MODEL_FILE).is_file():
        shutil.rmtree(target / CODE_FOLDER, ignore_errors=True)
        with contextlib.suppress(UsageError):
            old = _directory_spec(target, str(target))
            for file in [target / old.weights] if old.weights else target.glob("*.safetensors"):
                file.unlink(missing_ok=True)
    for item in new.iterdir():
        item.replace(target / item.name)


def _plain(value: Any) -> Any:
    """`value` with tuples as lists, which is how YAML writes them."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


def _read_text(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read: {error}") from None


def _bare_spec(file: Path) -> ModelSpec:
    """What can be said of a model that comes as one file: `.pt2` of torch.export, or TorchScript."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile):
        raise UsageError(f"{file} is neither a model directory nor a .pt2 or TorchScript file") from None
    if any(name.endswith(("archive_format", "serialized_exported_program.json")) for name in names):
        found = "torch_export"
    elif any("/code/" in name for name in names):
        found = "torchscript"
    else:
        raise UsageError(
            f"{file} holds weights or a pickled module, not a program; load it where its code is and save it with "
            "ModelDir.save, or write a model.yaml beside it"
        )
    return ModelSpec(name=file.stem, format=found, weights=file.name)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _digests(local: Path) -> dict[str, str]:
    """SHA-256 of every file of a model directory by its relative path; caches and hidden files are left out."""
    try:
        if local.is_file():
            return {local.name: _sha256(local)}
        files = sorted(file for file in local.rglob("*") if file.is_file())
        relative = [(file, file.relative_to(local)) for file in files]
        return {
            path.as_posix(): _sha256(file)
            for file, path in relative
            if not any(part.startswith(".") or part == "__pycache__" for part in path.parts)
        }
    except OSError as error:
        raise UsageError(f"model {local} cannot be read: {error.strerror or error}") from None


def _version(digests: Mapping[str, str]) -> str:
    lines = "".join(f"{digest}  {path}\n" for path, digest in sorted(digests.items()))
    return hashlib.sha256(lines.encode()).hexdigest()[:VERSION_DIGITS]
