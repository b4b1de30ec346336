"""Where the file of a path is, by the path alone. Needs neither Beam nor the file."""

from __future__ import annotations

import re

# As Beam's filesystems parse it, so that both agree on what is remote.
_SCHEME = re.compile(r"([a-zA-Z][-a-zA-Z0-9+.]*)://")


def scheme_of(path: str) -> str | None:
    """The scheme of a path, such as `gs` or `s3`; None for a path on a disk of this host."""
    found = _SCHEME.match(path.lstrip())
    return found.group(1) if found else None


def is_mlflow(path: str) -> bool:
    """Whether `path` is a model of MLflow's registry: `models:/NAME/VERSION` or `models:/NAME@ALIAS`."""
    return path.startswith("models:/")


def is_remote(path: str) -> bool:
    """Whether `path` is in an object store, another of Beam's filesystems or MLflow, and not on a disk of this host."""
    return scheme_of(path) is not None or is_mlflow(path)
