"""Functions that users name as `module:function`."""

from __future__ import annotations

import importlib
from typing import Any

from handlers.errors import UsageError, one_line
from handlers.model_code import NO_CODE, ModelCode, plain_name


def import_function(name: str, what: str, code: ModelCode = NO_CODE) -> Any:
    """The object that `name` (`module:function` or `module:Class`) stands for.

    Args:
        name: of the module, in `code` or installed, and of the function in it.
        what: what it is, for messages (for example "preprocess").
        code: the modules of the model.

    Raises:
        UsageError: where it cannot be imported; names `what`.
    """
    module_name, _, attribute = name.partition(":")
    try:
        target: Any = importlib.import_module(code.full_name(module_name))
    except ModuleNotFoundError as error:
        hint = f'no module named "{plain_name(error.name)}"' if error.name else one_line(error)
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
