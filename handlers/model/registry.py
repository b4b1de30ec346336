"""Names of models in a registry, such as `credit@champion`, and the version directories that they stand for.

A registry is a folder, local or in an object store:

    models/credit/1/             a version: a model directory, never changed
    models/credit/2/
    models/credit/aliases.json   {"champion": {"version": 2, "previous": [1]}}

`model.yaml` of a version is written last: a folder without it is unfinished and not a version.

Here a registry is read; `transforms.registry` writes it. Needs Beam only for a registry in an object store.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any

from handlers.errors import UsageError
from handlers.model import mlflow_registry
from handlers.model.files import MODEL_FILE
from handlers.model.stores import explain, prepare, shared_s3
from handlers.paths import is_mlflow, is_remote

ENVIRONMENT = "TORCHBEAM_REGISTRY"
LATEST = "latest"
MLFLOW = "models:/"  # the registry of MLflow
ALIASES = "aliases.json"
RECORD = ".registry.json"  # what `push` recorded in a version; hidden, so it is not part of the version itself

_MAX_TEXT = 1 << 20  # bytes of a file of ours
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
_ALIAS = r"[A-Za-z][A-Za-z0-9_-]{0,99}"
_VERSION = r"[1-9][0-9]{0,8}"
_REFERENCE = re.compile(rf"({_NAME})@({_VERSION}|{_ALIAS})", re.ASCII)


@dataclass(frozen=True)
class Resolved:
    """What a `--model` stands for, fixed for the whole run.

    Attributes:
        path: the model directory or bare file, local or remote.
        registered: its name and version in the registry, such as `credit@3`; empty for any other path.
        digest: the digest of the version when it was pushed; empty if it is not recorded.
    """

    path: str
    registered: str = ""
    digest: str = ""


@dataclass(frozen=True)
class Alias:
    """The version that an alias stands for, and those before it, the last one first."""

    version: int
    previous: tuple[int, ...] = ()


def resolve(text: str, registry: str | os.PathLike[str] | None = None) -> Resolved:
    """Resolves a model: a path, `NAME@VERSION`, `NAME@ALIAS`, `NAME@latest`, or `models:/…` of MLflow.

    A path that exists on disk wins over a name.

    Args:
        text: the model, as `--model` has it.
        registry: the folder of the registry; TORCHBEAM_REGISTRY by default.

    Raises:
        UsageError: for a name without a registry, and for a model, version or alias that the registry does not have.
    """
    if is_mlflow(text):
        pinned = mlflow_registry.pin(text)
        return Resolved(pinned, pinned)
    root = registry_folder(registry)
    if is_remote(text) or Path(text).exists():
        return _located(text, root)
    match = _REFERENCE.fullmatch(text)
    if match is None:
        return Resolved(text)
    if not root:
        raise UsageError(
            f'there is no file or folder "{text}"; for a model of a registry, name its folder with --registry=DIR or '
            f"the environment variable {ENVIRONMENT}"
        )
    name, wanted = match.groups()
    if root == MLFLOW:
        return resolve(f"{MLFLOW}{name}{'/' if wanted == LATEST or wanted.isdecimal() else '@'}{wanted}")
    return version_at(root, name, find_version(root, name, wanted))


def is_reference(text: str) -> bool:
    """Whether `text` is a name in a registry, and not a path that exists."""
    return _REFERENCE.fullmatch(text) is not None and not Path(text).exists()


def registry_folder(registry: str | os.PathLike[str] | None) -> str:
    """The folder of the registry: the given one, or that of TORCHBEAM_REGISTRY; empty for none."""
    found = os.fspath(registry or "") or os.environ.get(ENVIRONMENT, "")
    return MLFLOW if found.rstrip("/") == MLFLOW.rstrip("/") else found.rstrip("/") or found  # "/" itself


def version_at(root: str, name: str, version: int) -> Resolved:
    """A version in a registry, with the digest that `push` recorded."""
    path = folder_of(root, name, version)
    recorded = _parse(_text(f"{path}/{RECORD}"), f"{path}/{RECORD}").get("digest", "")
    return Resolved(path, f"{name}@{version}", str(recorded))


def folder_of(root: str, name: str, version: int) -> str:
    """The folder of a version."""
    return f"{root}/{name}/{version}"


def find_version(root: str, name: str, wanted: str) -> int:
    """The number of a version by its number, an alias or `latest`; raises `UsageError` where there is none."""
    versions = all_versions(root, name).get(name, [])
    if not versions:
        known = ", ".join(sorted(all_versions(root))[:20])
        raise UsageError(f'registry {root} has no model "{name}"; {f"it has: {known}" if known else "it is empty"}')
    return choose_version(root, name, wanted, versions)


class NoVersionError(UsageError):
    """A model has no such version or alias."""


def choose_version(root: str, name: str, wanted: str, versions: Sequence[int]) -> int:
    """The same among the `versions` that there are; raises `NoVersionError` where there is none."""
    if wanted == LATEST:
        return versions[-1]
    if wanted.isdecimal():
        if int(wanted) not in versions:
            shown = ", ".join(map(str, versions[-20:]))
            raise NoVersionError(f'registry {root} has no version {wanted} of "{name}"; it has: {shown}')
        return int(wanted)
    aliases = read_aliases(root, name)
    if wanted not in aliases:
        known = ", ".join([*sorted(aliases)[:20], LATEST])
        raise NoVersionError(f'model "{name}" of registry {root} has no alias "{wanted}"; it has: {known}')
    if (version := aliases[wanted].version) not in versions:
        raise UsageError(
            f"{name}@{wanted} is version {version}, which is no longer in registry {root}; promote another"
        )
    return version


def all_versions(root: str, name: str | None = None) -> dict[str, list[int]]:
    """The finished versions of every model, or of `name`, in ascending order.

    Raises:
        UsageError: where the registry is not there, or cannot be listed.
    """
    found: dict[str, list[int]] = {}
    for path in _listed(root, f"{name or '*'}/*/{MODEL_FILE}"):
        model, version = path.split("/")[-3:-1]
        if re.fullmatch(_NAME, model, re.ASCII) and re.fullmatch(_VERSION, version, re.ASCII):
            found.setdefault(model, []).append(int(version))
    return {model: sorted(found[model]) for model in sorted(found)}


def read_aliases(root: str, name: str) -> dict[str, Alias]:
    """The aliases of a model; raises `UsageError` where their file is not valid."""
    path = f"{root}/{name}/{ALIASES}"
    return parse_aliases(_text(path), path)


def parse_aliases(text: str | None, path: str) -> dict[str, Alias]:
    """The aliases in the text of `aliases.json`; none for None."""
    try:
        return {
            name: Alias(int(found["version"]), tuple(map(int, found.get("previous", ()))))
            for name, found in _parse(text, path).items()
        }
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        raise UsageError(
            f'{path} is not a file of aliases, as {{"champion": {{"version": 2, "previous": [1]}}}}; restore it'
        ) from None


def render_aliases(aliases: Mapping[str, Alias]) -> str:
    """The text of `aliases.json`."""
    content = {
        name: {"version": alias.version, "previous": list(alias.previous)} for name, alias in sorted(aliases.items())
    }
    return json.dumps(content, indent=1) + "\n"


def check_name(text: str) -> str:
    """The name of a model; raises `ValueError` for one that a registry cannot have."""
    if not re.fullmatch(_NAME, text, re.ASCII):
        raise ValueError(f'must be letters, digits, ".", "_" and "-", not "{text}"')
    return text


def check_alias(text: str) -> str:
    """The name of an alias; raises `ValueError` for one that a registry cannot have."""
    if text == LATEST:
        raise ValueError(f'"{LATEST}" always stands for the newest version; name another')
    if not re.fullmatch(_ALIAS, text, re.ASCII):
        raise ValueError(f'must be letters, digits, "_" and "-", beginning with a letter, not "{text}"')
    return text


def check_reference(text: str) -> str:
    """`NAME` or `NAME@REF` as it is; raises `ValueError` for other text."""
    split_reference(text)
    return text


def split_reference(text: str) -> tuple[str, str]:
    """The name and the version or alias in `NAME@REF`; that of `NAME` alone is `latest`. Raises `ValueError`."""
    match = _REFERENCE.fullmatch(text if "@" in text else f"{text}@{LATEST}")
    if match is None:
        raise ValueError(f'must be a model of the registry, as credit@3 or credit@champion, not "{text}"')
    return match.group(1), match.group(2)


def registered_name(path: str, root: str) -> str:
    """The name of the version whose folder `path` is in the registry `root`, as credit@3; empty for any other path."""
    if is_mlflow(path):
        return path
    if not root or is_remote(path) != is_remote(root):
        return ""
    place, base = (path, root) if is_remote(path) else (os.path.abspath(path), os.path.abspath(root))  # noqa: PTH100
    inside = place.rstrip("/").removeprefix(f"{base.rstrip('/')}/")
    match = re.fullmatch(rf"({_NAME})/({_VERSION})", inside, re.ASCII)
    return f"{match[1]}@{match[2]}" if match else ""


def _located(path: str, root: str) -> Resolved:
    """A path, with its name and version where it is a version in the registry."""
    registered = registered_name(path, root)
    if not registered:
        return Resolved(path)
    name, _, version = registered.rpartition("@")
    found = version_at(root, name, int(version))
    return Resolved(path, found.registered, found.digest)


def _parse(text: str | None, path: str) -> dict[str, Any]:
    """A JSON object; empty for None."""
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UsageError(f"{path} is not JSON, or not an object; restore it")
    return found


@shared_s3()
def _listed(root: str, pattern: str) -> list[str]:
    """The files of the registry whose relative paths match `pattern`."""
    if not is_remote(root):
        if not Path(root).is_dir():
            raise UsageError(f"--registry {root} is not a folder; it must hold models as NAME/VERSION/{MODEL_FILE}")
        return [path.as_posix() for path in Path(root).glob(pattern)]
    from apache_beam.io.filesystems import FileSystems

    prepare()
    try:
        return [found.path for found in FileSystems.match([f"{escape(root)}/{pattern}"])[0].metadata_list]
    except Exception as error:
        raise UsageError(f"--registry {root} cannot be listed: {explain(error)}") from error


@shared_s3()
def _text(path: str) -> str | None:
    """The text of a small file; None where there is none."""
    try:
        if not is_remote(path):
            with Path(path).open("rb") as file:
                content = file.read(_MAX_TEXT + 1)
        else:
            from apache_beam.io.filesystems import FileSystems

            prepare()
            if not FileSystems.exists(path):
                return None
            with FileSystems.open(path, compression_type="uncompressed") as file:
                content = file.read(_MAX_TEXT + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except Exception as error:
        raise UsageError(f"{path} cannot be read: {explain(error)}") from error
    if len(content) > _MAX_TEXT:
        raise UsageError(f"{path} is larger than {_MAX_TEXT:,} bytes; restore it")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not text; restore it") from None
