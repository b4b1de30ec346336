"""Keyed dictionaries through a small classifier, with preprocess and postprocess: ours beside Beam's own handlers.

    python benchmarks/elements.py [--rows=200000] [--rounds=3]

Every contender gets the same `(key, {"f_0": …, …, "f_19": …})`, brings one field onto another scale (preprocess) and gives
`(key, {"predicted_class": …, "confidence": …})` (postprocess), on the in-process runner. All run in turn, round after
round; the table has the medians. "nothing" is the same pipeline without a model: what passing on and counting the rows
costs. The rows are made beforehand, so that no contender is measured by what making them costs.
"""

import os

os.environ.setdefault(
    "OMP_WAIT_POLICY", "PASSIVE"
)  # before torch: else other work on the machine hampers all contenders

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
import bench_model
import torch
from apache_beam.ml.inference.base import KeyedModelHandler, RunInference
from apache_beam.ml.inference.pytorch_inference import PytorchModelHandlerKeyedTensor, PytorchModelHandlerTensor
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue
from bench_model import FEATURES, BenchNet

from torchbeam import ModelDir, RunTorchInference, TorchModelHandler

SLICE = 10_000
NAMES = [f"f_{index}" for index in range(FEATURES)]
LABELS = ("low", "middle", "high")
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


def decide(element: Element) -> Element:
    """The postprocess function where the model's answer is logits."""
    key, result = element
    probabilities = torch.softmax(result.inference, 0)
    best = int(probabilities.argmax())
    return key, {"predicted_class": LABELS[best], "confidence": float(probabilities[best])}


def take_out(element: Element) -> Element:
    """The postprocess function where the handler has decoded them."""
    key, result = element
    return key, result.inference


class Tally(beam.DoFn):
    """Counts what came out, bundle by bundle."""

    def start_bundle(self) -> None:
        """Begins at zero."""
        self._rows, self._confidence = 0, 0.0

    def process(self, element: Element) -> None:
        """Looks at one row."""
        self._rows += 1
        self._confidence += element[1]["confidence"]

    def finish_bundle(self) -> Iterator[Any]:
        """Gives the sums."""
        yield WindowedValue((self._rows, self._confidence), 0, [GlobalWindow()])


def contenders(folder: Path) -> dict[str, Callable[[Any], Any]]:
    """What is compared, by name: from elements to `(key, {"predicted_class": …, "confidence": …})`."""
    net = BenchNet().eval()
    weights = str(folder / "weights.pt")
    torch.save(net.state_dict(), weights)
    model = ModelDir.save(
        net, folder / "model", task="classification", labels=LABELS, inputs=[{"name": "x", "columns": NAMES}]
    )
    stock = KeyedModelHandler(PytorchModelHandlerTensor(weights, BenchNet))
    large = KeyedModelHandler(PytorchModelHandlerTensor(weights, BenchNet, min_batch_size=1024, max_batch_size=1024))
    stock_dicts = KeyedModelHandler(PytorchModelHandlerKeyedTensor(weights, BenchNet))
    ours = TorchModelHandler(model, head=True).with_preprocess_fn(clean).with_postprocess_fn(take_out)

    def run(handler: Any, preprocess: Callable[[Element], Element], postprocess: Callable[[Element], Element]) -> Any:
        whole = handler.with_preprocess_fn(preprocess).with_postprocess_fn(postprocess)
        return lambda elements: elements | RunInference(whole)

    return {
        "nothing": lambda elements: elements | beam.Map(lambda element: (element[0], {"confidence": 0.0})),
        "RunInference, PytorchModelHandlerTensor": run(stock, to_tensor, decide),
        "the same, 1,024 rows a batch": run(large, to_tensor, decide),
        "RunInference, PytorchModelHandlerKeyedTensor": run(stock_dicts, to_tensors, decide),
        "RunInference, TorchModelHandler": run(KeyedModelHandler(TorchModelHandler(model, head=True)), clean, take_out),
        "RunTorchInference, TorchModelHandler": lambda elements: (elements | RunTorchInference(ours)).predictions,
    }


@dataclass(frozen=True)
class Run:
    """What one run took, and what came out."""

    seconds: float
    cpu_seconds: float
    result: str


def measure(contender: Callable[[Any], Any], rows: int, path: Path) -> Run:
    """Runs the whole pipeline once; the result is the number of rows that came out with the mean of their confidence."""
    pipeline = beam.Pipeline(runner="FnApiRunner")
    elements = pipeline | beam.Create(range(0, rows, SLICE), reshuffle=False) | beam.FlatMap(bench_model.keyed_rows)
    tallies = contender(elements) | beam.ParDo(Tally()) | beam.combiners.ToList()
    _ = tallies | beam.Map(
        lambda found: path.write_text(f"{sum(t[0] for t in found)} rows, mean {sum(t[1] for t in found) / rows:.6f}")
    )
    started, used = time.perf_counter(), time.process_time()
    pipeline.run().wait_until_finish()
    return Run(time.perf_counter() - started, time.process_time() - used, path.read_text())


def main() -> None:
    """Runs all contenders in turn and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    bench_model.make_keyed_rows(options.rows, SLICE, NAMES)
    with tempfile.TemporaryDirectory() as folder:
        found = contenders(Path(folder))
        runs: dict[str, list[Run]] = {name: [] for name in found}
        for _ in range(options.rounds):
            for name, contender in found.items():
                run = measure(contender, options.rows, Path(folder) / "result")
                runs[name].append(run)
                print(f"{run.seconds:8.2f} s  {name}: {run.result}", flush=True)
    seconds = {name: statistics.median(run.seconds for run in each) for name, each in runs.items()}
    cpu = {name: statistics.median(run.cpu_seconds for run in each) for name, each in runs.items()}
    stock = "RunInference, PytorchModelHandlerTensor"
    print(f"\n{options.rows:,} rows, median of {options.rounds} rounds\n")
    print("| contender | seconds | µs a row | times stock | processor seconds | times stock |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, median in seconds.items():
        times = f"{median:.2f} | {1e6 * median / options.rows:.1f} | {seconds[stock] / median:.1f}"
        print(f"| {name} | {times} | {cpu[name]:.2f} | {cpu[stock] / cpu[name]:.1f} |")


if __name__ == "__main__":
    main()
