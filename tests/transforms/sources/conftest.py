from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

from handlers.errors import BrokenFileError
from transforms.sources import BadRows, Input, Split, read_split

Rows = list[dict[str, Any]]


@pytest.fixture(scope="session")
def read() -> Callable[..., tuple[Rows, Rows]]:
    """Reads all splits of an input: the rows of its chunks, and its dead letters."""

    def read(found: Input, **options: Any) -> tuple[Rows, Rows]:
        rows: Rows = []
        dead: Rows = []
        for split in found.splits:
            for piece in read_split(split, found.schema, **options):
                if isinstance(piece, BadRows):
                    dead += piece.dead_letters.to_pylist()
                else:
                    rows += piece.to_pylist()
        return rows, dead

    return read


@pytest.fixture(scope="session")
def read_until_break() -> Callable[[Split, pa.Schema], tuple[Rows, BrokenFileError]]:
    """Reads a split that is broken: the rows before the break, and the error."""

    def read(split: Split, schema: pa.Schema) -> tuple[Rows, BrokenFileError]:
        rows: Rows = []
        try:
            for piece in read_split(split, schema, chunk_rows=10):
                assert not isinstance(piece, BadRows)
                rows += piece.to_pylist()
        except BrokenFileError as error:
            return rows, error
        raise AssertionError("nothing broke")

    return read
