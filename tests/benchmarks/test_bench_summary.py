"""The figures of contestants, worked out by hand."""

from __future__ import annotations

import pytest

from benchmarks.search import best
from benchmarks.summary import Run, summarize
from benchmarks.targets import rows


def test_figures() -> None:
    runs = [Run(5.0, 9.0, 13.0, 300), Run(4.0, 8.0, 12.0, 100), Run(7.0, 12.0, 17.0, 200)]
    starts = [Run(1.0, 4.0, 5.0, 50), Run(3.0, 6.0, 7.0, 50), Run(1.0, 5.0, 5.0, 50)]
    found = summarize(runs, starts, rows=800, cores=4)
    assert found is not None
    assert found["seconds"] == 5 - 1  # medians
    assert found["wall_seconds"] == 9
    assert found["start_seconds"] == 9 - 4
    assert found["spread"] == (7 - 4) / 4
    assert found["rows_per_second"] == 800 / 4
    assert found["wall_rows_per_second"] == pytest.approx(800 / 9)
    assert found["cpu_seconds"] == 13 - 5
    assert found["core_share"] == (13 - 5) / 4 / 4
    assert found["peak_bytes"] == 200


def test_start_up_itself() -> None:
    found = summarize([Run(1.5, 2.0, 3.0, 9)], [], rows=10, cores=2)
    assert found is not None
    assert (found["seconds"], found["start_seconds"], found["core_share"]) == (2, 2, 0.75)


def test_work_that_is_not_longer_than_the_start() -> None:
    assert summarize([Run(1.0, 3.0, 3.0, 9)], [Run(1.5, 3.0, 3.0, 9)], rows=10, cores=2) is None


def entry(workload: str, **contestants: dict[str, float | int | str]) -> dict[str, object]:
    return {"name": workload, "workload": workload, "contestants": contestants}


def test_targets() -> None:
    fast = {"rows": 10, "rows_per_second": 13.5, "wall_rows_per_second": 3.0}
    slow = {"rows": 10, "rows_per_second": 10.0, "wall_rows_per_second": 2.0}
    found = rows([entry("T", torchbeam=fast, loop=slow, ray_data=slow, daft={"reason": "is not there"})])
    assert found == [
        ("T, in process", "loop", "1.3 ×", "1.35 ×", "10"),
        ("T, in process, with start-up", "ray_data", "3.5 ×", "**1.50 ×, missed**", "10"),
    ]


def test_growth() -> None:
    small = {"rows": 10, "rows_per_second": 10.0, "peak_bytes": 100}
    large = {"rows": 640, "rows_per_second": 8.0, "peak_bytes": 110}
    found = rows([entry("G", **{"torchbeam@1M": small, "torchbeam@64M": large})])
    assert [(what, measured) for what, _, _, measured, _ in found] == [
        ("G, time a row", "**1.25 ×, missed**"),
        ("G, peak memory", "1.10 ×"),
    ]


def test_search_goes_on_with_the_fastest() -> None:
    seconds = {(1, "a"): 5.0, (2, "a"): 3.0, (3, "a"): None, (2, "b"): 2.0}
    found, tried = best({"size": (1, 2, 3), "kind": ("a", "b")}, lambda each: seconds[each["size"], each["kind"]])
    assert found == {"size": 2, "kind": "b"}
    assert [(each["size"], each["kind"]) for each in tried] == list(seconds)
