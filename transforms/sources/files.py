"""Finding input files and opening them, on the local disk and in the object stores that Beam knows."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from types import TracebackType
from urllib.parse import unquote

import pyarrow as pa
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

from handlers.errors import UsageError
from handlers.model.stores import explain
from handlers.paths import is_remote

COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
# Where decompression fails, what it gave within the piece is lost, and read again byte by byte: small pieces cost little.
_PIECE = 1 << 18
_NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"

Partitions = tuple[tuple[str, str | None], ...]


@dataclass(frozen=True)
class InputFile:
    """A file of the input; `partitions` are the `key=value` folders that it lies in, outermost first."""

    path: str
    size: int
    partitions: Partitions = ()


def find_files(pattern: str) -> list[InputFile]:
    """The files that `pattern` names, sorted by path.

    A path that exists literally wins over a pattern, a directory means all files below it, and `**/` also matches no
    folder at all. Below the fixed part of the pattern, names that begin with `_` or `.` are skipped.

    Raises:
        UsageError: nothing matches, or the folder cannot be listed.
    """
    try:
        root, sizes = _match(pattern if is_remote(pattern) else os.path.normpath(pattern))
    except Exception as error:
        raise UsageError(f"cannot list {pattern}: {explain(error)}; check the path and your access to it") from error
    below = {path: path.removeprefix(root).split("/") for path in sorted(sizes)}
    files = [
        InputFile(path, sizes[path], _partitions(root, folders))
        for path, (*folders, name) in below.items()
        if not any(part.startswith(("_", ".")) for part in [*folders, name])
    ]
    if not files:
        skipped = f" ({len(below)} skipped: their names begin with _ or .)" if below else ""
        raise UsageError(f"no file matches {pattern}{skipped}; give a file, a directory or a quoted pattern")
    return files


def _match(pattern: str) -> tuple[str, dict[str, int]]:
    """The fixed part of `pattern`, up to and with its last slash, and the sizes of the files that match, by path."""
    folder = pattern.rstrip("/") + "/"
    parent = pattern[: pattern.rfind("/") + 1]
    if not is_remote(pattern):
        if Path(pattern).is_file():
            return parent, {pattern: Path(pattern).stat().st_size}
        if Path(pattern).is_dir():
            return _root(folder), _list([_loose(folder) + "**"], folder)
    elif not pattern.partition("://")[2].rstrip("/").count("/"):  # a whole bucket, which Beam takes for no path
        return folder, _list([folder + "**"])
    elif "*" not in pattern:
        sizes = _list([_loose(pattern)])
        if pattern in sizes:
            return parent, {pattern: sizes[pattern]}
        if sizes := _list([_loose(folder) + "**"], folder):
            return folder, sizes
    fixed = re.split(r"[*?[]", pattern, maxsplit=1)[0]
    patterns = _with_top_level(pattern)
    return fixed[: fixed.rfind("/") + 1], _list(patterns) or _list([f"{each.rstrip('/')}/**" for each in patterns])


def _root(folder: str) -> str:
    return "" if folder == "./" else folder


def _list(patterns: Iterable[str], prefix: str = "") -> dict[str, int]:
    """Sizes of the files that match one of the Beam `patterns` and begin with `prefix`, by path."""
    sizes: dict[str, int] = {}
    for pattern in patterns:
        # Beam finds nothing for a relative pattern that has no folder.
        here = "" if is_remote(pattern) or pattern.startswith("/") else "./"
        for found in FileSystems.match([here + pattern])[0].metadata_list:
            path = found.path.removeprefix(here)
            # Consoles of object stores keep empty folders as objects of that name.
            if path.startswith(_root(prefix)) and not path.endswith("/"):
                sizes[path.removeprefix("./")] = found.size_in_bytes
    return sizes


def _loose(path: str) -> str:
    """A Beam pattern that matches `path` itself, among others: Beam has no way to quote."""
    return re.sub(r"[*?[]", "?", path)


def _with_top_level(pattern: str) -> list[str]:
    """`pattern`, and its variants in which a `**/` matches no folder, which it never does in Beam."""
    first, *rest = re.split(r"(?:(?<=/)|^)\*\*/", pattern)
    return [
        first + "".join(star + part for star, part in zip(stars, rest, strict=True))
        for stars in product(("**/", ""), repeat=len(rest))
    ]


def _partitions(root: str, folders: list[str]) -> Partitions:
    """The `key=value` folders below `root`, and those that `root` itself ends with."""
    above: list[str] = []
    for part in reversed(root.rstrip("/").split("/")):
        if "=" not in part:
            break
        above.insert(0, part)
    pairs = [part.split("=", 1) for part in [*above, *folders] if "=" in part]
    return tuple((unquote(key), None if value == _NULL_PARTITION else unquote(value)) for key, value in pairs)


def open_input(path: str, *, whole: bool = False) -> pa.NativeFile:
    """Opens a file for reading at any offset, its bytes as they are stored; as a `whole` it is in memory already."""
    file = (
        pa.PythonFile(FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED), mode="r")
        if is_remote(path)
        else pa.OSFile(path)
    )
    if not whole:
        return file
    with file:
        return pa.BufferReader(file.read())


def open_stream(path: str) -> InputStream:
    """Opens a file for reading from its start to its end; by its extension it is decompressed."""
    codec = COMPRESSIONS.get(Path(path).suffix.lower())
    if codec is None:
        return InputStream(open_input(path))

    def opened() -> pa.NativeFile:
        return pa.CompressedInputStream(open_input(path), codec)

    return InputStream(opened(), opened)


def _size(file: pa.NativeFile) -> int:
    """The size of a file, where it costs nothing to ask; else far more than it has."""
    return int(file.size()) if isinstance(file, pa.OSFile | pa.BufferReader) else 1 << 62


class InputStream:
    """The bytes of a file. Where the file breaks the stream ends, and `error` says why.

    So all that comes before a break can be read, for any size of the blocks that a parser asks for. `again` opens
    a file once more that is decompressed.
    """

    def __init__(self, file: pa.NativeFile, again: Callable[[], pa.NativeFile] | None = None) -> None:
        self.error: Exception | None = None
        self._file = file
        self._again = again
        self._size = None if again else _size(file)
        self._at = 0
        self._lock = threading.Lock()  # Arrow reads ahead in another thread, also while we close

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; none at the end or where the file breaks."""
        pieces: list[bytes] = []
        left = size
        with self._lock:
            while left > 0 and self.error is None:
                piece = self._piece(min(left, self._likely()))
                if not piece:
                    break
                pieces.append(piece)
                left -= len(piece)
                self._at += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _likely(self) -> int:
        """Bytes to ask for: Arrow makes room for all of them, which for a small file takes longer than reading it."""
        return _PIECE if self._size is None else max(self._size - self._at, _PIECE)

    def _piece(self, size: int) -> bytes:
        try:
            return bytes(self._file.read(size))
        except Exception as error:
            self.error = error
            return self._before_the_break(size)

    def _before_the_break(self, size: int) -> bytes:
        """The bytes of a piece of `size` that come before the break in it."""
        found = bytearray()
        with suppress(Exception):
            if self._again is not None:
                with self._again() as file:
                    left = self._at
                    while left > 0 and (passed := file.read(min(left, 1 << 20))):
                        left -= len(passed)
                    while len(found) < size and (byte := file.read(1)):
                        found += byte
        return bytes(found)

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._file.close()

    @property
    def closed(self) -> bool:
        """Whether the file is closed."""
        return bool(self._file.closed)

    def __enter__(self) -> InputStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
