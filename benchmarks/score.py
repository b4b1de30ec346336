"""Compares scoring a table by this package with a loop written by hand, and with Beam's own model handler.

    python benchmarks/score.py                  speed: the loop against pipelines.score
    python benchmarks/score.py --stock          and Beam's PytorchModelHandlerTensor on row dictionaries, on fewer rows
    python benchmarks/score.py --memory         peak memory for 1, 4 and 16 million rows
    python benchmarks/score.py --shapes         peak memory for rows of several shapes
    python benchmarks/score.py --files          10,000 files of 40 rows each: Parquet, CSV and JSON lines

Each run is a fresh process. Imports are not counted, and what a run on 1,000 rows takes is taken out of all. Runs
alternate, and the median counts, so that a machine which is busy for a while is busy for all. Data is made once and
kept under out/benchmark.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import torch
from bench_model import FEATURES, LABELS, BenchNet

from torchbeam import ModelDir

HERE = Path(__file__).resolve().parent
OUT = HERE.parent / "out" / "benchmark"
FILE_ROWS = 1_000_000
STOCK_ROWS = 200_000
SMALL_ROWS = 1_000
SMALL_FILES = 10_000
SMALL_FILE_ROWS = 40
MEMORY_ROWS = (1_000_000, 4_000_000, 16_000_000)


@contextmanager
def made(folder: Path) -> Iterator[Path]:
    """A folder to put files in that is given its name once all of them are there."""
    making = folder.with_name(f"making-{folder.name}")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    yield making
    making.rename(folder)


def make_input(rows: int, columns: int = FEATURES) -> Path:
    """A folder of Parquet files with `rows` rows of float64 columns, made where it is not there."""
    folder = OUT / (f"rows-{rows}" if columns == FEATURES else f"rows-{rows}-columns-{columns}")
    if folder.exists():
        return folder
    random = np.random.default_rng(rows)
    with made(folder) as making:
        for start in range(0, rows, FILE_ROWS):
            count = min(FILE_ROWS, rows - start)
            table = pa.table({f"f_{index}": random.standard_normal(count) for index in range(columns)})
            pq.write_table(table, making / f"{start:012}.parquet", use_dictionary=False)
    return folder


def make_texts(rows: int, size: int, *, equal: bool) -> Path:
    """The same with 20 columns and a text of `size` bytes, which is one and the `equal` in all rows, or each another."""
    folder = OUT / f"texts-{rows}-{size}{'-equal' if equal else ''}"
    if folder.exists():
        return folder
    random = np.random.default_rng(rows)
    texts = [random.bytes(size // 2).hex() for _ in range(1 if equal else rows)] * (rows if equal else 1)
    with made(folder) as making:
        columns = {f"f_{index}": random.standard_normal(rows) for index in range(FEATURES)}
        # Of equal ones the file holds one. Of others a page would hold 1,024, and a reader a page.
        options = {} if equal else {"use_dictionary": False, "write_batch_size": 16}
        pq.write_table(pa.table(columns | {"text": texts}), making / "0.parquet", **options)
    return folder


def make_files(files: int, kind: str) -> Path:
    """A folder of small files with `SMALL_FILE_ROWS` rows of 20 float64 columns each."""
    folder = OUT / f"files-{files}-{kind}"
    if folder.exists():
        return folder
    random = np.random.default_rng(files)
    with made(folder) as making:
        for number in range(files):
            table = pa.table({f"f_{index}": random.standard_normal(SMALL_FILE_ROWS) for index in range(FEATURES)})
            file = making / f"{number:06}.{kind}"
            if kind == "parquet":
                pq.write_table(table, file, use_dictionary=False)
            elif kind == "csv":
                pyarrow.csv.write_csv(table, file)
            else:
                file.write_text("".join(f"{json.dumps(row)}\n" for row in table.to_pylist()))
    return folder


def make_model(features: int = FEATURES) -> Path:
    """The model directory."""
    torch.manual_seed(0)
    folder = OUT / ("model" if features == FEATURES else f"model-{features}")
    ModelDir.save(
        BenchNet(features),
        folder,
        task="classification",
        labels=LABELS,
        inputs=[{"name": "x", "columns": [f"f_{index}" for index in range(features)]}],
        arguments={"features": features},
        code=[HERE / "bench_model.py"],
    )
    return folder


def run(contender: str, inputs: Path, model: Path) -> dict[str, float]:
    """Scores once in a process of its own: `seconds` and `peak_bytes`."""
    output = OUT / "scored"
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, str(HERE / "contenders.py"), contender, str(inputs), str(model), str(output)]
    # As pipelines.score sets it for itself. The loop is faster with it, too, where the machine has other work.
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
    begin, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"{contender} ended with exit code {done.returncode}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    result["wall_seconds"] = time.perf_counter() - begin
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    result["cpu_seconds"] = spent.ru_utime + spent.ru_stime - before.ru_utime - before.ru_stime
    shutil.rmtree(output, ignore_errors=True)
    return result


def speed(rows: int, repeat: int, stock: bool) -> None:
    """Prints rows a second of each contender without what a run on 1,000 rows takes, and their ratio to the loop."""
    model = make_model()
    contenders = {"loop": rows, "torchbeam": rows} | ({"stock": min(rows, STOCK_ROWS)} if stock else {})
    inputs = {name: make_input(count) for name, count in contenders.items()}
    small = make_input(SMALL_ROWS)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    start: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(repeat):
        order = list(contenders) if turn % 2 == 0 else list(reversed(contenders))
        for name in order:
            start[name].append(run(name, small, model)["seconds"])
            runs[name].append(run(name, inputs[name], model))
            print(f"  run {turn + 1}, {name}: {runs[name][-1]['seconds']:.2f} s", file=sys.stderr, flush=True)
    rates: dict[str, float] = {}
    print(f"{'':12}{'rows':>12}{'start-up s':>12}{'seconds':>10}{'rows/s':>12}{'of the loop':>13}{'peak MB':>9}")
    for name, found in runs.items():
        before = statistics.median(start[name])
        seconds = statistics.median(each["seconds"] for each in found) - before
        rates[name] = contenders[name] / seconds
        peak = statistics.median(each["peak_bytes"] for each in found) / 1e6
        share = rates[name] / rates["loop"]
        print(
            f"{name:12}{contenders[name]:>12,}{before:>12.2f}{seconds:>10.2f}{rates[name]:>12,.0f}{share:>13.2f}{peak:>9.0f}"
        )
    print(f"\nmedian of {repeat}; torch {torch.__version__}, {torch.get_num_threads()} threads")


def memory(sizes: list[int], repeat: int) -> None:
    """Prints the peak memory of pipelines.score for tables of several sizes, and the ratio to that for the smallest."""
    model = make_model()
    first = 0.0
    print(f"{'rows':>12}{'peak MB':>10}{'of the smallest':>17}", flush=True)
    for rows in sizes:
        inputs = make_input(rows)
        peak = statistics.median(run("torchbeam", inputs, model)["peak_bytes"] for _ in range(repeat))
        first = first or peak
        print(f"{rows:>12,}{peak / 1e6:>10.0f}{peak / first:>17.2f}", flush=True)


def shapes(repeat: int) -> None:
    """Prints the peak memory of pipelines.score for rows of several shapes."""
    inputs = {
        "20 numbers": (make_input(1_000_000), make_model()),
        "2,000 numbers": (make_input(50_000, 2_000), make_model(2_000)),
        "a text of 1 MB": (make_texts(600, 1_000_000, equal=False), make_model()),
        "the same of 1 MB": (make_texts(2_000, 1_000_000, equal=True), make_model()),
    }
    print(f"\n{'each row has':20}{'peak MB':>10}", flush=True)
    for name, (folder, model) in inputs.items():
        peak = statistics.median(run("torchbeam", folder, model)["peak_bytes"] for _ in range(repeat))
        print(f"{name:20}{peak / 1e6:>10.0f}", flush=True)


def files(count: int, repeat: int) -> None:
    """Prints what many small files take, the whole command without imports, beside the loop."""
    model = make_model()
    small = make_input(SMALL_ROWS)
    print(f"{'':10}{'':11}{'seconds':>9}{'of the loop':>13}{'CPU seconds':>13}{'of the loop':>13}{'peak MB':>9}")
    for kind in ("parquet", "csv", "jsonl"):
        inputs = make_files(count, kind)
        runs: dict[str, list[dict[str, float]]] = {"loop": [], "whole": []}
        start: dict[str, list[float]] = {"loop": [], "whole": []}
        for turn in range(repeat):
            for name in runs if turn % 2 == 0 else reversed(runs):
                start[name].append(run(name, small, model)["cpu_seconds"])
                runs[name].append(run(name, inputs, model))
                print(f"  run {turn + 1}, {name}: {runs[name][-1]}", file=sys.stderr, flush=True)
        first: tuple[float, float] | None = None
        for name, found in runs.items():
            seconds = statistics.median(each["seconds"] for each in found)
            cpu = statistics.median(each["cpu_seconds"] for each in found) - statistics.median(start[name])
            peak = statistics.median(each["peak_bytes"] for each in found) / 1e6
            first = first or (seconds, cpu)
            print(
                f"{kind:10}{'torchbeam' if name == 'whole' else name:11}{seconds:>9.2f}{seconds / first[0]:>13.2f}"
                f"{cpu:>13.2f}{cpu / first[1]:>13.2f}{peak:>9.0f}",
                flush=True,
            )
    print(f"\n{count:,} files of {SMALL_FILE_ROWS} rows; median of {repeat}")


def main() -> None:
    """Reads the arguments and runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4_000_000, help="rows of the table (default: 4,000,000)")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each, of which the median counts (default: 3)")
    parser.add_argument("--stock", action="store_true", help=f"also Beam's own handler, on {STOCK_ROWS:,} rows")
    parser.add_argument("--memory", action="store_true", help="measure memory and not speed")
    parser.add_argument(
        "--memory_rows",
        type=int,
        nargs="+",
        default=list(MEMORY_ROWS),
        help="sizes for --memory (default: 1, 4 and 16 million)",
    )
    parser.add_argument(
        "--files",
        type=int,
        nargs="?",
        const=SMALL_FILES,
        help=f"measure that many small files of {SMALL_FILE_ROWS} rows (default: {SMALL_FILES:,})",
    )
    parser.add_argument("--shapes", action="store_true", help="measure memory for rows of several shapes")
    options = parser.parse_args()
    if options.files:
        files(options.files, options.repeat)
    elif options.shapes:
        shapes(options.repeat)
    elif options.memory:
        memory(options.memory_rows, options.repeat)
    else:
        speed(options.rows, options.repeat, options.stock)


if __name__ == "__main__":
    main()
