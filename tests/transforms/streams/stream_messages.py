"""What the tests of streams share: messages of values, and the lines of folders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transforms.streams.messages import Messages

TIME = 1_700_000_000_000_000  # microseconds


def messages(values: Sequence[bytes | None], first: int = 0, **fields: Any) -> Messages:
    """Messages of the topic orders, partition 3, with offsets from `first` on."""
    count = len(values)
    made = {
        "offsets": list(range(first, first + count)),
        "keys": [f"k{index}".encode() for index in range(count)],
        "headers": [()] * count,
        "times": [TIME + index for index in range(count)],
    }
    return Messages("orders", "3", values=list(values), **{**made, **fields})


def put(folder: Path, name: str, lines: Sequence[bytes | dict[str, Any]]) -> None:
    """Moves a file of lines into a folder, as whoever writes there has to."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{name}"
    part.write_bytes(
        b"".join((json.dumps(each).encode() if isinstance(each, dict) else each) + b"\n" for each in lines)
    )
    part.rename(folder / name)


def records(folder: Path) -> list[dict[str, Any]]:
    """The objects in the files of a folder, in the order of their names."""
    files = sorted(folder.glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_bytes().splitlines()]
