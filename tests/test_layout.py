"""The arrows between rooms: who may import whom. The tables are the layout; docs/decisions.md says why."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("handlers", "transforms", "pipelines", "torchbeam")
MAX_LINES = 400
MAX_TOP = 14  # modules at the top of handlers/

# What each room may import beside itself. A room without an entry is a defect.
ALLOWED = {
    "handlers": set(),
    "handlers.nets": {"handlers"},
    "handlers.encode": {"handlers"},
    "handlers.predict": {"handlers"},
    "handlers.model": {"handlers", "handlers.encode", "handlers.predict"},
    "handlers.refresh": {"handlers", "handlers.predict", "handlers.model"},
    "handlers.columnar": {"handlers", "handlers.encode", "handlers.predict", "handlers.model", "handlers.refresh"},
    "handlers.train": {
        *("handlers", "handlers.nets", "handlers.encode", "handlers.predict", "handlers.model", "handlers.columnar"),
    },
    "handlers.sequences": {"handlers", "handlers.encode", "handlers.predict", "handlers.model", "handlers.columnar"},
    "handlers.elements": {"handlers", "handlers.encode", "handlers.predict", "handlers.model", "handlers.columnar"},
    "handlers.graph": {"handlers", "handlers.encode", "handlers.predict", "handlers.model", "handlers.columnar"},
    "transforms": {"handlers.*"},
    "transforms.sources": {"handlers.*", "transforms"},
    "transforms.sinks": {"handlers.*", "transforms"},
    "transforms.inference": {"handlers.*", "transforms", "transforms.sources"},
    "transforms.streams": {
        "handlers.*",
        "transforms",
        "transforms.sources",
        "transforms.sinks",
        "transforms.inference",
    },
    "transforms.evaluation": {"handlers.*", "transforms"},
    "transforms.preparation": {"handlers.*", "transforms", "transforms.sinks", "transforms.evaluation"},
    "transforms.local": {"handlers.*", "transforms", "transforms.sources", "transforms.inference"},
    "transforms.rows": {"handlers.*", "transforms", "transforms.sources", "transforms.inference"},
    "transforms.registry": {"handlers.*", "transforms", "transforms.local"},
    "transforms.ray": {"handlers.*", "transforms", "transforms.inference"},
    "transforms.spark": {"handlers.*", "transforms", "transforms.inference"},
    "pipelines.command": {"handlers.*", "transforms.*"},
    "pipelines.dataflow": {"handlers.*", "transforms.*", "pipelines.command"},
    "pipelines.spark": {"handlers.*", "transforms.*", "pipelines.command"},
    "pipelines.prism": {"handlers.*", "transforms.*", "pipelines.command"},
    "pipelines.runners": {
        *(
            "handlers.*",
            "transforms.*",
            "pipelines.command",
            "pipelines.dataflow",
            "pipelines.spark",
            "pipelines.prism",
        ),
    },
    "pipelines.jobs": {
        *("handlers.*", "transforms.*", "pipelines.command", "pipelines.dataflow", "pipelines.spark"),
        "pipelines.runners",
    },
    "pipelines.checks": {"handlers.*", "transforms.*", "pipelines.*"},
    "pipelines": {"handlers.*", "transforms.*", "pipelines.*"},
    "torchbeam": {"handlers.*", "transforms.*", "pipelines.*"},
}


def modules() -> dict[str, Path]:
    """Every module of the packages by its dotted name."""
    found = {}
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            parts = file.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


MODULES = modules()


def room(module: str) -> str:
    """The room of a module: the longest name in `ALLOWED` that it lies in."""
    parts = module.split(".")
    is_package = MODULES[module].name == "__init__.py"
    names = [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
    if not is_package and len(names) > 1 and module not in ALLOWED:
        names = names[1:]
    return next((name for name in names if name in ALLOWED), "?")


def imports(module: str) -> set[str]:
    """The modules of the packages that a module imports, at its top, in functions and for types."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
            found.add(node.module)
    return {name for name in found if name in MODULES} - {module, *PACKAGES}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_arrows_go_down(module: str) -> None:
    if module in PACKAGES:
        return  # they name the public names of their rooms, imported when first used
    mine = room(module)
    assert mine != "?", f"{module} is in no room of ALLOWED"
    allowed = {mine, *ALLOWED[mine]}
    for name in imports(module):
        other = room(name)
        fits = other in allowed or any(
            other.startswith(each[:-1]) or other == each[:-2] for each in allowed if "*" in each
        )
        assert fits, f"{module} ({mine}) imports {name} ({other}), which is above it"


def test_no_import_circle() -> None:
    graph = {module: imports(module) for module in MODULES if module not in PACKAGES}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"import circle: {' → '.join([*path[path.index(module) :], module])}"
        if module not in done:
            for name in sorted(graph.get(module, ())):
                visit(name, (*path, module))
            done.add(module)

    for module in sorted(graph):
        visit(module, ())


def test_sizes() -> None:
    long = {name: lines for name, file in MODULES.items() if (lines := len(file.read_text().splitlines())) > MAX_LINES}
    assert not long, f"modules of more than {MAX_LINES} lines; are they two? {long}"
    top = [name for name in MODULES if name.startswith("handlers.") and room(name) == "handlers"]
    assert len(top) <= MAX_TOP, top
