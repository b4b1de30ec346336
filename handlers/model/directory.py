"""Model directories: `model.yaml` next to the weights, all that is needed to score with a model."""

from __future__ import annotations

import contextlib
import copy
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from handlers.encode.specs import InputSpec
from handlers.errors import UsageError
from handlers.model import files, mlflow_registry, remote
from handlers.model.device_map import placed
from handlers.model.environment import check_env_vars
from handlers.model.formats import FORMATS
from handlers.model.formats.hub_config import is_hub_directory, with_defaults
from handlers.model.registry import resolve
from handlers.model.spec import ModelSpec, parse_yaml, spec_of
from handlers.model.trust import CODE_FOLDER, VERSION_DIGITS, Trust, trust_of
from handlers.model_code import NO_CODE, ModelCode, plain_name
from handlers.paths import is_mlflow, is_remote

if TYPE_CHECKING:
    import torch

    from handlers.predict.loaded import LoadedModel

MODEL_FILE = files.MODEL_FILE


class ModelDir:
    """A model directory, or a bare `.pt2` or TorchScript file, read and checked but not loaded.

    It is small and can be pickled: what travels to workers is the path, the contents of `model.yaml` and the version.
    A path with a scheme (`gs://…`) is copied to this machine once and verified by its version.

    Args:
        path: of the directory or file, local or remote; or the name of a model in a registry, such as `credit@3` or
            `credit@champion`, which is resolved here, once; or a model of MLflow's registry, `models:/credit@champion`.
        trust: what it may set and run, and which version it must be; see docs/security.md.
        registry: the folder of the registry, local or remote; TORCHBEAM_REGISTRY by default.

    Attributes:
        path: where it was opened, local or remote; of a name, the directory of that version.
        registered: its name and version in the registry, such as `credit@3`; empty for any other path.
        trust: how far it is trusted.
        spec: the contents of `model.yaml`; for a bare file, what the file itself declares.
        digest: a SHA-256 over the names and contents of its files.
        version: the first 12 hexadecimal digits of the digest.

    Raises:
        UsageError: where it cannot be read, where a field is unknown, missing or wrong, where the weights do not have
            the `sha256` that `model.yaml` gives, where it was changed after it was pushed to the registry, or where it
            is not trusted so far.
    """

    path: str
    registered: str
    trust: Trust
    spec: ModelSpec
    digest: str
    version: str

    def __init__(
        self, path: str | os.PathLike[str], trust: Trust | None = None, registry: str | os.PathLike[str] | None = None
    ) -> None:
        self.trust = trust_of(trust) or Trust()
        found = resolve(_path_of(path), registry)
        self.path, self.registered = found.path, found.registered
        self._server = mlflow_registry.server() if is_mlflow(self.path) else ("", "")
        local = remote.download(self.path, _digest, self._server) if is_remote(self.path) else Path(self.path)
        self._absolute = "" if is_remote(self.path) else str(local.absolute())
        if local.is_file():
            self.spec = _bare_spec(local)
        elif local.is_dir():
            self.spec = _directory_spec(local, self.path)
        else:
            raise UsageError(
                f"--model {self.path} does not exist; it must be a model directory or a .pt2 or TorchScript file"
            )
        digests = files.digests(local)
        self._check_weights(digests, local)
        self.digest = files.digest_of(digests)
        self.version = self.digest[:VERSION_DIGITS]
        if found.digest and found.digest != self.digest:
            raise UsageError(
                f"{self.registered} ({self.path}) was changed after it was pushed: it is version {self.version}, not "
                f"{found.digest[:VERSION_DIGITS]}; restore its files, or push the change as a version of its own"
            )
        self.trust.check(self.spec, digests, self.digest, self.path)
        code = _code_of(digests) if local.is_dir() else {}
        self._code_digest = files.digest_of(code) if code else ""

    def __repr__(self) -> str:
        return f"ModelDir({self.path!r}, version {self.version})"

    def placed(self, device_map: str) -> ModelDir:
        """The same model with its layers distributed by another device map; the version stays.

        Raises:
            UsageError: if there is no such device map, or the format does not allow it.
        """
        other = copy.copy(self)
        content = self.spec.model_dump(exclude_unset=True) | {"placement": placed(self.spec.placement, device_map)}
        other.spec = spec_of(content, f"--device_map {device_map}: {self.path}")
        return other

    def local(self) -> Path:
        """The folder (or bare file) on this machine, verified to be the version that was opened."""
        return self._verified()[0]

    def forget(self) -> None:
        """Removes the copy on this machine of a model that is elsewhere; any other stays."""
        if is_remote(self.path):
            remote.forget(self.digest)

    def set_environment(self) -> None:
        """Sets the model's `env_vars` in this process. Call it before torch is imported, where possible."""
        os.environ.update(self.spec.env_vars)

    def code(self) -> ModelCode:
        """The modules in `code/`, which can be imported in this process from now on; see `handlers.model_code`."""
        if not self._code_digest:
            return NO_CODE
        return ModelCode.known(self._code_digest) or self._add_code(*self._verified()[:2])

    def load(self) -> LoadedModel:
        """Loads the model on the CPU, in evaluation mode. See `handlers.model.loading.load_model`.

        Raises:
            UsageError: also where its files changed meanwhile: what was loaded may not be what was verified.
        """
        self.set_environment()
        from handlers.model.loading import load_model

        local, digests, before = self._verified()
        loaded = load_model(self.spec, local, self._add_code(local, digests))
        if files.stamps(local, digests) != before:
            raise UsageError(f"model {self.path} was written to while it was loaded; start again")
        return loaded

    def _verified(self) -> tuple[Path, Mapping[str, str], files.Stamps]:
        """The local path, the hashes of its files, and their stamps from before they were read."""
        if is_remote(self.path):
            local = remote.cached(self.path, self.digest, _digest, self._server)
        else:
            local = Path(self._absolute)  # a worker has another working directory
            if not local.exists():
                raise UsageError(f"model {self.path} is not on this worker; put it where every worker can read it")
        stamps = files.stamps(local, files.names(local))
        digests = files.digests(local)
        if (found := files.digest_of(digests)) != self.digest:
            raise UsageError(
                f"model {self.path} changed after the run began: version {found[:VERSION_DIGITS]}, not {self.version}"
            )
        return local, digests, stamps

    def _add_code(self, local: Path, digests: Mapping[str, str]) -> ModelCode:
        if not self._code_digest:
            return NO_CODE
        return ModelCode.add(self._code_digest, (local / CODE_FOLDER).resolve(), _code_of(digests))

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._code_digest:  # what is pickled with it may be a function of its code
            ModelCode.expect(self._code_digest, self.code)

    @property
    def weights(self) -> str | None:
        """The name of the weights file inside the directory; of the file itself where it is bare."""
        return self.spec.weights

    def _check_weights(self, digests: Mapping[str, str], local: Path) -> None:
        if self.spec.weights is None:
            return
        name = Path(self.spec.weights).as_posix() if local.is_dir() else local.name
        found = digests.get(name)
        if found is None:
            if not (local / name).exists():
                raise UsageError(
                    f"{self.path} has no file {self.spec.weights}, which {MODEL_FILE} names as its weights"
                )
            if (local / name).is_file():
                raise UsageError(
                    f"{self.path}/{self.spec.weights} is hidden, and hidden files are not part of a model's version; "
                    "rename it"
                )
        elif self.spec.sha256 and found != self.spec.sha256:
            raise UsageError(
                f"{self.path}/{self.spec.weights} has sha256 {found[:12]}…, but {MODEL_FILE} says {self.spec.sha256[:12]}…; "
                "the weights were changed or damaged"
            )

    @staticmethod
    def save(
        module: Any,
        path: str | os.PathLike[str],
        *,
        name: str | None = None,
        task: str | None = None,
        inputs: Sequence[InputSpec | Mapping[str, Any]] = (),
        format: str | None = None,
        architecture: str | None = None,
        arguments: Mapping[str, Any] | None = None,
        example: tuple[torch.Tensor, ...] | None = None,
        code: Sequence[str | os.PathLike[str]] = (),
        tokenizer: Any = None,
        image_processor: Any = None,
        trust: Trust | None = None,
        **fields: Any,
    ) -> ModelDir:
        """Writes a model directory from a live model, reads it back and returns it.

        Args:
            module: the trained model: a module, saved as it is in evaluation mode, on the CPU; or an estimator of
                scikit-learn, a booster or an estimator of XGBoost, an ONNX model, or the path of a file of these.
            path: the directory to make. Where it is a model directory already, its `model.yaml`, weights and `code/` are
                replaced, and other files in it stay.
            name: what the model is called; the name of the directory by default.
            task: what its outputs mean; `raw` by default, and that of the model for huggingface, sklearn and xgboost.
            inputs: its inputs, as `InputSpec` or the mappings that `model.yaml` would hold.
            format: how the weights are written; safetensors for a module by default, else that of the model.
            architecture: `module:Class` of the module; for safetensors and state_dict, and found by itself for a class
                that can be imported.
            arguments: what the class is constructed with.
            example: for torch_export: one tensor an input, of (rows, …) with at least two rows.
            code: modules and packages of your own that the model needs on every worker; copied into `code/`.
            tokenizer: of transformers, for huggingface; saved next to the model.
            image_processor: the same.
            trust: how far the result is trusted where it is opened, as for `env_vars` that are not allowed by default.
            fields: further fields of `model.yaml`: labels, features, preprocess, postprocess, env_vars, threshold, output.

        Raises:
            UsageError: where the result would not be a valid model directory.
        """
        from handlers.model.loading import format_of, save_weights, task_of

        kind = format or format_of(module)
        if kind not in FORMATS:
            raise UsageError(f'format must be one of {", ".join(FORMATS)}, not "{kind}"')
        target = Path(path)
        if target.exists() and (not target.is_dir() or any(target.iterdir())) and not (target / MODEL_FILE).is_file():
            raise UsageError(f"{target} is there and is not a model directory; save to a new one")
        if kind in ("safetensors", "state_dict") and architecture is None:
            architecture = f"{plain_name(type(module).__module__)}:{type(module).__qualname__}"
            name_of_class, of_script = type(module).__qualname__, architecture.startswith("__main__:")
            if of_script or "<locals>" in name_of_class:
                where = "in the script that runs" if of_script else "inside a function"
                raise UsageError(f"class {name_of_class} is defined {where}; move it to the top level of a module")
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
            folder = Path(scratch)
            weights = save_weights(module, folder, kind, example)
            for part in (tokenizer, image_processor):
                if part is not None:
                    part.save_pretrained(folder)
            whole = FORMATS[kind].is_directory
            if FORMATS[kind].extensions:
                try:
                    found = task_of(kind, weights)  # loads it, so that a directory that cannot be used is not written
                except UsageError as error:
                    shown = str(module) if isinstance(module, str | Path) else "the model"
                    raise UsageError(str(error).replace(str(weights), shown)) from None
                task = task or found
            content = {
                "name": name or target.name,
                "task": task,
                "format": kind,
                "weights": None if whole else weights.name,
                "sha256": None if whole else files.sha256(weights),
                "architecture": architecture,
                "arguments": dict(arguments or {}),
                "inputs": [spec.given() if isinstance(spec, InputSpec) else dict(spec) for spec in inputs],
                **fields,
            }
            text = yaml.safe_dump(_plain({key: value for key, value in content.items() if value}), sort_keys=False)
            (folder / MODEL_FILE).write_text(text)
            spec = _directory_spec(folder, str(target))
            check_env_vars(spec.env_vars, trust.allow_env if trust else (), str(target / MODEL_FILE))
            for item in map(Path, code):
                _copy(item, folder / CODE_FOLDER / item.name)
            _replace(folder, target)
        return ModelDir(target, trust)


def opened(
    model: ModelDir | str | os.PathLike[str],
    trust: Trust | None,
    open_path: Callable[[str, Trust | None], ModelDir] = ModelDir,
) -> ModelDir:
    """The model that a caller gave: a `ModelDir` as it is, that of a path by `open_path`.

    Raises:
        UsageError: for a model or a trust of another kind, and for a trust beside a `ModelDir`, which has its own.
    """
    if not isinstance(model, ModelDir):
        return open_path(_path_of(model), trust_of(trust))
    if trust_of(trust) is not None:
        raise UsageError("trust is for the path of a model: give it to ModelDir, or leave it out")
    return model


def _path_of(model: object) -> str:
    """The path, or the name in a registry, that a caller gave for a model; raises `UsageError` for anything else."""
    if isinstance(model, str | os.PathLike) and isinstance(path := os.fspath(model), str) and path.strip():
        return path
    given = repr(model) if isinstance(model, str | bytes) else f"a {type(model).__name__}"
    raise UsageError(f"the model must be a ModelDir, or the path or the registered name of a model, not {given}")


def _directory_spec(local: Path, path: str) -> ModelSpec:
    """The fields of `model.yaml`, completed from a Hugging Face directory; those of the directory alone without `model.yaml`."""
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
    """Puts the files of `new` into `target`, replacing the model there."""
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
    """The spec of a model that is one file: `.pt2` of torch.export, or TorchScript."""
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
            "ModelDir.save, or write a model.yaml next to it"
        )
    return ModelSpec(name=file.stem, format=found, weights=file.name)


def _code_of(digests: Mapping[str, str]) -> dict[str, str]:
    """The files in `code/` by their paths in it, with their hashes."""
    inside = f"{CODE_FOLDER}/"
    return {name.removeprefix(inside): found for name, found in digests.items() if name.startswith(inside)}


def _digest(local: Path) -> str:
    return files.digest_of(files.digests(local))
