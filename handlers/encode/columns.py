"""Which columns the names and patterns of an input match. The one matcher: `match_columns`."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterable, Sequence

from handlers.encode.specs import InputSpec
from handlers.errors import UsageError


class UnknownLengthError(UsageError):
    """The length of a column's lists cannot be determined from the given rows."""


def resolve_columns(spec: InputSpec, names: Sequence[str]) -> tuple[str, ...]:
    """The columns of `names` that the patterns of `spec` match, in order; raises `UsageError` where one matches nothing."""
    found: dict[str, None] = {}
    known_names = dict.fromkeys(names)
    for pattern in spec.patterns:
        matches = match_columns(pattern, known_names)
        if not matches:
            known = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
            raise UsageError(
                f'column "{pattern}" is missing; the model input "{spec.name}" needs it. There are: {known}'
            )
        found |= dict.fromkeys(matches)
    return tuple(found)


def matching(patterns: Iterable[str], names: Collection[str]) -> frozenset[str]:
    """The `names` that one of `patterns` matches."""
    known = dict.fromkeys(names)
    return frozenset(name for pattern in patterns for name in match_columns(pattern, known))


def match_columns(pattern: str, names: Collection[str]) -> list[str]:
    """The `names` that `pattern` matches: the equal name if there is one, else all that fit the pattern."""
    return [pattern] if pattern in names else [name for name in names if fnmatch.fnmatchcase(name, pattern)]
