"""What an output format is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa


class Encoder(Protocol):
    """Writes tables of one schema to an open file; closing it completes the format and leaves the file open."""

    def write(self, table: pa.Table) -> None: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102


@dataclass(frozen=True)
class Sink:
    """An output format.

    Attributes:
        name: what `--output_format` says.
        extension: of the files, with its dot.
        encoder: makes the encoder for an open file and a schema.
        check: raises `UsageError` for a schema that the format cannot hold.
    """

    name: str
    extension: str
    encoder: Callable[[pa.NativeFile, pa.Schema], Encoder]
    check: Callable[[pa.Schema], None]


def is_binary(kind: pa.DataType) -> bool:
    """Whether values of `kind` are bytes, which text cannot hold as they are."""
    types = pa.types
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind))
