"""Transactions of Kafka on a real broker: outputs and offset come together or not at all, and from one process only."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from deadlines import WAIT_SECONDS
from kafka_brokers import TestBroker

from handlers.errors import StreamError
from transforms.streams import kafka_clients, kafka_transaction
from transforms.streams.kafka_cluster import Cluster
from transforms.streams.kafka_transaction import Transactions
from transforms.streams.messages import OutMessage

pytestmark = pytest.mark.slow(20)

ROOT = Path(__file__).parents[3]


def messages(*values: str) -> list[OutMessage]:
    return [OutMessage(b"k", value.encode(), (("h", b"1"),), 5_000_000) for value in values]


def test_outputs_and_offset_are_one(kafka: TestBroker) -> None:
    source, output, dead = kafka.topic(), kafka.topic(), kafka.topic(**{"max.message.bytes": "1000"})
    made = Transactions(Cluster(kafka.address), source, "group", 0)
    assert made.open() is None
    made.deliver(3, [(output, messages("a", "b")), (dead, messages("c")), (output, [])])
    assert kafka.committed(source, "group", stable=True) == made.open() == 3
    with pytest.raises(StreamError, match=rf"^topic {dead} does not take a message of this size"):
        made.deliver(5, [(output, messages("not")), (dead, messages("x" * 2000)), (output, messages("not"))])
    assert kafka.committed(source, "group", stable=True) == made.open() == 3
    made.deliver(5, [(output, messages("d")), (dead, [])])
    assert kafka.committed(source, "group", stable=True) == made.open() == 5
    assert [sent.value for sent in kafka.get(output)] == [b"a", b"b", b"d"]
    assert [sent.value for sent in kafka.get(dead)] == [b"c"]
    assert b"not" in [sent.value for sent in kafka.get(output, committed=False)]


def test_who_comes_later_fences_who_was_there(kafka: TestBroker) -> None:
    source, output = kafka.topic(), kafka.topic()
    old = Transactions(Cluster(kafka.address), source, "group", 0)
    old.open()
    old.deliver(1, [(output, messages("a"))])
    new = Transactions(Cluster(kafka.address), source, "group", 0)
    assert new.open() == 1
    with pytest.raises(
        StreamError, match=rf"^topic {source}, partition 0: another process of group group has taken it over"
    ):
        old.deliver(2, [(output, messages("zombie"))])
    new.deliver(2, [(output, messages("b"))])
    with pytest.raises(StreamError, match="are not open; the partition is read again"):
        old.deliver(2, [(output, messages("zombie"))])
    assert [sent.value for sent in kafka.get(output)] == [b"a", b"b"]
    assert old.open() == 2  # when the partition is read again, behind what was delivered
    # Another partition, and another group, are not concerned.
    Transactions(Cluster(kafka.address), source, "other", 0).open()
    old.deliver(3, [(output, messages("c"))])


KILLED = """
import sys, time
from transforms.streams.kafka_clients import send
from transforms.streams import kafka_clients, kafka_transaction
from transforms.streams.kafka_cluster import Cluster
from transforms.streams.kafka_transaction import Transactions
from transforms.streams.messages import OutMessage

address, source, output = sys.argv[1:]
made = Transactions(Cluster(address), source, "group", 0)
made.open()
made._producer.begin_transaction()
send(made._producer, output, [OutMessage(None, b"unfinished", (), 5_000_000)], [])
made._producer.flush()
print("written", flush=True)
time.sleep(600)
"""


def test_a_killed_process_leaves_nothing(kafka: TestBroker) -> None:
    source, output = kafka.topic(), kafka.topic()
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, kafka.address, source, output],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"written\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    made = Transactions(Cluster(kafka.address), source, "group", 0)
    assert made.open() is None
    made.deliver(1, [(output, messages("a"))])
    assert [sent.value for sent in kafka.get(output)] == [b"a"]
    assert [sent.value for sent in kafka.get(output, committed=False)] == [b"unfinished", b"a"]


def test_the_broker_is_killed_between_transactions(kafka: TestBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first as it is; for the second the client waits for ever, by itself, once the broker was away."""
    sources, output = [kafka.topic(), kafka.topic()], kafka.topic()
    monkeypatch.setattr(kafka_transaction, "HUNG_SECONDS", 5.0)
    first = Transactions(Cluster(kafka.address), sources[0], "group", 0)
    first.open()
    monkeypatch.setitem(kafka_clients.IN_TRANSACTIONS, "metadata_recovery_strategy", "rebootstrap")
    second = Transactions(Cluster(kafka.address), sources[1], "group", 0)
    for name, made in {"first": first, "second": second}.items():
        made.open()
        made.deliver(1, [(output, messages(f"{name} a"))])
    kafka.kill()
    both = [
        threading.Thread(target=made.deliver, args=(2, [(output, messages(f"{name} b"))]))
        for name, made in {"first": first, "second": second}.items()
    ]
    for each in both:
        each.start()
    kafka.start()
    for each in both:
        each.join(WAIT_SECONDS)
        assert not each.is_alive()
    assert sorted(sent.value or b"" for sent in kafka.get(output)) == [b"first a", b"first b", b"second a", b"second b"]
    assert [kafka.committed(source, "group", stable=True) for source in sources] == [2, 2]
