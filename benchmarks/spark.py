"""Compares scoring a table by this package on Spark with Spark's own predict_batch_udf, on the same Spark.

    python benchmarks/spark.py                                      4 million rows, three runs of each
    python benchmarks/spark.py --contenders spark.score predict_batch_udf --rows 1000000

`torchbeam` is the command on Beam's runner, `spark.score` is `torchbeam.spark.score` on a data frame.

Both read Parquet and write Parquet, with the same model, on local[2]. Each run is a fresh process. What a run on 1,000
rows takes is taken out of both: Java, Spark, the Python workers, imports and the model. Runs alternate, and the median
counts. It needs pyspark (of the extra `dev`), Java, and the job server (`make spark-job-server`).
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from bench_model import FEATURES, LABELS
from score import OUT, make_input, make_model

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

SMALL_ROWS = 1_000
BATCH_ROWS = 8_192
CONTENDERS = ("torchbeam", "spark.score", "predict_batch_udf")


def torchbeam(inputs: Path, model: Path, output: Path, master: str) -> None:
    """`pipelines.score` on Spark."""
    from pipelines import score

    arguments = {"runner": "SparkRunner", "spark_master_url": master, "input": inputs, "model": model, "output": output}
    if code := score.main([f"--{name}={value}" for name, value in arguments.items()]):
        raise SystemExit(code)


def session(master: str) -> "SparkSession":
    """The same Spark for both that use one."""
    from pyspark.sql import SparkSession

    return (
        SparkSession.builder.master(master)
        .config("spark.driver.memory", "4g")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.ui.enabled", "false")
        .config("spark.sql.execution.arrow.maxRecordsPerBatch", BATCH_ROWS)
        .getOrCreate()
    )


def spark_score(inputs: Path, model: Path, output: Path, master: str) -> None:
    """`torchbeam.spark.score`."""
    import torchbeam.spark

    spark = session(master)
    found = torchbeam.spark.score(spark.read.parquet(str(inputs)), model)
    found.predictions.write.parquet(str(output))
    spark.stop()


def predict_batch_udf(inputs: Path, model: Path, output: Path, master: str) -> None:
    """Spark's own way to call a model: a function on numpy batches."""
    from pyspark.ml.functions import predict_batch_udf
    from pyspark.sql.functions import array, col
    from pyspark.sql.types import FloatType, StringType, StructField, StructType

    def make_predict():
        import numpy as np
        import torch

        from torchbeam import ModelDir

        torch.set_num_threads(1)
        net = ModelDir(str(model)).load().module.eval()
        labels = np.array(LABELS)

        def predict(rows):
            with torch.inference_mode():
                confidence, best = net(torch.from_numpy(rows.astype(np.float32))).softmax(1).max(1)
            return {"predicted_class": labels[best.numpy()], "confidence": confidence.numpy()}

        return predict

    spark = session(master)
    answer = StructType([StructField("predicted_class", StringType()), StructField("confidence", FloatType())])
    score = predict_batch_udf(make_predict, return_type=answer, batch_size=BATCH_ROWS, input_tensor_shapes=[[FEATURES]])
    table = spark.read.parquet(str(inputs))
    scored = table.withColumn("scored", score(array(*(col(f"f_{index}") for index in range(FEATURES)))))
    scored.select("*", "scored.*").drop("scored").write.parquet(str(output))
    spark.stop()


def run(contender: str, inputs: Path, model: Path, master: str) -> float:
    """Seconds of a run in a process of its own."""
    output = OUT / "scored-on-spark"
    shutil.rmtree(output, ignore_errors=True)
    begin = time.monotonic()
    command = [
        sys.executable,
        __file__,
        "--contender",
        contender,
        "--master",
        master,
        str(inputs),
        str(model),
        str(output),
    ]
    environment = os.environ | {"PYSPARK_PYTHON": sys.executable}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    seconds = time.monotonic() - begin
    if done.returncode:
        raise SystemExit(f"{contender} ended with exit code {done.returncode}:\n{done.stderr[-4000:]}")
    return seconds


def compare(names: list[str], rows: int, repeat: int, master: str) -> None:
    """Prints seconds and rows a second of all, and how they compare to predict_batch_udf."""
    model, table, small = make_model(), make_input(rows), make_input(SMALL_ROWS)
    taken: dict[str, dict[str, list[float]]] = {name: {"start": [], "whole": []} for name in names}
    for turn in range(repeat):
        for name in names if turn % 2 == 0 else reversed(names):
            for what, inputs in (("start", small), ("whole", table)):
                taken[name][what].append(run(name, inputs, model, master))
            print(
                f"  run {turn + 1}, {name}: " + json.dumps({k: round(v[-1], 1) for k, v in taken[name].items()}),
                flush=True,
            )
    seconds = {}
    print(f"{'':20}{'rows':>12}{'start-up s':>12}{'seconds':>10}{'rows/s':>12}")
    for name, found in taken.items():
        start = statistics.median(found["start"])
        seconds[name] = statistics.median(found["whole"]) - start
        print(f"{name:20}{rows:>12,}{start:>12.1f}{seconds[name]:>10.2f}{rows / seconds[name]:>12,.0f}")
    for name in names:
        if name != "predict_batch_udf" and "predict_batch_udf" in names:
            ratio = seconds["predict_batch_udf"] / seconds[name]
            print(f"\n{name}: {ratio:.2f} times as fast as predict_batch_udf; median of {repeat}, {master}")


def main() -> None:
    """Reads the arguments and runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4_000_000, help="rows of the table (default: 4,000,000)")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each, of which the median counts (default: 3)")
    parser.add_argument("--master", default="local[2]", help="Spark's master (default: local[2])")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), help="which to run")
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("paths", nargs="*", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        functions = (torchbeam, spark_score, predict_batch_udf)
        dict(zip(CONTENDERS, functions, strict=True))[options.contender](*options.paths, options.master)
    else:
        compare(options.contenders, options.rows, options.repeat, options.master)


if __name__ == "__main__":
    main()
