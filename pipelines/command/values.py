"""Values as text. Parsers of options give a value, or raise `ValueError` with the reason."""

from __future__ import annotations

import re


def positive(text: str) -> int:
    """A whole number of 1 or more."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise ValueError(f'must be a whole number of 1 or more, not "{text}"')
    return value


def positive_or_auto(text: str) -> int | None:
    """A whole number of 1 or more; None for `auto`."""
    return None if text == "auto" else positive(text)


def rate(text: str) -> float:
    """A number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise ValueError(f'must be a number from 0 to 1, not "{text}"')
    return value


def path(text: str) -> str:
    """A path, table or query."""
    if not text.strip():
        raise ValueError("is empty; remove it or give it a value")
    if "\0" in text:
        raise ValueError("contains a NUL character")
    return text


def names(text: str) -> tuple[str, ...]:
    """Names separated by commas."""
    found = tuple(name.strip() for name in text.split(",") if name.strip())
    if not found:
        raise ValueError("must be column names separated by commas, or *")
    return found


def function(text: str) -> str:
    """A function's name as `module:function`."""
    if not all(text.partition(":")):
        raise ValueError(f'must be module:function, not "{text}"')
    return text


def spark_version(text: str) -> str | None:
    """A full Spark version; None for `3`, which is Beam's default."""
    if text == "3":
        return None
    if not re.fullmatch(r"3\.\d+\.\d+\S*", text):
        raise ValueError(f'must be a full version of Spark 3, such as 3.5.7, not "{text}"')
    return text


def size(count: float) -> str:
    """A number of bytes for people, as `49 kB`."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:,.1f} GB"
