"""Folders as sinks: files of JSON lines, each there whole or not at all."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from handlers.errors import StreamError, UsageError
from transforms.streams.accounts import iso
from transforms.streams.encode import ERROR_HEADER, ID_HEADER
from transforms.streams.messages import OutMessage


@dataclass(frozen=True)
class FolderSink:
    """Messages as files of JSON lines, one a flush, each under its final name at once.

    A file is named by the id of its first message, so that a chunk that is delivered again replaces its file.

    Attributes:
        path: the folder.
        whole: whether a line is all of a message, as for dead letters; otherwise its value, which is JSON.
    """

    path: str
    whole: bool = False

    @property
    def name(self) -> str:
        """The folder."""
        return self.path

    def check(self) -> None:
        """Makes the folder; raises `UsageError` if that is impossible."""
        try:
            Path(self.path).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f'folder "{self.path}" cannot be made: {error.strerror}') from None
        if not os.access(self.path, os.W_OK):
            raise UsageError(f'folder "{self.path}" cannot be written')

    def writer(self) -> FolderWriter:
        """A writer of files."""
        return FolderWriter(self)


class FolderWriter:
    """Collects messages and writes them to a file when they are flushed."""

    def __init__(self, sink: FolderSink) -> None:
        self._sink = sink
        self._messages: list[OutMessage] = []

    def write(self, messages: Sequence[OutMessage]) -> None:
        """Takes messages on."""
        self._messages += messages

    def flush(self) -> None:
        """Writes a file; raises `StreamError` if that is impossible."""
        if not self._messages:
            return
        line = whole_line if self._sink.whole else _value
        data = b"".join(line(message) + b"\n" for message in self._messages)
        file = Path(self._sink.path) / file_name(id_of(self._messages[0]))
        try:
            write_atomically(file, data)
        except OSError as error:
            raise StreamError(f'"{file}" cannot be written: {error.strerror}') from None
        self._messages = []

    def close(self) -> None:
        """Forgets what was not flushed."""
        self._messages = []


def id_of(message: OutMessage) -> str:
    """The id of the message that an output is of."""
    return next((value.decode() for name, value in message.headers if name == ID_HEADER and value), "")


def file_name(message_id: str) -> str:
    """The name of a file by the id of its first message; names of a partition sort by offset."""
    source, partition, offset = message_id.rsplit("/", 2)
    digest = hashlib.sha256(source.encode(errors="surrogateescape")).hexdigest()[:8]  # sources of one name stay apart
    readable = re.sub(r"[^\w.-]", "_", Path(source).name)[:40].lstrip("._") or "messages"
    return f"{readable}-{digest}-{partition}-{int(offset):020}.jsonl"


def _value(message: OutMessage) -> bytes:
    return message.value or b"null"


def whole_line(message: OutMessage) -> bytes:
    """All of a message as JSON: bytes as text, or in base64 under `NAME_base64` if they are not valid UTF-8."""
    headers = dict(message.headers)
    error = headers.get(ERROR_HEADER)
    record: dict[str, Any] = {"message_id": id_of(message)}
    if error is not None:
        record["error"] = json.loads(error)
    record |= _text("key", message.key) | _text("value", message.value) | {"time": iso(message.time)}
    record["headers"] = [
        {"name": name, **_text("value", value)}
        for name, value in message.headers
        if name not in (ID_HEADER, ERROR_HEADER)
    ]
    return json.dumps(record, ensure_ascii=False).encode()


def _text(name: str, value: bytes | None) -> dict[str, str | None]:
    if value is None:
        return {name: None}
    try:
        return {name: value.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(value).decode()}


def write_atomically(file: Path, data: bytes) -> None:
    """Writes a file that is there whole or not at all, also after a crash of the machine; replaces one of its name."""
    part = file.with_name(f".{file.name}-{os.getpid()}.part")
    with part.open("wb") as opened:
        opened.write(data)
        opened.flush()
        os.fsync(opened.fileno())
    part.replace(file)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
