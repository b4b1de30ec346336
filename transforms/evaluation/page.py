"""The templates of self-contained pages: they load nothing, run no scripts, and follow the light or dark theme."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

import jinja2


@cache
def template(name: str) -> jinja2.Template:
    """A template of this folder, with what it includes."""
    return _environment().get_template(name)


@cache
def _environment() -> jinja2.Environment:
    def source(name: str) -> str:
        return files("transforms.evaluation").joinpath(name).read_text(encoding="utf-8")

    return jinja2.Environment(autoescape=True, trim_blocks=True, loader=jinja2.FunctionLoader(source))
