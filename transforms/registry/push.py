"""Copies a model directory to a registry as its next version. A version that is not complete is never seen.

On a local disk the copy is made in a hidden folder, which is then renamed to the number. Object stores cannot rename a
folder: there a number is reserved by a conditional write, and `model.yaml`, without which it is no version, is written last.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from glob import escape
from pathlib import Path

from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

from handlers.errors import TorchbeamError, UsageError
from handlers.model import files, registry
from handlers.model.directory import ModelDir
from handlers.model.files import MODEL_FILE
from handlers.model.registry import RECORD
from handlers.model.stores import explain
from handlers.paths import is_remote
from transforms.conditional_files import ChangedError, conditional_file
from transforms.file_ops import join, remove, written_below

KILLED_SECONDS = 3600  # without a write, after which a push is taken for killed
_BLOCK = 8 << 20  # bytes
_SCRATCH = ".push-"  # begins the names of folders that are copied to


def push(model: ModelDir, root: str, name: str, tell: Callable[[str], None]) -> int:
    """Copies `model` to the registry `root` as the next version of `name`; gives its number.

    `tell` is called with a line for each folder of a killed push that is removed.

    Raises:
        UsageError: for a bare file, a directory without `model.yaml`, and a model that changes while it is copied.
        TorchbeamError: where the registry cannot be written.
    """
    local = model.local()
    if not local.is_dir():
        raise UsageError(f"--model {model.path} is a bare file; push a model directory: put it next to a {MODEL_FILE}")
    if not (local / MODEL_FILE).is_file():
        raise UsageError(
            f"--model {model.path} has no {MODEL_FILE}; write one with: torchbeam init --from={model.path}"
        )
    try:
        if is_remote(root):
            return _push_remote(model, local, root, name)
        return _push_local(model, local, root, name, tell)
    except TorchbeamError:
        raise
    except Exception as error:
        raise TorchbeamError(f"--registry {root} cannot be written: {explain(error)}") from error


def _push_local(model: ModelDir, local: Path, root: str, name: str, tell: Callable[[str], None]) -> int:
    folder = Path(root, name)
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    scratch = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_killed(folder, tell)
        scratch = Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=folder))
        for file in files.names(local):
            (scratch / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(local / file, scratch / file)
        if files.digest_of(files.digests(scratch)) != model.digest:
            raise UsageError(f"model {model.path} was written to while it was copied; nothing was pushed; start again")
        (scratch / RECORD).write_text(_record(model))
        scratch.chmod(0o777 & ~_umask())  # mkdtemp lets no other user in
        number = _next(root, name)
        while True:
            try:
                scratch.rename(folder / str(number))
                return number
            except OSError:  # another push was faster
                if not (folder / str(number)).exists():
                    raise
                number += 1
    finally:
        if scratch:
            shutil.rmtree(scratch, ignore_errors=True)
        with suppress(OSError):
            for each in made:
                each.rmdir()  # fails where a version is in it


def _remove_killed(folder: Path, tell: Callable[[str], None]) -> None:
    """Removes what killed pushes left: hidden folders in which nothing was written for an hour."""
    for name, written in written_below(str(folder), _SCRATCH).items():
        if written is not None and time.time() - written > KILLED_SECONDS:
            shutil.rmtree(folder / name, ignore_errors=True)
            tell(f"removed {folder / name}, which a killed push left")


def _push_remote(model: ModelDir, local: Path, root: str, name: str) -> int:
    number = _next(root, name)
    while True:
        folder = registry.folder_of(root, name, number)
        try:
            conditional_file(join(folder, RECORD)).write(_record(model), None)
            break
        except ChangedError:  # another push has this number
            number += 1
    names = [file for file in files.names(local) if file != MODEL_FILE]
    try:
        for file in names:
            _upload(local / file, join(folder, file))
        _check_uploaded(local, folder, [*names, RECORD])
        _upload(local / MODEL_FILE, join(folder, MODEL_FILE))
    except BaseException:
        with suppress(Exception):
            remove([join(folder, file) for file in (MODEL_FILE, *names, RECORD)])
        raise
    return number


def _next(root: str, name: str) -> int:
    """The number after all that are or were in use: of finished and unfinished versions, and of aliases."""
    if is_remote(root):
        below = f"{root}/{name}/"
        found = [item.path for item in FileSystems.match([f"{escape(below)}**"])[0].metadata_list]
        taken = {path.removeprefix(below).partition("/")[0] for path in found}
    else:
        taken = {path.name for path in Path(root, name).iterdir()}
    numbers = {int(each) for each in taken if re.fullmatch(r"[1-9][0-9]{0,8}", each, re.ASCII)}
    for alias in registry.read_aliases(root, name).values():
        numbers |= {alias.version, *alias.previous}
    return max(numbers, default=0) + 1


def _upload(source: Path, target: str) -> None:
    with (
        source.open("rb") as reader,
        FileSystems.create(target, compression_type=CompressionTypes.UNCOMPRESSED) as writer,
    ):
        shutil.copyfileobj(reader, writer, _BLOCK)


def _check_uploaded(local: Path, folder: str, names: list[str]) -> None:
    """Raises where another program has written into the folder, or a file is not as long as it must be."""
    found = {
        item.path.removeprefix(f"{folder}/"): item.size_in_bytes
        for item in FileSystems.match([f"{escape(folder)}/**"])[0].metadata_list
    }
    wrong = [name for name in names if name != RECORD and found.get(name) != (local / name).stat().st_size]
    if wrong or set(found) != set(names):
        what = wrong or sorted(set(found) ^ set(names))
        raise TorchbeamError(f"{folder}/{what[0]} is not what was written; nothing was pushed; start again")


def _record(model: ModelDir) -> str:
    # Unique, so that a conditional write of it shows which of two pushes of one model has a number.
    return json.dumps({"digest": model.digest, "push": uuid.uuid4().hex}) + "\n"


def _umask() -> int:
    found = os.umask(0o022)
    os.umask(found)
    return found
