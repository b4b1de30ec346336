"""The definition of an output format."""

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
        name: the value of `--output_format`.
        extension: the file extension, with its dot.
        encoder: creates the encoder for an open file and a schema.
        check: raises `UsageError` for a schema that the format does not support.
    """

    name: str
    extension: str
    encoder: Callable[[pa.NativeFile, pa.Schema], Encoder]
    check: Callable[[pa.Schema], None]


def is_binary(kind: pa.DataType) -> bool:
    """Whether values of `kind` are bytes, which text formats must encode."""
    types = pa.types
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind))
