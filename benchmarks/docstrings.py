"""Real texts of every length: the docstrings of the standard library."""

from __future__ import annotations

import ast
import random
import sys
import sysconfig
from pathlib import Path


def docstrings(seed: int = 7) -> list[str]:
    """The docstrings of modules, classes and functions of the standard library, once each, in an order by `seed`."""
    found: dict[str, None] = {}
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if "site-packages" in file.parts or "test" in file.parts or "tests" in file.parts:
            continue
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                if text:
                    found[text] = None
    texts = list(found)
    random.Random(seed).shuffle(texts)
    return texts


if __name__ == "__main__":
    sys.stdout.write(f"{len(docstrings())} docstrings\n")
