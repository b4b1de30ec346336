"""Files of lines, for the formats whose rows are lines. Blank lines are no rows and have no number."""

from __future__ import annotations

from collections.abc import Generator

from handlers.errors import BrokenFileError
from transforms.sources.blocks import Split
from transforms.sources.files import open_stream

BLOCK_BYTES = 4 << 20
MAX_LINE_BYTES = 64 << 20
_BOM = b"\xef\xbb\xbf"


def line_blocks(split: Split) -> Generator[tuple[int, list[bytes]]]:
    """The lines of a file that are not blank, block by block, each with the number of its first line.

    Where the file breaks, the whole lines before the break are given before the error is raised.
    """
    number, rest = 0, b""
    with open_stream(split.path) as stream:
        at_end = False
        while not at_end:
            data = stream.read(BLOCK_BYTES)
            at_end = not data
            text = rest + data
            cut = len(text) if at_end and stream.error is None else text.rfind(b"\n") + 1
            whole, rest = text[:cut], text[cut:]
            if number == 0:
                whole = whole.removeprefix(_BOM)
            if lines := [line for line in whole.split(b"\n") if line and not line.isspace()]:
                yield number, lines
                number += len(lines)
            if len(rest) > MAX_LINE_BYTES:
                raise BrokenFileError(
                    f"line after row {number - 1} of {split.name} is longer than {MAX_LINE_BYTES} bytes"
                )
        if stream.error is not None:
            raise stream.error


def head_lines(split: Split, size: int, limit: int) -> tuple[list[bytes], bool]:
    """At most `limit` lines from about the first `size` bytes of a file, for a look at it; blank lines left out.

    It is one line at least, however long, where the file has one that can be read. The second result is whether
    these are all lines of the file.
    """
    text, whole, at_end, ended = b"", b"", False, False
    with open_stream(split.path) as stream:
        while not whole.strip() and not at_end and len(text) <= MAX_LINE_BYTES:
            asked = max(size, len(text))
            data = stream.read(asked)
            at_end = len(data) < asked
            text += data
            ended = at_end and stream.error is None
            whole = text if ended else text[: text.rfind(b"\n") + 1]
    lines = whole.removeprefix(_BOM).split(b"\n")
    found = [line for line in lines if line and not line.isspace()]
    return found[:limit], ended and len(found) <= limit
