"""What the steps take that run once, whatever the number of workers: `python -m benchmarks.steps --files=1000,10000`.

Before the pipeline: listing the files and reading their footers, and grouping them. After it: adding up the counts of all
bundles, renaming all files, and writing the report. Each is called as the command does, on small local files.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pyarrow.parquet as pq

from benchmarks.bench_model import COLUMNS
from benchmarks.data import Data
from benchmarks.run import count
from benchmarks.tables import SMALL_FILE_ROWS, numbers
from transforms.accounting import Counts, total
from transforms.sinks.publish import Publication, publish
from transforms.sinks.temporary import temporary_folder
from transforms.sinks.write import Part
from transforms.sources.planning import grouped, plan_input

T = TypeVar("T")


def timed(what: Callable[[], T]) -> tuple[float, T]:
    """The seconds that a function takes, and its result."""
    begin = time.perf_counter()
    result = what()
    return time.perf_counter() - begin, result


def steps(folder: Path, files: int) -> dict[str, float]:
    """Seconds of each step for so many files, in an empty folder."""
    first = folder / "first.parquet"
    pq.write_table(table := numbers(SMALL_FILE_ROWS, 0), first, use_dictionary=False)
    inputs, output, run_id = folder / "in", folder / "out", uuid.uuid4().hex[:12]
    inputs.mkdir()
    written = Path(temporary_folder(str(output), run_id)) / "predictions"
    written.mkdir(parents=True)
    content = first.read_bytes()
    for number in range(files):
        (inputs / f"{number:08}.parquet").write_bytes(content)
        os.link(first, written / f"part-{number:08}.parquet")
    parts = [Part(str(written / f"part-{number:08}.parquet"), SMALL_FILE_ROWS) for number in range(files)]
    counts = [Counts(rows_read=SMALL_FILE_ROWS, rows_scored=SMALL_FILE_ROWS, files_read=1) for _ in range(files)]
    run = Publication(str(output), run_id, table.schema, table.schema, started=time.time())
    planning, source = timed(lambda: plan_input(str(inputs), numeric_columns=COLUMNS))
    grouping, groups = timed(lambda: grouped(source.splits))
    counting, _ = timed(lambda: total(counts))
    publishing, _ = timed(lambda: publish(run, parts, [], [], {}))
    assert len(groups) >= min(files, 64)
    assert len(list((output / "predictions").iterdir())) == files
    return {"list and read footers": planning, "group": grouping, "add up counts": counting, "publish": publishing}


def main(argv: list[str] | None = None) -> int:
    """Prints a table and returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.steps", description=__doc__)
    parser.add_argument("--files", default="1000,10000", help="numbers of files, separated by commas")
    parser.add_argument("--data", type=Path, default=Data.folder, help="folder to work in (default: out/benchmark)")
    given = parser.parse_args(argv)
    given.data.mkdir(parents=True, exist_ok=True)
    print("| files | step | seconds | µs a file |\n| ---: | --- | ---: | ---: |")
    for text in given.files.split(","):
        files = count(text)
        with tempfile.TemporaryDirectory(prefix="steps-", dir=given.data) as folder:
            for name, seconds in steps(Path(folder), files).items():
                print(f"| {files:,} | {name} | {seconds:.3f} | {1e6 * seconds / files:.0f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
