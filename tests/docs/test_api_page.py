"""docs/api.md is what its generator writes from the docstrings of today."""

import importlib.util
import inspect
from operator import attrgetter
from pathlib import Path
from types import ModuleType

import pytest

import torchbeam

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def make_api() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_api", DOCS / "make_api.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date(make_api: ModuleType) -> None:
    assert (DOCS / "api.md").read_text() == make_api.page(), "write it anew with make api"


def test_every_public_name_is_on_it_once_and_says_what_it_is(make_api: ModuleType) -> None:
    names = [name for chapter in make_api.CHAPTERS.values() for name in chapter]
    of_engines = [name for name in names if name.startswith(("ray.", "spark."))]
    assert sorted(of_engines) == [
        f"{engine}.{name}" for engine in ("ray", "spark") for name in getattr(torchbeam, engine).__all__
    ]
    assert sorted([*(name for name in names if name not in of_engines), "__version__"]) == torchbeam.__all__
    for name in names:
        assert inspect.getdoc(attrgetter(name)(torchbeam)), name
    assert "<factory>" not in make_api.page()


def test_signatures_and_sections(make_api: ModuleType) -> None:
    cpu = torchbeam.Placement("cpu")

    def example(rows: int, *, size: int = 65_536, placement: torchbeam.Placement = cpu) -> str:
        """Does it.

        Args:
            rows: how many,
                on two lines.
            size: of each.

        Returns:
            The text.

        Raises:
            UsageError: for none.
        """

    shown = make_api.signature("example", example)
    assert shown.splitlines() == [
        "example(",
        "    rows: int,",
        "    *,",
        "    size: int = 65_536,",
        "    placement: handlers.predict.placement.Placement = Placement(device='cpu'),",
        ") -> str",
    ]
    assert make_api.markdown(example.__doc__) == (
        "Does it.\n\n**Args**\n\n- `rows`: how many,\n  on two lines.\n- `size`: of each.\n\n"
        "**Returns**\n\nThe text.\n\n**Raises**\n\n- `UsageError`: for none.\n"
    )
