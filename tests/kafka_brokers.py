"""A real Kafka broker for tests, with what tests do to it: topics with free names, messages in and out."""

from __future__ import annotations

import datetime as dt
import ipaddress
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "stream"))
from broker import Broker, NoBrokerError, broker, find_jars, find_java

USER, PASSWORD = "alice", "looking-glass"  # of the listeners with passwords


class Sent(NamedTuple):
    """A message as it lies in a topic; `time` in milliseconds since 1970."""

    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]
    time: int
    partition: int = 0
    offset: int = 0


class TestBroker:
    """A broker, and what tests ask of it."""

    __test__ = False

    def __init__(self, made: Broker, authority: Path) -> None:
        self._broker = made
        self.authority = authority  # the certificate that clients trust
        self.address, self.sasl_address, self.tls_address = made.address, made.sasl_address, made.tls_address
        self.kill, self.start = made.stop, made.start

    @property
    def running(self) -> bool:
        return self._broker.running

    def topic(self, partitions: int = 1, name: str = "t", **config: str) -> str:
        """A new topic with a name that no other test has."""
        made = f"{name}-{uuid.uuid4().hex[:8]}"
        self._broker.create(made, partitions=partitions, config=config)
        return made

    def topics(self) -> set[str]:
        return set(self._broker.admin().list_topics(timeout=30).topics)

    def url(self, topic: str) -> str:
        return f"kafka://{self.address}/{topic}"

    def put(self, topic: str, messages: Sequence[Sent | bytes | None], partition: int = -1) -> None:
        """Writes messages with a client of its own."""
        producer = Producer(
            {"bootstrap.servers": self.address, "message.max.bytes": 100_000_000, "partitioner": "murmur2_random"}
        )
        for each in messages:
            sent = each if isinstance(each, Sent) else Sent(None, each, [], 0)
            producer.produce(
                topic, sent.value, sent.key, partition=partition, headers=sent.headers or None, timestamp=sent.time
            )
            producer.poll(0)
        assert producer.flush(60) == 0

    def get(self, topic: str, *, committed: bool = True) -> list[Sent]:
        """All messages of a topic, by partition and offset; only those of committed transactions unless told otherwise."""
        consumer = Consumer(
            {
                "bootstrap.servers": self.address,
                "group.id": "tests",
                "isolation.level": "read_committed" if committed else "read_uncommitted",
                "enable.auto.commit": False,
                "enable.partition.eof": True,
            }
        )
        try:
            partitions = list(consumer.list_topics(topic, timeout=30).topics[topic].partitions)
            consumer.assign([TopicPartition(topic, partition, 0) for partition in partitions])
            found: list[Sent] = []
            open_ = set(partitions)
            while open_:
                for message in consumer.consume(10_000, 0.5):
                    if message.error() is not None:
                        open_.discard(message.partition())
                        continue
                    headers = [(name, value) for name, value in message.headers() or []]
                    of_kafka = (message.timestamp()[1], message.partition(), message.offset())
                    found.append(Sent(message.key(), message.value(), headers, *of_kafka))
            return sorted(found, key=lambda sent: (sent.partition, sent.offset))
        finally:
            consumer.close()

    def delete_before(self, topic: str, offset: int, partition: int = 0) -> None:
        """Removes messages, as the retention of a topic does."""
        admin = self._broker.admin()
        for deleted in admin.delete_records([TopicPartition(topic, partition, offset)]).values():
            deleted.result(30)

    def committed(self, topic: str, group: str, partition: int = 0, *, stable: bool = False) -> int:
        """The offset that a group has committed; negative if none.

        With `stable` the end of an open transaction is awaited: the broker writes it down a moment after it has said so.
        """
        consumer = Consumer(
            {
                "bootstrap.servers": self.address,
                "group.id": group,
                "isolation.level": "read_committed" if stable else "read_uncommitted",
                "log_level": 0,
            }
        )
        try:
            while True:
                with suppress(KafkaException):  # the coordinator is not yet there
                    return int(consumer.committed([TopicPartition(topic, partition)], timeout=5)[0].offset)
        finally:
            consumer.close()


def skip_without_broker() -> None:
    """Skips a test where no broker can be started."""
    try:
        find_java()
        find_jars()
    except NoBrokerError as error:
        pytest.skip(str(error))


@contextmanager
def started_broker(folder: Path) -> Iterator[TestBroker]:
    """A broker with listeners with and without passwords and TLS; skips where there can be none."""
    skip_without_broker()
    with broker(folder / "broker", {USER: PASSWORD}, _certificate(folder)) as made:
        yield TestBroker(made, folder / "authority.pem")


def _certificate(folder: Path) -> Path:
    """A key and a certificate for 127.0.0.1 that it has signed itself, in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    public = made.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "authority.pem").write_bytes(public)
    (folder / "server.pem").write_bytes(private + public)
    return folder / "server.pem"
