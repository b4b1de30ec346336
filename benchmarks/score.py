"""Compares scoring a table by this package with a loop written by hand, and with Beam's own model handler.

    python benchmarks/score.py                  speed: the loop against pipelines.score
    python benchmarks/score.py --stock          and Beam's PytorchModelHandlerTensor on row dictionaries, on fewer rows
    python benchmarks/score.py --memory         peak memory for 1, 4 and 16 million rows

Each run is a fresh process. Imports are not counted, and what a run on 1,000 rows takes is taken out of all. Runs
alternate, and the median counts, so that a machine which is busy for a while is busy for all. Data is made once and
kept under out/benchmark.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from bench_model import FEATURES, LABELS, BenchNet

from torchbeam import ModelDir

HERE = Path(__file__).resolve().parent
OUT = HERE.parent / "out" / "benchmark"
FILE_ROWS = 1_000_000
STOCK_ROWS = 200_000
SMALL_ROWS = 1_000
MEMORY_ROWS = (1_000_000, 4_000_000, 16_000_000)


def make_input(rows: int) -> Path:
    """A folder of Parquet files with `rows` rows of 20 float64 columns, made where it is not there."""
    folder = OUT / f"rows-{rows}"
    if folder.exists():
        return folder
    making = OUT / f"making-{rows}"
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    random = np.random.default_rng(rows)
    for start in range(0, rows, FILE_ROWS):
        count = min(FILE_ROWS, rows - start)
        columns = {f"f_{index}": random.standard_normal(count) for index in range(FEATURES)}
        pq.write_table(pa.table(columns), making / f"{start:012}.parquet", use_dictionary=False)
    making.rename(folder)
    return folder


def make_model() -> Path:
    """The model directory."""
    torch.manual_seed(0)
    ModelDir.save(
        BenchNet(),
        OUT / "model",
        task="classification",
        labels=LABELS,
        inputs=[{"name": "x", "columns": [f"f_{index}" for index in range(FEATURES)]}],
        code=[HERE / "bench_model.py"],
    )
    return OUT / "model"


def run(contender: str, inputs: Path, model: Path) -> dict[str, float]:
    """Scores once in a process of its own: `seconds` and `peak_bytes`."""
    output = OUT / "scored"
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, str(HERE / "contenders.py"), contender, str(inputs), str(model), str(output)]
    # As pipelines.score sets it for itself. The loop is faster with it, too, where the machine has other work.
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"{contender} ended with exit code {done.returncode}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
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
    options = parser.parse_args()
    if options.memory:
        memory(options.memory_rows, options.repeat)
    else:
        speed(options.rows, options.repeat, options.stock)


if __name__ == "__main__":
    main()
