"""Whose `handlers`, `transforms` and `pipelines` an import finds: projects often have packages of such names."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("handlers", "transforms", "pipelines")
ROOT = Path(__file__).parent.parent


def check_packages() -> None:
    """Raises `ImportError` where one of our packages is hidden by a folder or module that is found before it."""
    for name in PACKAGES:
        found = _found(name)
        if found is not None and os.path.realpath(found) != os.path.realpath(ROOT / name):
            kind = "the folder" if found.is_dir() else "the module"
            raise ImportError(
                f"{kind} {found} shadows torchbeam's package {name}; rename it, run from another folder, or run with "
                "python -P (or PYTHONSAFEPATH=1)"
            )


def _found(name: str) -> Path | None:
    """The folder of the package, or the file of the module, that `import name` gives; None where there is none."""
    try:
        spec = find_spec(name)
    except ValueError:  # a module made in memory
        return None
    if spec is None:
        return None
    for folder in spec.submodule_search_locations or ():
        return Path(folder)
    return Path(spec.origin) if spec.origin else None
