"""A growing folder as a source: for trying a stream without a broker.

A file appears whole, by a rename: a name that begins with "." or "_" is not looked at. Each line that is not blank is a message.
The files are one log, in the order in which they were found: the offset of a message is the number of bytes before its line in
all of them. `DIR/.torchbeam/GROUP/files.jsonl` keeps that order, and `position` beside it the offset that a new start begins at.
"""

from __future__ import annotations

import bisect
import fcntl
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from handlers.errors import StreamError, UsageError, one_line
from handlers.paths import is_remote
from transforms.streams.endpoints import Settings
from transforms.streams.folder_sink import FolderSink, write_atomically
from transforms.streams.messages import Messages

STATE = ".torchbeam"
PARTITION = "0"
_POLL_SECONDS = 0.02


def source(address: str, settings: Settings, flag: str) -> FolderSource:
    """The source of `folder:DIR`; raises `UsageError` for one that cannot be."""
    if settings.begin == "latest":
        raise UsageError(f"--from=latest is for brokers; {flag} is a folder, which is read from its first file")
    return FolderSource(_path(address), settings.group or "torchbeam")


def sink(address: str, settings: Settings, flag: str, *, whole: bool) -> FolderSink:
    """The sink of `folder:DIR`; raises `UsageError` for one that cannot be."""
    del settings, flag
    return FolderSink(_path(address), whole)


def _path(address: str) -> str:
    path = address.partition(":")[2]
    if not path or is_remote(path):
        raise UsageError(f'"{address}" must be a local folder, as folder:DIR')
    return os.path.abspath(path)  # noqa: PTH100 - a name of a source, which must not depend on links


@dataclass(frozen=True)
class FolderSource:
    """The lines of the files of a folder.

    Attributes:
        path: the folder.
        group: whose position is kept.
    """

    path: str
    group: str = "torchbeam"

    @property
    def name(self) -> str:
        """The folder."""
        return self.path

    def check(self) -> None:
        """Raises `UsageError` if the folder is not there, or the position cannot be written to it."""
        if not Path(self.path).is_dir():
            raise UsageError(f'folder "{self.path}" is not there; make it, and move whole files into it')
        try:
            self._state.mkdir(parents=True, exist_ok=True)
            os.close(lock(self._state))
        except OSError as error:
            raise UsageError(
                f'"{self._state}", where the position is kept, cannot be written: {error.strerror}'
            ) from None
        except StreamError as error:
            raise UsageError(str(error)) from None

    def partitions(self) -> list[str]:
        """One: all files are one log."""
        return [PARTITION]

    def start(self, partition: str) -> int:
        """The offset behind the last message that was delivered."""
        del partition
        try:
            return int(json.loads((self._state / "position").read_text())["offset"])
        except FileNotFoundError:
            return 0
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StreamError(f"{self._state / 'position'} cannot be read: {one_line(error)}") from None

    def reader(self, partition: str, offset: int) -> FolderReader:
        """Reads on from `offset`."""
        del partition
        return FolderReader(self, self._state, offset)

    def commit(self, messages: Messages) -> None:
        """Keeps the position behind `messages`; it survives a crash of the machine."""
        write_atomically(
            self._state / "position", json.dumps({"offset": int(messages.offsets[-1]) + 1}).encode() + b"\n"
        )

    @property
    def _state(self) -> Path:
        return Path(self.path) / STATE / self.group


@dataclass(frozen=True)
class LoggedFile:
    """A file of the folder and where it lies in the log; all in bytes."""

    name: str
    start: int
    size: int
    time: int  # of its last change, in microseconds since 1970

    @property
    def end(self) -> int:
        """One behind its last byte; files are apart by one, so that a last line without an end has an offset after it."""
        return self.start + self.size + 1


class Journal:
    """The files in the order in which they were found, each written down before its first message is given out."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.files: list[LoggedFile] = []
        if path.exists():
            self._load()
        self._names = {file.name for file in self.files}

    def _load(self) -> None:
        try:
            data = self._path.read_bytes()
            if not data.endswith(b"\n"):  # a line that a crash has cut was never used
                data = data[: data.rfind(b"\n") + 1]
                write_atomically(self._path, data)
            self.files = [LoggedFile(**json.loads(line)) for line in data.splitlines()]
        except (OSError, ValueError, TypeError) as error:
            raise StreamError(f"{self._path} cannot be read: {one_line(error)}") from None

    @property
    def end(self) -> int:
        """One behind the last file."""
        return self.files[-1].end if self.files else 0

    def at(self, offset: int) -> LoggedFile:
        """The file that `offset` lies in."""
        return self.files[bisect.bisect_right(self.files, offset, key=lambda file: file.start) - 1]

    def find(self, folder: Path) -> bool:
        """Writes down the files of `folder` that are new, the oldest first; gives whether there are any."""
        new = []
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name in self._names or entry.name.startswith((".", "_")) or not entry.is_file():
                    continue
                about = entry.stat()
                new.append((about.st_mtime_ns, entry.name, about.st_size))
        if not new:
            return False
        end = self.end
        for changed, name, size in sorted(new):
            self.files.append(LoggedFile(name, end, size, changed // 1000))
            end = self.files[-1].end
        with self._path.open("ab") as file:
            for each in self.files[-len(new) :]:
                file.write(json.dumps(vars(each), ensure_ascii=False).encode(errors="surrogateescape") + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._names.update(name for _, name, _ in new)
        return True


class FolderReader:
    """Reads the lines of the files of a folder from an offset on. Only one reader of a group may be there at a time.

    Raises:
        StreamError: if another process reads the folder for the group, or a file is not as it was found.
    """

    def __init__(self, source: FolderSource, state: Path, offset: int) -> None:
        self._source = source
        self._lock: int | None = lock(state)
        self._journal = Journal(state / "files.jsonl")
        self._offset = offset
        self._open: tuple[LoggedFile, BinaryIO] | None = None

    def read(self, max_messages: int, seconds: float) -> Messages | None:
        """Up to `max_messages`, as soon as there are so many or `seconds` are over; None if nothing came."""
        until = time.monotonic() + seconds
        found: list[tuple[int, bytes, LoggedFile]] = []
        while len(found) < max_messages:
            if (opened := self._open or self._next_file()) is not None:
                found += self._lines(*opened, max_messages - len(found))
            elif (left := until - time.monotonic()) > 0:
                time.sleep(min(left, _POLL_SECONDS))
            else:
                break
        if not found:
            return None
        headers = {file.name: (("file", _encoded(file.name)),) for _, _, file in found}
        return Messages(
            self._source.name,
            PARTITION,
            [offset for offset, _, _ in found],
            [None] * len(found),
            [line for _, line, _ in found],
            [headers[file.name] for _, _, file in found],
            [file.time for _, _, file in found],
        )

    def close(self) -> None:
        """Closes the file that is read, and lets others read the folder."""
        self._close_file()
        handle, self._lock = self._lock, None  # first: closed twice, it may be another file's by then
        if handle is not None:
            os.close(handle)

    def _next_file(self) -> tuple[LoggedFile, BinaryIO] | None:
        """Opens the file that holds the offset, or the first one after it; None if there is none."""
        folder = Path(self._source.path)
        try:
            if self._offset >= self._journal.end and not self._journal.find(folder):
                return None
            logged = self._journal.at(self._offset)
            file = (folder / logged.name).open("rb")
        except OSError as error:
            raise StreamError(
                f'"{error.filename}" cannot be read: {error.strerror}; put it back, and start again'
            ) from None
        self._open = (logged, file)
        if self._offset > logged.start:
            file.seek(self._offset - logged.start - 1)
            file.readline()
        self._check(logged, file)
        return self._open

    def _lines(self, logged: LoggedFile, file: BinaryIO, most: int) -> list[tuple[int, bytes, LoggedFile]]:
        """Lines of the open file that are not blank, at most so many; closes it at its end."""
        found: list[tuple[int, bytes, LoggedFile]] = []
        start = logged.start + file.tell()
        while len(found) < most:
            line = file.readline()
            if not line:
                self._check(logged, file)
                self._close_file()
                start = logged.end
                break
            if line.strip():
                found.append((start, line.removesuffix(b"\n").removesuffix(b"\r"), logged))
            start += len(line)
        self._offset = start
        return found

    def _check(self, logged: LoggedFile, file: BinaryIO) -> None:
        """Raises if the file was written to since it was found: lines may be missing, or be there twice."""
        if (size := os.fstat(file.fileno()).st_size) != logged.size:
            raise StreamError(
                f'"{Path(self._source.path) / logged.name}" has {size:,} bytes, and had {logged.size:,} when it appeared; '
                'write a file under a name that begins with "." and rename it when it is whole'
            )

    def _close_file(self) -> None:
        if self._open is not None:
            self._open[1].close()
            self._open = None


def lock(state: Path) -> int:
    """Locks the position of a group; gives the open lock. Raises `StreamError` if another reader has it."""
    handle = os.open(state / "lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise StreamError(
            f'another run reads "{state.parent.parent}" as group {state.name}; end it, or give another --group'
        ) from None
    return handle


def _encoded(name: str) -> bytes:
    return name.encode(errors="surrogateescape")
