"""Functions that users name as `module:function`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from handlers.errors import UsageError, one_line

# What the modules held when they were made importable: a file may change, or go, once its module is imported.
_contents: dict[str, bytes] = {}


def add_to_path(folder: Path) -> None:
    """Makes the modules of `folder` importable, ahead of all others.

    Raises `UsageError` where one of them was imported already with other contents, from elsewhere or from before it was
    changed: this process would go on using the other one, without a word.
    """
    entry = str(folder)
    if not folder.is_dir():
        return
    for file in sorted(folder.rglob("*.py")):
        parts = file.relative_to(folder).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        content = file.read_bytes()
        if known := getattr(sys.modules.get(name), "__file__", None):
            before = _contents.get(name)
            if before is None and Path(known).exists():
                before = Path(known).read_bytes()
            if before != content:
                raise UsageError(
                    f'module "{name}" of {folder} is imported already with other contents, from {known}; give it another '
                    "name, or start a new process"
                )
        _contents[name] = content
    if entry in sys.path:
        sys.path.remove(entry)
    sys.path.insert(0, entry)
    importlib.invalidate_caches()


def import_function(name: str, what: str) -> Any:
    """The object that `name` (`module:function` or `module:Class`) stands for.

    Raises `UsageError` that names `what` (for example "preprocess") where it cannot be imported.
    """
    module_name, _, attribute = name.partition(":")
    try:
        target: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        hint = f'no module named "{error.name}"' if error.name else one_line(error)
        raise UsageError(
            f'{what} "{name}" cannot be imported: {hint}; put it in code/ of the model directory'
        ) from None
    except (Exception, SystemExit) as error:  # a script without a guard of __main__ may end itself
        raise UsageError(f'{what} "{name}" cannot be imported: {type(error).__name__}: {one_line(error)}') from None
    for part in attribute.split("."):
        if not hasattr(target, part):
            raise UsageError(f'{what} "{name}" cannot be imported: {module_name} has no "{attribute}"')
        target = getattr(target, part)
    if not callable(target):
        raise UsageError(f'{what} "{name}" is not a function or class')
    return target
