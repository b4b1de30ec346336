"""`ModelWatch`: where the model of a long run is, and which one it is at the moment."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from glob import escape, glob, has_magic
from pathlib import Path
from typing import Literal, NamedTuple

from packaging.version import InvalidVersion, Version

from handlers.errors import UsageError
from handlers.model import files, mlflow_registry
from handlers.model.directory import ModelDir
from handlers.model.files import MODEL_FILE
from handlers.model.registry import is_reference, registry_folder, resolve, small_text
from handlers.model.stores import explain, prepare, shared_s3
from handlers.model.trust import Trust
from handlers.paths import is_mlflow, is_remote

NewestBy = Literal["version", "time"]

BARE = (".pt2", ".pt")  # a pattern with such an end is of bare files, any other of model directories
_MAX_POINTER = 4096  # bytes
_LONGEST = 30 * 86_400  # seconds
_WRITE_POINTER = "write the path of a model directory into it, on one line"


class Target(NamedTuple):
    """What a location stands for at one moment; another target is another model, or the same one written anew.

    Attributes:
        path: of the model directory or bare file.
        stamp: what shows, without reading them, that its files changed.
    """

    path: str
    stamp: tuple[object, ...] = ()


class _File(NamedTuple):
    path: str
    size: int
    time: float


@dataclass(frozen=True)
class ModelWatch:
    """A location whose model may change while a run goes on. Picklable.

    | location | the model |
    | --- | --- |
    | `models/credit/*`, `gs://bucket/credit/*` | of the directories with a `model.yaml` that match, the newest |
    | `models/credit/*.pt2` | of the files that match, the newest |
    | `models/credit/CURRENT` | the one whose path is in this file: absolute, relative to the file, or `credit@3` |
    | `credit@champion`, `credit@latest`, `models:/credit@champion` | what the registry says |
    | a model directory, or a link to one | what is in it |

    Names that begin with `.` or `_` do not match. On workers a local path must be as it is here.

    Attributes:
        location: see above.
        trust: how far every model that is found there is trusted.
        registry: the folder of the registry; TORCHBEAM_REGISTRY by default.
        newest_by: which match of a pattern is the newest: by `version`, which is in the name (`7`, `v1.4.0`, `1.5.0-rc1`,
            `2026-11-25`; other names are ignored), or by the `time` at which `model.yaml` was last written.
        server: that of MLflow, for `models:/…`; the one of this process by default.

    Raises:
        UsageError: for another `newest_by`.
    """

    location: str
    trust: Trust = Trust()
    registry: str = ""
    newest_by: NewestBy = "version"
    server: mlflow_registry.Server = ("", "")

    def __post_init__(self) -> None:
        if self.newest_by not in ("version", "time"):
            raise UsageError(f'newest_by must be version or time, not "{self.newest_by}"')
        location = os.fspath(self.location)
        settle = object.__setattr__
        settle(self, "registry", registry_folder(self.registry))
        if is_mlflow(location) or (is_reference(location) and is_mlflow(self.registry)):
            settle(self, "server", self.server if any(self.server) else mlflow_registry.server())
        if not (is_remote(location) or is_reference(location)):
            location = os.path.abspath(location)  # noqa: PTH100 - a worker has another working directory
        if self.registry and not is_remote(self.registry):
            settle(self, "registry", os.path.abspath(self.registry))  # noqa: PTH100
        settle(self, "location", location)

    def find(self) -> Target:
        """The model that the location stands for now.

        Raises:
            UsageError: where there is none, or the location cannot be read.
        """
        return self._stamped(self._path())

    def open(self, target: Target) -> ModelDir:
        """The model of a target, read and checked, with the `Trust` of this watch.

        Raises:
            UsageError: where it is no valid model directory, is not trusted, or has not the hashes that it should have.
        """
        return ModelDir(target.path, self.trust, self.registry or None)

    def first(self) -> ModelDir:
        """The model with which a run begins: the one that the location stands for now.

        Raises:
            UsageError: as `find` and `open` do.
        """
        return self.open(self.find())

    def _path(self) -> str:
        location = self.location
        if is_mlflow(location) or is_reference(location):
            return self._registered(location)
        if has_magic(location) and (is_remote(location) or not Path(location).exists()):
            return self._newest(location)
        text = _pointer(location)
        if text is None:  # of a link, what it leads to: Beam tells models apart by their path
            return location if is_remote(location) else os.path.realpath(location)
        if is_mlflow(text) or is_reference(text):
            return self._registered(text)
        if is_remote(text) or Path(text).is_absolute():
            return text
        folder = location.rpartition("/")[0]
        return f"{folder}/{text}" if is_remote(location) else os.path.normpath(Path(folder, text))

    def _registered(self, name: str) -> str:
        mlflow_registry.use(self.server)
        return resolve(name, self.registry or None).path

    def _newest(self, pattern: str) -> str:
        bare = pattern.endswith(BARE)
        found = {
            path if bare else path.rpartition("/")[0]: time
            for path, _, time in _matches(pattern if bare else f"{pattern.rstrip('/')}/{MODEL_FILE}")
        }
        found = {path: time for path, time in found.items() if not _name(path).startswith((".", "_"))}
        if not found:
            what = "file" if bare else f"directory with a {MODEL_FILE}"
            raise UsageError(f"no {what} matches {pattern}; put a model there")
        if self.newest_by == "time":
            return max(found, key=lambda path: (found[path], path))
        versions = {path: version for path in found if (version := _version(path)) is not None}
        if not versions:
            raise UsageError(
                f'{pattern} matches "{_name(min(found))}", whose name is no version such as 7, v1.4.0 or 2026-11-25; rename it, '
                "or take the newest by time (--newest_by=time)"
            )
        return max(versions, key=lambda path: (versions[path], path))

    def _stamped(self, path: str) -> Target:
        if is_mlflow(path):
            return Target(path)  # a version never changes
        if is_remote(path):
            root = path.rstrip("/")
            inside = [*_matches(escape(root) + "/**"), *_matches(escape(root))]
            return Target(path, tuple(sorted(inside)))
        if not Path(path).exists():
            raise UsageError(f"model {path} does not exist; it must be a model directory or a .pt2 or TorchScript file")
        try:
            stamps = files.stamps(Path(path), files.names(Path(path)))
        except OSError as error:
            raise UsageError(f"model {path} cannot be read: {error.strerror or error}") from None
        return Target(path, tuple(sorted(stamps.items())))


@dataclass(frozen=True)
class Refresh:
    """That a model is refreshed, and how often its location is looked at.

    Attributes:
        watch: the location.
        every: seconds from one look to the next.

    Raises:
        UsageError: for an interval that is not positive.
    """

    watch: ModelWatch
    every: float = 60.0

    def __post_init__(self) -> None:
        if not 0 < self.every <= _LONGEST:
            raise UsageError(f"a model is looked for every 0.1 to {_LONGEST:,} seconds, not every {self.every}")


def _name(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


def _version(path: str) -> Version | None:
    """The version that is the name of a path; `-` and `_` between digits, as in dates, count as `.`."""
    name = _name(path)
    name = name[: -len(Path(name).suffix)] if name.endswith(BARE) else name
    try:
        return Version(re.sub(r"(?<=\d)[-_](?=\d)", ".", name))
    except InvalidVersion:
        return None


def _pointer(path: str) -> str | None:
    """The text of a pointer file; None where `path` is a model directory or a bare file, or is not there."""
    if is_remote(path):
        found = list(_matches(escape(path)))
        if path.endswith(BARE) or not found or found[0].size > _MAX_POINTER:
            return None
    else:
        file = Path(path)
        if not file.is_file() or zipfile.is_zipfile(file):
            return None
        if file.stat().st_size > _MAX_POINTER:
            raise UsageError(f"{path} is neither a model nor a pointer file: it has more than {_MAX_POINTER:,} bytes")
    lines = (small_text(path) or "").split("\n")
    text = lines[0].strip()
    if not text or any(map(str.strip, lines[1:])) or not text.isprintable():
        raise UsageError(f"pointer file {path} holds no path; {_WRITE_POINTER}")
    return text


@shared_s3()
def _matches(pattern: str) -> list[_File]:
    """The files that match a pattern, with their sizes in bytes and the times at which they were written in seconds."""
    if not is_remote(pattern):
        return list(_local(glob(pattern, recursive=True)))  # noqa: PTH207 - the pattern is absolute
    from apache_beam.io.filesystems import FileSystems

    prepare()
    try:
        found: Iterable[_File] = (
            _File(each.path, each.size_in_bytes, each.last_updated_in_seconds)
            for each in FileSystems.match([pattern])[0].metadata_list
        )
        return [file for file in found if not file.path.endswith("/")]
    except Exception as error:
        raise UsageError(f"{pattern} cannot be listed: {explain(error)}") from error


def _local(paths: Iterable[str]) -> Iterator[_File]:
    for path in paths:
        try:
            status = Path(path).stat()
        except OSError:
            continue  # one that was just removed
        if Path(path).is_file():
            yield _File(path, status.st_size, status.st_mtime)
