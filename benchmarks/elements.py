"""Keyed dictionaries through a small model, with preprocess and postprocess: ours beside Beam's own handlers.

    python benchmarks/elements.py [--rows=200000] [--rounds=3]

Every contender gets the same `(key, {"f_0": …, …, "f_19": …})`, brings one field onto another scale (preprocess) and gives
`(key, largest logit)` (postprocess), on the in-process runner. All run in turn, round after round; the table has the
medians. "nothing" is the same pipeline without a model: what making, passing on and counting the rows costs.
"""

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import torch
from apache_beam.ml.inference.base import KeyedModelHandler, RunInference
from apache_beam.ml.inference.pytorch_inference import PytorchModelHandlerKeyedTensor, PytorchModelHandlerTensor
from bench_model import FEATURES, BenchNet

from handlers import ModelDir, TorchModelHandler
from transforms import RunTorchInference

SHARDS = 4
NAMES = [f"f_{index}" for index in range(FEATURES)]
Element = tuple[int, Any]


def clean(element: Element) -> Element:
    """The preprocess function: one field on another scale."""
    key, row = element
    return key, {**row, "f_0": math.log1p(abs(row["f_0"]))}


def to_tensor(element: Element) -> Element:
    """The same, and what the stock handler of tensors needs."""
    key, row = clean(element)
    return key, torch.tensor([row[name] for name in NAMES])


def to_tensors(element: Element) -> Element:
    """The same, and what the stock handler of dictionaries needs."""
    key, tensor = to_tensor(element)
    return key, {"x": tensor}


def largest(element: Element) -> Element:
    """The postprocess function."""
    key, result = element
    return key, result.inference.max().item()


def make_rows(shard: int, rows: int) -> Iterator[Element]:
    """Every fourth row from `shard` on, the same for all contenders."""
    keys = range(shard, rows, SHARDS)
    values = np.random.default_rng(shard).normal(size=(len(keys), FEATURES)).tolist()
    for key, row in zip(keys, values, strict=True):
        yield key, dict(zip(NAMES, row, strict=True))


def contenders(folder: Path) -> dict[str, Callable[[Any], Any]]:
    """What is compared, by name: from elements to `(key, largest logit)`."""
    net = BenchNet().eval()
    weights = str(folder / "weights.pt")
    torch.save(net.state_dict(), weights)
    model = ModelDir.save(net, folder / "model", inputs=[{"name": "x", "columns": NAMES}])
    stock = KeyedModelHandler(PytorchModelHandlerTensor(weights, BenchNet))
    large = KeyedModelHandler(PytorchModelHandlerTensor(weights, BenchNet, min_batch_size=4096))
    stock_dicts = KeyedModelHandler(PytorchModelHandlerKeyedTensor(weights, BenchNet))
    ours = TorchModelHandler(model)

    def dead_letters_aside(elements: Any) -> Any:
        handler = ours.with_preprocess_fn(clean).with_postprocess_fn(largest)
        return (elements | RunTorchInference(handler)).predictions

    def run(handler: Any, preprocess: Callable[[Element], Element]) -> Callable[[Any], Any]:
        whole = handler.with_preprocess_fn(preprocess).with_postprocess_fn(largest)
        return lambda elements: elements | RunInference(whole)

    return {
        "nothing": lambda elements: elements | beam.MapTuple(lambda key, row: (key, row["f_0"])),
        "RunInference, PytorchModelHandlerTensor": run(stock, to_tensor),
        "the same, min_batch_size=4096": run(large, to_tensor),
        "RunInference, PytorchModelHandlerKeyedTensor": run(stock_dicts, to_tensors),
        "RunInference, TorchModelHandler": run(KeyedModelHandler(ours), clean),
        "RunTorchInference, TorchModelHandler": dead_letters_aside,
    }


def measure(contender: Callable[[Any], Any], rows: int, path: Path) -> tuple[float, str]:
    """Seconds of the whole pipeline, and the number of rows that came out with the sum of their values."""
    pipeline = beam.Pipeline(runner="FnApiRunner")
    elements = pipeline | beam.Create(range(SHARDS), reshuffle=False) | beam.FlatMap(make_rows, rows)
    values = contender(elements) | beam.Values()
    counted = values | beam.CombineGlobally(
        beam.combiners.TupleCombineFn(beam.combiners.CountCombineFn(), sum).with_common_input()
    )
    _ = counted | beam.Map(lambda total: path.write_text(f"{total[0]} rows, sum {total[1]:.1f}"))
    started = time.perf_counter()
    pipeline.run().wait_until_finish()
    return time.perf_counter() - started, path.read_text()


def main() -> None:
    """Runs all contenders in turn and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = contenders(Path(folder))
        seconds: dict[str, list[float]] = {name: [] for name in found}
        for _ in range(options.rounds):
            for name, contender in found.items():
                taken, result = measure(contender, options.rows, Path(folder) / "result")
                seconds[name].append(taken)
                print(f"{taken:8.2f} s  {name}: {result}", flush=True)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    stock = medians["RunInference, PytorchModelHandlerTensor"]
    print(f"\n{options.rows:,} rows, median of {options.rounds} rounds\n")
    print("| contender | seconds | µs a row | times stock |\n| --- | ---: | ---: | ---: |")
    for name, median in medians.items():
        print(f"| {name} | {median:.2f} | {1e6 * median / options.rows:.1f} | {stock / median:.1f} |")


if __name__ == "__main__":
    main()
