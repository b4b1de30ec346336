"""Tables, pictures and their place in pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import report
from benchmarks.pictures import bars, growth
from benchmarks.steps import steps
from benchmarks.summary import Run, summarize

MACHINE = {
    "cpu": "Some CPU",
    "cores": 2,
    "memory_bytes": 8e9,
    "system": "Linux x86_64",
    "python": "3.11.7",
    "packages": {"torch": "2.15.0"},
}


def figures(seconds: float, rows: int = 1000) -> dict[str, Any]:
    found = summarize([Run(seconds, seconds + 3, seconds + 4, 5e8)], [Run(1.0, 4.0, 4.0, 4e8)], rows, cores=2)
    assert found is not None
    return found


def entry(name: str, workload: str, **contestants: dict[str, Any]) -> dict[str, Any]:
    fixed = {"title": "rows", "rounds": 1, "date": "2026-11-25", "commit": "abc", "command": "run", "machine": MACHINE}
    return {"name": name, "workload": workload, "contestants": contestants, **fixed}


TABLES = entry(
    "T, 1,000 rows", "T", loop=figures(5.0), torchbeam=figures(3.0), ray_data={"reason": "a\nray is\\not | there"}
)
GROWTH = entry("G", "G", **{"torchbeam@1M": figures(3.0), "torchbeam@4M": figures(9.0, 4000)})


def test_table() -> None:
    lines = report.table(TABLES).splitlines()
    assert lines[2] == "| `loop` | 1,000 | 4.00 | 0 % | 250 | 1.00 | 8.00 | 1.00 | 4.00 | 5.00 | 62 % | 500 |"
    assert lines[3] == "| `torchbeam` | 1,000 | 2.00 | 0 % | 500 | 2.00 | 6.00 | 1.33 | 4.00 | 3.00 | 75 % | 500 |"
    assert lines[4].startswith("| `ray_data` | not measured: ray is\\not / there |")
    assert {line.count("|") for line in lines} == {13}


def test_chapter() -> None:
    text = report.chapter([TABLES, GROWTH], ["performance.svg"])
    assert "Measured 2026-11-25 on 2 cores" in text
    assert "torch 2.15.0" in text
    assert "| T, in process | 1,000 | loop | 1.3 × | 2.00 × |" in text
    assert "| G, time a row | 1,000 to 4,000 | the smallest | 0.9 to 1.1 × | 1.00 × |" in text
    assert "### T, 1,000 rows" in text


def test_settings() -> None:
    search = {"workload": "T", "rows": 10, "date": "2026-11-25", "tried": [{}, {}]}
    text = report.settings_chapter({"settings": {"daft": {"threads": 2}}, "searches": {"daft": search}})
    assert "| `daft` | `@daft.method.batch` of Daft | threads=2 | 2 settings on 10 rows of T |" in text


def test_pictures(tmp_path: Path) -> None:
    assert bars([TABLES, GROWTH], tmp_path / "bars.svg")
    assert growth([TABLES, GROWTH], tmp_path / "growth.svg")
    for name in ("bars.svg", "growth.svg"):
        assert (tmp_path / name).read_text().startswith("<?xml")
    before = (tmp_path / "bars.svg").read_bytes()
    bars([TABLES, GROWTH], tmp_path / "bars.svg")
    assert (tmp_path / "bars.svg").read_bytes() == before
    assert not bars([GROWTH], tmp_path / "none.svg")
    assert not growth([TABLES], tmp_path / "none.svg")


def test_markers(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- results: begin -->\nold\n<!-- results: end -->\nb\n")
    report.put(page, "results", r"new \1")
    assert page.read_text() == "a\n<!-- results: begin -->\nnew \\1\n<!-- results: end -->\nb\n"
    with pytest.raises(ValueError, match="settings"):
        report.put(page, "settings", "")


def test_single_steps_are_those_of_the_command(tmp_path: Path) -> None:
    found = steps(tmp_path, 70)
    assert list(found) == ["list and read footers", "group", "add up counts", "publish"]
    assert all(seconds > 0 for seconds in found.values())
    assert (tmp_path / "out" / "report.json").exists()
