"""The files of a model directory: their hashes, and whether they were touched meanwhile."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from handlers.errors import UsageError

MODEL_FILE = "model.yaml"

# Folders of a training at the top of a model directory, which are not part of the model: its checkpoints and logs. They are
# left out only with the tag file of the Cache Directory Tagging Specification, so that any other folder of that name counts.
WORK_FOLDERS = ("checkpoints", "logs")
TAG = "CACHEDIR.TAG"
TAG_TEXT = """Signature: 8a477f597d28d172789f06886806bc55
# This folder holds the work of a training. It is not part of the model, nor of its version.
"""

# Of a file: its size and when its contents and its name were last changed, in ns. No program can set the last of them.
Stamps = Mapping[str, tuple[int, int, int]]


def sha256(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digests(local: Path) -> dict[str, str]:
    """SHA-256 of every file of a model directory (or of a bare file) by its relative path, `/` between the parts.

    Links are followed. Caches, hidden files and what a training leaves (`WORK_FOLDERS`) are left out; nothing of a model is
    read from them.

    Raises:
        UsageError: where a file cannot be read, or a link leads back into the directory.
    """
    try:
        return {name: sha256(local / name if local.is_dir() else local) for name in names(local)}
    except OSError as error:
        raise UsageError(f"model {local} cannot be read: {error.strerror or error}") from None


def digest_of(found: Mapping[str, str]) -> str:
    """SHA-256 over the names and hashes of files: the digest of a model, of which its version is the beginning."""
    lines = "".join(f"{digest}  {path}\n" for path, digest in sorted(found.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def stamps(local: Path, of: Iterable[str]) -> Stamps:
    """What shows, without reading them, that files were written, replaced or renamed."""
    found = {}
    for name in of:
        try:
            status = (local / name if local.is_dir() else local).stat()
        except OSError:
            continue  # one that is gone is missing in what is compared
        found[name] = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return found


def names(local: Path) -> list[str]:
    """The files of a model directory by their relative paths, `/` between the parts; see `digests`."""
    if local.is_file():
        return [local.name]
    found: list[str] = []
    seen: set[Path] = set()
    for folder, folders, inside in os.walk(local, followlinks=True, onerror=_fail):
        if (real := Path(folder).resolve()) in seen:
            raise UsageError(f"model {local} holds {folder}, a link to a folder that it holds already; remove it")
        seen.add(real)
        relative = Path(folder).relative_to(local)
        at_top = relative == Path()
        folders[:] = sorted(
            name
            for name in folders
            if _counts(name) and not (at_top and is_work(name, Path(folder, name, TAG).is_file()))
        )
        found += [(relative / name).as_posix() for name in inside if _counts(name) and Path(folder, name).is_file()]
    return sorted(found)


def is_work(folder: str, tagged: bool) -> bool:
    """Whether a folder at the top of a model directory is the work of a training; `tagged` says whether it has a `TAG`."""
    return tagged and folder in WORK_FOLDERS


def _counts(name: str) -> bool:
    return not name.startswith(".") and name != "__pycache__"


def _fail(error: OSError) -> None:
    raise error
