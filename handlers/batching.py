"""How rows are gathered, and what the inference step requires of its workers. Imports neither torch nor Beam."""

from __future__ import annotations

import re
from dataclasses import dataclass

from handlers.errors import UsageError

# The units of Beam's hint (apache_beam/transforms/resources.py), smallest power first.
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "PB": 10**15}
_UNITS |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "PiB": 2**50, "B": 1}
_LEAST_RAM = 1 << 20
_CHUNK_BYTES = (10**6, 10**9)  # a text column of a chunk is limited to 2 GiB


@dataclass(frozen=True)
class Batching:
    """How rows are gathered.

    Attributes:
        chunk_rows: rows of a chunk, the unit that flows through the pipeline.
        chunk_bytes: maximum bytes of a chunk; only a single larger row may exceed it.
        batch_size: rows of a micro-batch, one call of the model; None chooses by the bytes of a row.
    """

    chunk_rows: int = 65_536
    chunk_bytes: int = 64 << 20
    batch_size: int | None = None

    def __post_init__(self) -> None:
        for name in ("chunk_rows", "chunk_bytes", "batch_size"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise UsageError(f"{name} must be a whole number of 1 or more, not {value!r}")


@dataclass(frozen=True)
class ResourceHints:
    """What the inference step requires of its workers, in Beam's notation.

    Attributes:
        accelerator: for example `type:nvidia-l4;count:1;install-nvidia-driver`.
        min_ram: with its unit, for example `16GB` (10⁹ bytes) or `16GiB` (2³⁰ bytes).
    """

    accelerator: str | None = None
    min_ram: str | None = None

    def __post_init__(self) -> None:
        if self.min_ram is not None:
            _check_ram(str(self.min_ram))
        if self.accelerator is not None and not self.accelerator.startswith("type:"):
            raise UsageError(
                f'--accelerator "{self.accelerator}" names no type; write it as type:nvidia-l4;count:1;install-nvidia-driver'
            )

    def as_dict(self) -> dict[str, str]:
        """Keyword arguments of Beam's `with_resource_hints`."""
        hints = {"accelerator": self.accelerator, "min_ram": self.min_ram}
        return {name: value for name, value in hints.items() if value is not None}


def in_bytes(text: str, example: str) -> int:
    """An amount of memory with its unit, as `64MB` or `1.5GiB`, in bytes; raises `ValueError`, which gives the `example`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    if match is None:
        raise ValueError(f'"{text}" is no amount of memory; write it as {example}')
    amount, unit = match.groups()
    if not unit:
        raise ValueError(f'"{text}" has no unit; write it with one, as {amount}{example.lstrip("0123456789")}')
    if unit not in _UNITS:
        raise ValueError(f'"{text}" has the unknown unit "{unit}"; write one of {", ".join(_UNITS)}')
    return int(float(amount) * _UNITS[unit])


def chunk_bytes(text: str) -> int:
    """The bytes of a chunk; raises `ValueError` where they are too few or too many."""
    size = in_bytes(text, "64MB")
    if not _CHUNK_BYTES[0] <= size <= _CHUNK_BYTES[1]:
        raise ValueError(f'"{text}" is too {"small" if size < _CHUNK_BYTES[0] else "large"}; write 1MB to 1GB')
    return size


def _check_ram(text: str) -> None:
    try:
        size = in_bytes(text, "16GB")
    except ValueError as error:
        raise UsageError(f"--min_ram {error}") from None
    if size < _LEAST_RAM:
        amount = re.match(r"[\d.]*", text.strip())
        raise UsageError(
            f'--min_ram "{text}" is less than 1MiB; write the memory of a worker, as {amount and amount.group()}GB'
        )
