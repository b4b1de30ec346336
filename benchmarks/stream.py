"""Scores messages of 20 floats over a real Kafka broker: throughput, what takes the time, and the delay of a message.

    python benchmarks/stream.py                 200,000 messages, and 30 s at 1,000 messages a second
    python benchmarks/stream.py --rows=20000 --seconds=10

Broker, stream and the client that measures are on this machine and share its cores. First of all the predictions are compared
with those of `torchbeam score` on the same rows. `make kafka` fetches the broker.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["OMP_NUM_THREADS"] = "1"  # here and in the command: figures are of one core for the worker
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "stream"))

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from broker import Broker, broker  # type: ignore[import-not-found]
from confluent_kafka import Consumer, Message, TopicPartition
from traffic import Meter, send  # type: ignore[import-not-found]

from benchmarks.bench_model import FEATURES, LABELS, BenchNet
from pipelines.command.supervisor import supervised_command
from torchbeam import ModelDir
from transforms.streams.accounts import accounts_of
from transforms.streams.decode import decode
from transforms.streams.encode import outputs_of
from transforms.streams.endpoints import Settings, source_of
from transforms.streams.handler import StreamModelHandler
from transforms.streams.score_stream import ScoreStream

HERE = Path(__file__).resolve().parent
NAMES = [f"x{number}" for number in range(FEATURES)]
RATE = 1_000  # messages a second, for the delay
OUTPUTS = {"output": "scored", "dead_letters": "dead", "accounts": "accounts"}


def make(folder: Path, rows: int) -> tuple[Path, list[bytes]]:
    """Writes a model, and a table of rows; gives the path of the model, and the rows as JSON."""
    torch.manual_seed(0)
    inputs = [{"name": "x", "columns": NAMES}]
    code = [HERE / "bench_model.py"]
    model = ModelDir.save(
        BenchNet(), folder / "model", name="bench", task="classification", labels=LABELS, inputs=inputs, code=code
    )
    values = np.random.default_rng(0).normal(size=(rows, FEATURES))
    table = pa.table({"number": np.arange(rows), **{name: values[:, at] for at, name in enumerate(NAMES)}})
    pq.write_table(table, folder / "rows.parquet")
    return Path(model.path), [json.dumps(dict(zip(NAMES, row, strict=True))).encode() for row in values.tolist()]


def create(kafka: Broker, topic: str) -> dict[str, str]:
    """The topics of a stream; gives the addresses by option."""
    kafka.create(topic, *(f"{topic}-{end}" for end in OUTPUTS.values()))
    at = f"kafka://{kafka.address}/{topic}"
    return {"input": at, **{option: f"{at}-{end}" for option, end in OUTPUTS.items()}}


@contextmanager
def command(model: Path, addresses: dict[str, str], stop_after: int, *more: str) -> Iterator[subprocess.Popen[bytes]]:
    """The stream as a command."""
    options = [f"--{option}={address}" for option, address in addresses.items()]
    arguments = ["stream", f"--model={model}", *options, f"--stop_after={stop_after}", *more]
    process = subprocess.Popen(
        supervised_command([sys.executable, "-m", "torchbeam", *arguments]),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        yield process
        assert process.wait(60) == 0, process.stderr and process.stderr.read().decode()
    finally:
        process.kill()
        process.communicate()


def whole(kafka: Broker, model: Path, values: list[bytes], *more: str) -> tuple[float, float]:
    """Seconds of the command for a message, from its first chunk to its last, and the CPU seconds of the broker for one."""
    topic = f"bulk{len(more)}"
    addresses = create(kafka, topic)
    send(kafka.address, topic, values)
    asked = Consumer({"bootstrap.servers": kafka.address, "group.id": "watch"})
    position = TopicPartition(f"{topic}-scored", 0)
    with command(model, addresses, len(values), *more) as process:
        first = done = 0
        began = cpu = 0.0
        while done < len(values):
            assert process.poll() in (None, 0)
            done = asked.get_watermark_offsets(position, timeout=10)[1]
            if done and not first:
                first, began, cpu = done, time.perf_counter(), kafka.cpu_seconds()
            if "--delivery=exactly_once" in more and process.poll() == 0:
                break  # the end of a transaction is a record, too
            time.sleep(0.01)
        seconds, cpu = time.perf_counter() - began, kafka.cpu_seconds() - cpu
    asked.close()
    return seconds / (len(values) - first), cpu / (len(values) - first)


def check_equal(kafka: Broker, model: Path, rows: int, folder: Path) -> None:
    """Compares what came out with `torchbeam score` on the same rows."""
    found: dict[int, tuple[str, float]] = {}

    def take(message: Message) -> None:
        row = json.loads(message.value() or b"")
        found[int(message.key() or b"")] = (row["predicted_class"], row["confidence"])

    with Meter(kafka.address, ["bulk0-scored"], take) as meter:
        while meter.total < rows:
            time.sleep(0.05)
    score = ["score", f"--input={folder / 'rows.parquet'}", f"--model={model}", f"--output={folder / 'batch'}"]
    subprocess.run([sys.executable, "-m", "torchbeam", *score], check=True, capture_output=True)
    columns = ["number", "predicted_class", "confidence"]
    batch = pq.read_table(folder / "batch" / "predictions", columns=columns).sort_by("number")
    assert sorted(found) == batch["number"].to_pylist(), "not every message came out"
    assert [found[number][0] for number in range(rows)] == batch["predicted_class"].to_pylist()
    confidences = np.array([found[number][1] for number in range(rows)], np.float32)
    difference = np.abs(confidences - batch["confidence"].to_numpy()).max()
    assert difference < 1e-6, difference
    print(f"{rows:,} messages: classes equal to those of `torchbeam score`, confidences within {difference:.0e}")


def stages(kafka: Broker, model: Path, rows: int) -> dict[str, float]:
    """Seconds of the worker's thread in each step, for a message."""
    addresses = create(kafka, "steps")
    source = source_of(f"kafka://{kafka.address}/bulk0", Settings("steps"))
    stream = ScoreStream(source, str(model), *(addresses[option] for option in OUTPUTS))
    stream.check()
    handler = StreamModelHandler(stream.score.handler)
    scorer = handler.load_model()
    deliverer = stream._delivery.open()
    reader = source.reader("0", 0)
    seconds = dict.fromkeys(("read", "decode", "score", "encode", "deliver"), 0.0)
    at = 0.0

    def lap(step: str) -> None:
        nonlocal at
        now = time.perf_counter()
        seconds[step] += now - at
        at = now

    total = warm = 0
    while total < rows:
        at = time.perf_counter()
        if (messages := reader.read(stream.batches.rows, stream.batches.delay)) is None:
            continue
        lap("read")
        decoded = decode(messages, stream.decoder, stream.form.max_bytes)
        lap("decode")
        (scored,) = handler.run_inference(decoded, scorer)
        lap("score")
        outputs = outputs_of(scored, accounts_of(scored, 60.0))
        lap("encode")
        deliverer.deliver(messages, outputs)
        lap("deliver")
        total += len(messages)
        if not warm:
            warm, seconds = total, dict.fromkeys(seconds, 0.0)
    reader.close()
    deliverer.close()
    return {step: taken / (total - warm) for step, taken in seconds.items()}


def delay(kafka: Broker, model: Path, values: list[bytes], seconds: int, *more: str) -> None:
    """The delay of messages that come one after the other."""
    topic = f"live{len(more)}"
    addresses = create(kafka, topic)
    count = RATE * seconds
    with (
        command(model, addresses, count + RATE, *more) as process,
        Meter(kafka.address, [f"{topic}-scored"]) as meter,
    ):
        send(kafka.address, topic, values[:RATE])  # until the stream has started
        while meter.total < RATE:
            assert process.poll() is None
            time.sleep(0.05)
        send(kafka.address, topic, values[:count], RATE)
        while meter.total < count + RATE:
            time.sleep(0.05)
        p50, p99, most = np.percentile(meter.delays(RATE), [50, 99, 100])
    print(
        f"{count:,} messages at {RATE:,} a second {' '.join(more)}: delay p50 {p50:.0f} ms, p99 {p99:.0f} ms, most {most:.0f} ms"
    )


def main() -> None:
    """Runs all of it."""
    parser = argparse.ArgumentParser(description="Measure `torchbeam stream` over a real Kafka broker.")
    parser.add_argument("--rows", type=int, default=200_000, help="messages for the throughput")
    parser.add_argument("--seconds", type=int, default=30, help="of the measurement of the delay")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, values = make(folder, given.rows)
        with broker(folder / "kafka") as kafka:
            took, of_broker = whole(kafka, model, values)
            check_equal(kafka, model, given.rows, folder)
            steps = stages(kafka, model, given.rows)
            own = steps["decode"] + steps["score"] + steps["encode"]
            print(f"scoring stage (decode, score, encode): {1 / own:,.0f} messages a second a core")
            print(f"whole command, one partition: {1 / took:,.0f} messages a second")
            for step, each in [*steps.items(), ("Beam and waiting", took - sum(steps.values()))]:
                print(f"  {step:18}{each * 1e6:6.1f} µs a message  {each / took:5.0%}")
            print(f"  broker, beside it {of_broker * 1e6:6.1f} µs of CPU a message")
            exactly, _ = whole(kafka, model, values, "--delivery=exactly_once")
            print(f"whole command, exactly once: {1 / exactly:,.0f} messages a second")
            delay(kafka, model, values, given.seconds)
            delay(kafka, model, values, given.seconds, "--delivery=exactly_once")


if __name__ == "__main__":
    main()
