"""A stream of text as valid UTF-8, for parsers that can read nothing else."""

from __future__ import annotations

import codecs

from transforms.sources.files import InputStream

# Arrow can skip a row with too few fields only where its text is UTF-8. So each byte that is not is replaced by this
# character, which no text may hold, and the fields that have it are refused.
INVALID = "\U0010ffff"
codecs.register_error("torchbeam.invalid", lambda error: (INVALID, error.end))  # type: ignore[attr-defined]


class Utf8:
    """The bytes of a stream as valid UTF-8, and `end` as a row behind them. `repaired`: whether some were not."""

    def __init__(self, stream: InputStream) -> None:
        self.repaired = False
        self.end = b""
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8")("torchbeam.invalid")
        self._ahead = b""
        self._ended = False

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; none behind `end`."""
        data = self.peek(size)
        if self._ended and self.end:
            # In one piece with the last bytes: a block more would make the last row one of too many blocks for Arrow.
            data += self.end if self._stream.error is not None else b"\n" + self.end
            self.end = b""
        self._ahead = data[size:]
        return data[:size]

    def peek(self, size: int) -> bytes:
        """At least `size` of the bytes that come next, or all there are."""
        while len(self._ahead) < size and not self._ended:
            data = self._stream.read(size - len(self._ahead))
            self._ended = not data
            if not data.isascii() or self._decoder.getstate()[0]:
                text = self._decoder.decode(data, final=self._ended)
                self.repaired = self.repaired or INVALID in text
                data = text.encode()
            self._ahead += data
        return self._ahead

    def close(self) -> None:
        """Closes the stream."""
        self._stream.close()

    @property
    def closed(self) -> bool:
        """Whether the stream is closed."""
        return self._stream.closed
