"""How a model is called with its inputs by name. Scoring and training share it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from handlers.predict.loaded import LoadedModel

Call = Callable[[Mapping[str, Any], Mapping[str, Any]], Any]


def caller(model: LoadedModel, called: Callable[..., Any]) -> Call:
    """The function that calls a model with tensors by name and further keyword arguments.

    Args:
        model: the loaded model.
        called: what is called: its module, perhaps compiled.
    """
    names, keywords = model.parameters, model.keywords
    takes_any_name = _takes_any_name(model.module)

    def call(tensors: Mapping[str, Any], arguments: Mapping[str, Any]) -> Any:
        rest = dict(tensors)
        if len(rest) == 1 and not keywords and next(iter(rest)) not in names[1:]:  # a single input may have any name
            return called(rest.popitem()[1], **arguments)
        if not names and not takes_any_name:
            return called(*rest.values(), **arguments)
        # By position up to the first gap, which every kind of model takes, and by name from there.
        leading = []
        for name in names:
            if name in keywords or name not in rest:
                break
            leading.append(rest.pop(name))
        return called(*leading, **rest, **arguments)

    return call


def _takes_any_name(module: Any) -> bool:
    try:
        parameters = inspect.signature(getattr(module, "forward", module)).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(parameter.kind == inspect.Parameter.VAR_KEYWORD for parameter in parameters)
