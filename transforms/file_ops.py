"""Files and folders, on a local disk or in an object store, by path.

Beam's functions treat a path as a pattern, and a local folder may be named `[x]`.
"""

from __future__ import annotations

import posixpath
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from glob import escape
from pathlib import Path

import pyarrow as pa
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

from handlers.paths import is_remote


def join(folder: str, name: str) -> str:
    """`name` in `folder`."""
    return f"{folder.rstrip('/')}/{name}"


def name_of(path: str) -> str:
    """The last part of `path`."""
    return path.rsplit("/", 1)[-1]


def folder_of(path: str) -> str:
    """The folder of a file."""
    return posixpath.dirname(path) or "."


def exists(path: str) -> bool:
    """Whether there is a file, or a local folder, at `path`."""
    return bool(FileSystems.exists(path)) if is_remote(path) else Path(path).exists()


def _matches(pattern: str) -> Iterator[str]:
    for match in FileSystems.match([pattern]):
        yield from (found.path for found in match.metadata_list)


def files_in(folder: str, pattern: str) -> list[str]:
    """The files of a folder whose names match `pattern`; empty if the folder does not exist."""
    if not is_remote(folder):
        return [join(folder, path.name) for path in Path(folder).glob(pattern)]
    return list(_matches(join(escape(folder), pattern)))


def subfolders(folder: str) -> list[str]:
    """The names of the folders in a folder that hold files; hidden ones are left out."""
    if is_remote(folder):
        root = folder.rstrip("/") + "/"
        found = {path.removeprefix(root).partition("/")[0] for path in _matches(f"{escape(root)}*/*")}
    else:
        found = {path.name for path in Path(folder).iterdir() if path.is_dir()}
    return sorted(name for name in found if not name.startswith((".", "_")))


def written_below(folder: str, prefix: str) -> dict[str, float | None]:
    """The time of the last write below each subfolder whose name begins with `prefix`, in Unix time.

    The keys are folder names; a value is None if the file system has no times.
    """
    times: dict[str, list[float]] = {}
    if not is_remote(folder):
        for found in Path(folder).glob(f"{prefix}*"):
            if found.is_dir() and not found.is_symlink():
                times[found.name] = [each.lstat().st_mtime for each in (found, *found.rglob("*"))]
    else:
        root = folder.rstrip("/") + "/"
        for match in FileSystems.match([f"{escape(root)}{prefix}*/**"]):
            for file in match.metadata_list:
                name = file.path.removeprefix(root).partition("/")[0]
                times.setdefault(name, []).append(file.last_updated_in_seconds)
    return {name: max(found) or None for name, found in times.items()}


def changed_at(paths: Sequence[str]) -> dict[str, float | None]:
    """When files were last written, in Unix time, by their paths; None if the file system has no times."""
    times: dict[str, float | None] = {path: Path(path).stat().st_mtime for path in paths if not is_remote(path)}
    for folder in sorted({folder_of(path) for path in paths if is_remote(path)}):
        for match in FileSystems.match([join(escape(folder), "*")]):
            times |= {file.path: file.last_updated_in_seconds or None for file in match.metadata_list}
    return {path: times.get(path) for path in paths}


def present(paths: Iterable[str]) -> set[str]:
    """The `paths` that exist; remote folders are listed, which takes fewer calls than one for each file."""
    local = {path for path in paths if not is_remote(path) and exists(path)}
    remote = {path for path in paths if is_remote(path)}
    folders = {folder_of(path) for path in remote}
    return local | (remote & {found for folder in folders for found in _matches(join(escape(folder), "*"))})


def remove(paths: Sequence[str]) -> None:
    """Removes files; local files may be missing already."""
    for path in paths:
        if not is_remote(path):
            Path(path).unlink(missing_ok=True)
    # Of the remote file systems only Google's treats the paths to delete as patterns.
    remote = [escape(path) if path.startswith("gs://") else path for path in paths if is_remote(path)]
    if remote:
        FileSystems.delete(remote)


def remove_tree(folder: str) -> None:
    """Removes a folder and its content; a missing folder is not an error."""
    if not is_remote(folder):
        shutil.rmtree(folder, ignore_errors=True)
        return
    if FileSystems.get_filesystem(folder).has_dirs():
        if exists(folder):
            remove([folder])
        return
    remove(list(_matches(join(escape(folder), "**"))))


def rename(moves: Sequence[tuple[str, str]]) -> None:
    """Renames files, given as (old path, new path); creates folders."""
    local = [(source, target) for source, target in moves if not is_remote(target)]
    for source, target in local:
        _rename_local(source, target)
    remote = [move for move in moves if is_remote(move[1])]
    for folder in {folder_of(target) for _, target in remote}:
        if not exists(folder):
            FileSystems.mkdirs(folder)
    if remote:
        FileSystems.rename([source for source, _ in remote], [target for _, target in remote])


def _rename_local(source: str, target: str) -> None:
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    Path(source).replace(target)


def create(path: str, *, make_parents: bool = True) -> pa.NativeFile:
    """Opens `path`, local or remote, for writing; creates its folder, and with `make_parents` those above."""
    if not is_remote(path):
        Path(path).parent.mkdir(parents=make_parents, exist_ok=True)
        return pa.OSFile(path, "wb")
    return pa.PythonFile(FileSystems.create(path, compression_type=CompressionTypes.UNCOMPRESSED), mode="w")


def read_text(path: str) -> str:
    """The text of a whole file."""
    with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as file:
        return str(file.read(), "utf-8")


def write_text(path: str, text: str) -> None:
    """Writes a whole file or none: by renaming on a local disk; remote stores show a file once it is closed."""
    if is_remote(path):
        with create(path) as file:
            file.write(text.encode())
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"_{target.name}-{uuid.uuid4().hex[:12]}")
    try:
        temporary.write_text(text)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
