"""What is compared: each scores the same files and gives the seconds that it took.

Every one runs in a fresh process. The clock starts when everything is imported, and the model, where a loop would load
it once, is loaded.
"""

import contextlib
import io
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench_model import FEATURES, LABELS, BenchNet

GROUP_ROWS = 128 * 1024
BATCH_ROWS = 8192


def loop(inputs: Path, model: Path, output: Path) -> float:
    """What one would write by hand for one machine: pyarrow and torch, with the Parquet settings of our own sink."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.json
    import pyarrow.parquet as pq
    import safetensors.torch
    import torch

    def batches(file: Path) -> Iterator[pa.RecordBatch]:
        if file.suffix == ".csv":
            return iter(pyarrow.csv.open_csv(file))
        if file.suffix == ".jsonl":
            return iter(pyarrow.json.open_json(file))
        return iter(pq.ParquetFile(file).iter_batches(GROUP_ROWS))

    net = BenchNet().eval()
    safetensors.torch.load_model(net, model / "weights.safetensors")
    labels = pa.array(LABELS)
    features = [f"f_{index}" for index in range(FEATURES)]
    output.mkdir(parents=True)

    def score(batch: pa.RecordBatch) -> pa.RecordBatch:
        matrix = np.empty((FEATURES, batch.num_rows), np.float32)
        for row, name in zip(matrix, features, strict=True):
            row[:] = batch.column(name).to_numpy()
        tensor = torch.from_numpy(matrix).T.contiguous()
        parts = [net(part).softmax(dim=1).max(dim=1) for part in tensor.split(BATCH_ROWS)]
        codes = torch.cat([part.indices for part in parts])
        confidence = torch.cat([part.values for part in parts])
        columns = {"predicted_class": labels.take(pa.array(codes.numpy())), "confidence": pa.array(confidence.numpy())}
        return pa.RecordBatch.from_arrays(
            [*batch.columns, *columns.values()], names=[*batch.schema.names, *columns.keys()]
        )

    begin = time.perf_counter()
    writer = None
    with torch.inference_mode():
        for file in sorted(inputs.iterdir()):
            for batch in batches(file):
                scored = score(batch)
                if writer is None:
                    path = output / "part.parquet"
                    writer = pq.ParquetWriter(
                        path, scored.schema, compression="snappy", use_dictionary=["predicted_class"]
                    )
                writer.write_batch(scored)
    if writer is not None:
        writer.close()
    return time.perf_counter() - begin


def torchbeam(inputs: Path, model: Path, output: Path) -> float:
    """`pipelines.score` on Beam's in-process runner; the seconds are those of its report."""
    whole(inputs, model, output)
    return float(json.loads((output / "report.json").read_text())["seconds"])


def whole(inputs: Path, model: Path, output: Path) -> float:
    """The same, and the seconds are those of the whole command but its imports: listing, the sample and checks, too."""
    from pipelines import score
    from pipelines.jobs import scoring  # noqa: F401 - what the command imports later

    begin = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        code = score.main([f"--input={inputs}", f"--model={model}", f"--output={output}", "--device=cpu"])
    if code:
        raise SystemExit(code)
    return time.perf_counter() - begin


def stock(inputs: Path, model: Path, output: Path) -> float:
    """Beam's own `PytorchModelHandlerTensor` on row dictionaries, keyed by the row so that it comes out beside its answer."""
    import apache_beam as beam
    import pyarrow as pa
    import pyarrow.parquet as pq
    import safetensors.torch
    import torch
    from apache_beam.ml.inference.base import KeyedModelHandler, RunInference
    from apache_beam.ml.inference.pytorch_inference import PytorchModelHandlerTensor

    net = BenchNet()
    safetensors.torch.load_model(net, model / "weights.safetensors")
    output.mkdir(parents=True)
    weights = output / "weights.pt"
    torch.save(net.state_dict(), weights)
    handler = PytorchModelHandlerTensor(
        state_dict_path=str(weights), model_class=BenchNet, model_params={}, device="CPU", max_batch_size=BATCH_ROWS
    )
    features = [f"f_{index}" for index in range(FEATURES)]
    schema = pq.read_schema(next(iter(sorted(inputs.glob("*.parquet"))))).remove_metadata()
    schema = schema.append(pa.field("predicted_class", pa.string())).append(pa.field("confidence", pa.float32()))

    def encode(row: dict) -> tuple[dict, torch.Tensor]:
        return row, torch.tensor([row[name] for name in features], dtype=torch.float32)

    def decode(row: dict, result: object) -> dict:
        confidence, code = result.inference.softmax(dim=0).max(dim=0)
        return {**row, "predicted_class": LABELS[int(code)], "confidence": float(confidence)}

    begin = time.perf_counter()
    with beam.Pipeline(argv=["--runner=FnApiRunner"]) as pipeline:
        _ = (
            pipeline
            | beam.io.ReadFromParquet(f"{inputs}/*.parquet")
            | beam.Map(encode)
            | RunInference(KeyedModelHandler(handler))
            | beam.MapTuple(decode)
            | beam.io.WriteToParquet(f"{output}/part", schema, codec="snappy", file_name_suffix=".parquet")
        )
    return time.perf_counter() - begin


CONTENDERS: dict[str, Callable[[Path, Path, Path], float]] = {
    "loop": loop,
    "torchbeam": torchbeam,
    "whole": whole,
    "stock": stock,
}


def peak_bytes() -> int:
    """The most memory that this process has held so far."""
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    import sys

    name, *paths = sys.argv[1:]
    seconds = CONTENDERS[name](*map(Path, paths))
    print(json.dumps({"seconds": seconds, "peak_bytes": peak_bytes()}), flush=True)
    os._exit(0)  # no waiting for the threads of a runner
