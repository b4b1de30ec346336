"""Where the file of a path is, by the path alone. Needs neither Beam nor the file."""

from __future__ import annotations

import re

# As Beam's filesystems parse it, so that both agree on what is remote.
_SCHEME = re.compile(r"([a-zA-Z][-a-zA-Z0-9+.]*)://")


def scheme_of(path: str) -> str | None:
    """The scheme of a path, such as `gs` or `s3`; None for a path on a disk of this host."""
    found = _SCHEME.match(path.lstrip())
    return found.group(1) if found else None


def is_remote(path: str) -> bool:
    """Whether `path` is in an object store or another of Beam's filesystems, and not on a disk of this host."""
    return scheme_of(path) is not None
