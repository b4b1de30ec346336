"""Where `make` puts the programs that it builds."""

from __future__ import annotations

import os
from pathlib import Path


def built(name: str) -> Path:
    """The folder of the programs that `make NAME` builds."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torchbeam" / name
