"""Scores a live stream: a real Kafka broker, images of digits that arrive, and a table of what comes out and how fast.

    python examples/stream/run.py out/stream

Trains the model of `examples/digits`, starts a broker (`make kafka` has fetched it), sends 1,000 images a second for twenty
seconds, and scores them with `torchbeam stream`. One image in 450 is damaged and becomes a dead letter. It ends by itself and
leaves nothing running; `out/stream` gets the model directory and the images.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

os.environ.setdefault(
    "OMP_WAIT_POLICY", "PASSIVE"
)  # threads that wait sleep, here and in the processes that are started

import numpy as np
import pyarrow.parquet as pq
from broker import NoBrokerError, broker
from confluent_kafka import Message
from rich.console import Console
from rich.live import Live
from rich.table import Table
from traffic import Meter, send

from pipelines.command.supervisor import supervised_command

DIGITS = Path(__file__).resolve().parents[1] / "digits" / "train.py"
RATE = 1_000  # messages a second
START_SECONDS = 120
PARTITIONS = 2


def images(table: Path) -> Iterator[bytes]:
    """The rows of a table as JSON, over and over."""
    rows = pq.read_table(table, columns=["scan", "pixels", "digit"]).to_pylist()
    return cycle([json.dumps(row).encode() for row in rows])


class Scores:
    """What has come out: how many are right, and at which speed."""

    def __init__(self) -> None:
        self.right = self.predictions = self.dead = 0

    def take(self, message: Message) -> None:
        """Counts a prediction or a dead letter."""
        if message.topic() == "dead_letters":
            self.dead += 1
            return
        row = json.loads(message.value())
        self.predictions += 1
        self.right += row["predicted_class"] == str(row["digit"])


def shown(sent: int, scores: Scores, per_second: float, delays: np.ndarray) -> Table:
    """The table in the terminal."""
    table = Table(title="kafka://…/images → torchbeam stream → kafka://…/digits")
    for name in ("sent", "scored", "dead", "accuracy", "messages/s", "delay p50", "p99"):
        table.add_column(name, justify="right")
    p50, p99 = np.percentile(delays, [50, 99]) if len(delays) else (np.nan, np.nan)
    table.add_row(
        f"{sent:,}",
        f"{scores.predictions:,}",
        f"{scores.dead:,}",
        f"{scores.right / max(scores.predictions, 1):.1%}",
        f"{per_second:,.0f}",
        *(f"{value:.0f} ms" for value in (p50, p99)),
    )
    return table


def watch(address: str, values: list[bytes], process: subprocess.Popen[bytes], console: Console) -> Scores:
    """Sends images once the stream is there, and shows what comes out until all have come."""
    scores = Scores()
    with Meter(address, ["digits", "dead_letters"], scores.take) as meter:
        # The first message shows that the stream has started: its delay is that of the start.
        send(address, "images", values[:1])
        end = time.monotonic() + START_SECONDS
        while not meter.total:
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit("the stream has not started")
            time.sleep(0.05)
        began, before, speed = time.perf_counter(), (time.perf_counter(), meter.total), 0.0
        feeder = threading.Thread(target=send, args=(address, "images", values[1:], RATE))
        feeder.start()
        with Live(console=console, refresh_per_second=4, transient=True) as live:
            while meter.total < len(values) and process.poll() in (None, 0):
                time.sleep(0.25)
                now = time.perf_counter()
                if now - before[0] >= 1:
                    speed, before = (meter.total - before[1]) / (now - before[0]), (now, meter.total)
                sent = min(1 + int((now - began) * RATE), len(values))
                live.update(shown(sent, scores, speed, meter.delays(max(meter.total - 2 * RATE, 1))))
        feeder.join()
        speed = (meter.total - 1) / (meter.last - began)
        console.print(shown(len(values), scores, speed, meter.delays(1)))
    return scores


def main() -> None:
    """Trains, starts broker and stream, sends, shows, and ends."""
    parser = argparse.ArgumentParser(description="Score a live stream of digits over a real Kafka broker.")
    parser.add_argument("out", type=Path, help="folder for the model directory and the images")
    parser.add_argument("--seconds", type=int, default=20, help="how long images are sent (default: 20)")
    given = parser.parse_args()
    out = given.out
    console = Console()
    if not (out / "model").is_dir():
        subprocess.run([sys.executable, str(DIGITS), str(out)], check=True)
    values = list(islice(images(out / "table.parquet"), RATE * given.seconds))
    try:
        with tempfile.TemporaryDirectory() as folder, broker(Path(folder, "kafka")) as kafka:
            console.print(f"A Kafka broker is at {kafka.address}, until this ends.")
            kafka.create("images", "digits", partitions=PARTITIONS)
            kafka.create("dead_letters")
            topic = f"kafka://{kafka.address}"
            command = [
                *(sys.executable, "-m", "torchbeam", "stream"),
                *(f"--input={topic}/images", f"--output={topic}/digits", f"--dead_letters={topic}/dead_letters"),
                *(f"--model={out / 'model'}", f"--sample={out / 'table.parquet'}", "--columns=scan,digit"),
                f"--stop_after={len(values)}",
            ]
            process = subprocess.Popen(supervised_command(command))
            try:
                scores = watch(kafka.address, values, process, console)
                code = process.wait(60)
            finally:
                process.terminate()
                process.wait()
    except NoBrokerError as error:
        raise SystemExit(str(error)) from None
    console.print(f"{len(values):,} messages sent = {scores.predictions:,} scored + {scores.dead:,} dead letters")
    raise SystemExit(code or scores.predictions + scores.dead != len(values))


if __name__ == "__main__":
    main()
