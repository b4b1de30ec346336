"""Options that a runner leaves aside are told."""

from __future__ import annotations

import pytest

from pipelines.command.ignored import ignored_options
from pipelines.command.options import ModelOptions, RunOptions


@pytest.mark.parametrize(
    ("run", "model", "beam", "told"),
    [
        (RunOptions("FnApiRunner"), {}, ["--direct_num_workers=1"], []),
        (RunOptions("SparkRunner"), {"min_ram": "16GB"}, [], ["--min_ram is ignored by SparkRunner; use"]),
        (RunOptions("SparkRunner"), {}, ["--num_workers=3"], ["--num_workers is ignored by SparkRunner"]),
        (RunOptions("FnApiRunner", wait=True), {}, [], ["--wait is ignored by FnApiRunner; it is for"]),
        (RunOptions("DataflowRunner", wait=True), {}, [], []),
        (RunOptions("DataflowRunner", spark_version="3.5.7"), {}, [], ["--spark_version is ignored by DataflowRunner"]),
        (RunOptions("SparkRunner", spark_version="3.5.7", spark_master_ui="host:1"), {}, [], []),
        (RunOptions("DataflowRunner", max_failure_rate=0.1), {}, [], ["--max_failure_rate has no effect without"]),
        (RunOptions("DataflowRunner", max_failure_rate=0.1, wait=True), {}, [], []),
    ],
)
def test_told(run: RunOptions, model: dict[str, str], beam: list[str], told: list[str]) -> None:
    lines = ignored_options(run, ModelOptions(model="m", **model), beam)  # type: ignore[arg-type]
    assert len(lines) == len(told), lines
    assert all(line.startswith(start) for line, start in zip(lines, told, strict=True)), lines
