"""Compares scoring a table by this package on Spark with Spark's own predict_batch_udf, on the same Spark.

    python benchmarks/spark.py                                      4 million rows, three runs of each
    python benchmarks/spark.py --warm --rows 1000000         data frames only, start-up not counted

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
    from pyspark.sql import DataFrame, SparkSession

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

    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    return (
        SparkSession.builder.master(master)
        .config("spark.driver.memory", "4g")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.ui.enabled", "false")
        .config("spark.sql.execution.arrow.maxRecordsPerBatch", BATCH_ROWS)
        .getOrCreate()
    )


def by_frame(spark: "SparkSession", inputs: Path, model: Path) -> "DataFrame":
    """`torchbeam.spark.score`."""
    import torchbeam.spark

    return torchbeam.spark.score(spark.read.parquet(str(inputs)), model).predictions


def by_udf(spark: "SparkSession", inputs: Path, model: Path) -> "DataFrame":
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

    answer = StructType([StructField("predicted_class", StringType()), StructField("confidence", FloatType())])
    score = predict_batch_udf(make_predict, return_type=answer, batch_size=BATCH_ROWS, input_tensor_shapes=[[FEATURES]])
    table = spark.read.parquet(str(inputs))
    scored = table.withColumn("scored", score(array(*(col(f"f_{index}") for index in range(FEATURES)))))
    return scored.select("*", "scored.*").drop("scored")


FRAMES = {"spark.score": by_frame, "predict_batch_udf": by_udf}


def warm(rows: int, repeat: int, master: str) -> None:
    """Prints the seconds of those that are frames, in one Spark whose Python workers have loaded the model."""
    model, table, output = make_model(), make_input(rows), OUT / "scored-on-spark"
    spark = session(master)
    taken: dict[str, list[float]] = {name: [] for name in FRAMES}
    for turn in range(-1, repeat):  # the first one warms up
        for name in FRAMES if turn % 2 == 0 else reversed(FRAMES):
            begin = time.monotonic()
            FRAMES[name](spark, table, model).write.mode("overwrite").parquet(str(output))
            if turn >= 0:
                taken[name].append(time.monotonic() - begin)
                print(f"  run {turn + 1}, {name}: {taken[name][-1]:.2f} s", flush=True)
    spark.stop()
    for name, seconds in taken.items():
        middle = statistics.median(seconds)
        print(f"{name:20}{rows:>12,}{middle:>10.2f} s{rows / middle:>12,.0f} rows/s")
    ratio = statistics.median(taken["predict_batch_udf"]) / statistics.median(taken["spark.score"])
    print(f"\nspark.score: {ratio:.2f} times as fast as predict_batch_udf; median of {repeat}, {master}, warm")


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
    parser.add_argument("--warm", action="store_true", help="both frames in one Spark, with the models loaded")
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("paths", nargs="*", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        inputs, model, output = options.paths
        if options.contender == "torchbeam":
            torchbeam(inputs, model, output, options.master)
        else:
            FRAMES[options.contender](session(options.master), inputs, model).write.parquet(str(output))
    elif options.warm:
        warm(options.rows, options.repeat, options.master)
    else:
        compare(options.contenders, options.rows, options.repeat, options.master)


if __name__ == "__main__":
    main()
