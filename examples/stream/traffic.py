"""Traffic for a stream: messages at a given rate, and a meter of what comes out and how long it took."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from confluent_kafka import Consumer, Message, Producer, TopicPartition

_TICK_SECONDS = 0.01


def send(address: str, topic: str, values: Iterable[bytes], rate: float | None = None) -> None:
    """Writes messages whose event time is the time of writing; keys are their numbers.

    Args:
        address: `host:port` of the broker.
        topic: where they go.
        values: of the messages.
        rate: messages a second; None for as fast as possible.
    """
    producer = Producer({"bootstrap.servers": address, "linger.ms": 1 if rate else 50, "log_level": 0})
    began = time.perf_counter()
    for number, value in enumerate(values):
        while rate and number > (time.perf_counter() - began) * rate:
            producer.flush()
            time.sleep(_TICK_SECONDS)
        while True:
            try:
                producer.produce(topic, value, str(number).encode(), timestamp=time.time_ns() // 1_000_000)
                break
            except BufferError:
                producer.poll(0.1)
    producer.flush()


class Meter:
    """Reads topics in a thread; a context manager.

    Args:
        address: `host:port` of the broker.
        topics: what is read, from the beginning.
        take: gets every message.

    Attributes:
        counts: messages by topic.
        last: when the last one came, in seconds of `time.perf_counter`.
    """

    def __init__(self, address: str, topics: Sequence[str], take: Callable[[Message], None] | None = None) -> None:
        self.counts = dict.fromkeys(topics, 0)
        self.last = 0.0
        self._take = take
        self._delays: list[float] = []
        options = {"group.id": "meter", "enable.auto.commit": False, "log_level": 0}
        self._consumer = Consumer({"bootstrap.servers": address, **options})
        known = self._consumer.list_topics(timeout=30).topics
        self._consumer.assign(
            [TopicPartition(topic, number, 0) for topic in topics for number in known[topic].partitions]
        )
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Meter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._consumer.close()

    @property
    def total(self) -> int:
        """Messages of all topics."""
        return sum(self.counts.values())

    def delays(self, begin: int = 0) -> np.ndarray:
        """Milliseconds from the event time of each message to its arrival here, from message `begin` on."""
        return np.array(self._delays[begin:])

    def _read(self) -> None:
        while not self._ended.is_set():
            first = self._consumer.poll(0.1)
            if first is None:
                continue
            now = time.time() * 1000
            for message in [first, *self._consumer.consume(10_000, 0)]:
                if message.error() is not None:
                    continue
                if self._take:
                    self._take(message)
                self._delays.append(now - message.timestamp()[1])
                self.counts[message.topic()] += 1
            self.last = time.perf_counter()
