"""Outputs and offsets of a partition in one transaction of Kafka, so that a reader of committed messages sees each once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from handlers.errors import StreamError
from transforms.streams.kafka_clients import Refusal, committed, consumer, producer, refused, send
from transforms.streams.kafka_cluster import Cluster, Outage, client, passes
from transforms.streams.messages import OutMessage

if TYPE_CHECKING:
    from confluent_kafka import KafkaError, Producer

_SECONDS = 30.0
_REPORT_SECONDS = 2.0
# The client does not always keep to its timeout: it may wait for a coordinator that is gone (librdkafka issues 5456, 5511).
HUNG_SECONDS = 2 * _SECONDS


class Transactions:
    """The transactions of one partition of a topic. Its name in Kafka is that of group, topic and partition.

    Who opens them fences whoever had them open before: a process that was thought dead can no longer write. So they are
    opened before the partition is read, and reading begins behind the last of them.

    Args:
        cluster: where all topics are.
        topic: the topic that is read.
        group: the group that its offsets are committed for.
        partition: the number of the partition.
    """

    def __init__(self, cluster: Cluster, topic: str, group: str, partition: int) -> None:
        self._cluster = cluster
        self._topic = topic
        self._partition = partition
        self._consumer = consumer(cluster, group)
        self._group = group
        self._name = f"{group}-{topic}-{partition}"
        self._errors: list[Refusal] = []
        self._outage = Outage(cluster)
        self._producer: Producer | None = None
        self._next: int | None = None

    def open(self) -> int | None:
        """The offset behind the last transaction; None if there was none. Fences other processes if not yet done."""
        if self._producer is None:
            self._opened()
            self._next = committed(self._cluster, self._consumer, self._topic, self._partition)
        return self._next

    def _opened(self) -> Producer:
        self._errors = []
        made = producer(self._cluster, self._errors, self._outage, self._name)
        self._cluster.until_answered(lambda: made.init_transactions(_SECONDS), f"transactions of {self._name}")
        self._producer = made
        return made

    def deliver(self, offset: int, outputs: Sequence[tuple[str, Sequence[OutMessage]]]) -> None:
        """Writes outputs and commits `offset`, all or nothing; again while the brokers are away.

        Args:
            offset: the one behind the last message that the outputs are of.
            outputs: the messages of each topic.

        Raises:
            StreamError: if another process has fenced this one, or a message is refused.
        """
        if self._producer is None:
            raise StreamError(f"transactions of {self._name} are not open; the partition is read again")
        while not self._delivered(self._producer or self._opened(), offset, outputs):
            pass
        self._next = offset
        self._outage.over()

    def _delivered(self, made: Producer, offset: int, outputs: Sequence[tuple[str, Sequence[OutMessage]]]) -> bool:
        """Whether the transaction was committed; False if it was aborted and can be tried again."""
        position = client().TopicPartition(self._topic, self._partition, offset)
        group = self._consumer.consumer_group_metadata()
        topic = self._topic
        try:
            made.begin_transaction()
            for topic, messages in outputs:
                send(made, topic, messages, self._errors)
            self._again(lambda: _within(HUNG_SECONDS, made.send_offsets_to_transaction, [position], group, _SECONDS))
            self._again(lambda: made.commit_transaction(_SECONDS))
        except _HungError:
            # Nothing of it is committed, and the next producer of this name aborts it.
            self._outage.on_error(client().KafkaError(client().KafkaError._TIMED_OUT))
            self._producer = None
            return False
        except client().KafkaException as error:
            # That a message was refused ends the transaction, and which one is reported a moment later.
            end = time.monotonic() + (_REPORT_SECONDS if error.args[0].code() == client().KafkaError._STATE else 0)
            while not self._errors and time.monotonic() < end:
                made.poll(0.1)
            first = self._errors[0] if self._errors else Refusal(error.args[0], topic)
            self._abort(made, error.args[0])
            if not _ends_by_itself(first.error):
                raise refused(*first) from None
            self._outage.on_error(first.error)
            return False
        return True

    def _abort(self, made: Producer, error: KafkaError) -> None:
        """Aborts the transaction that `error` has ended; raises `StreamError` if the producer can do nothing more."""
        try:
            if not error.fatal():
                self._again(lambda: made.abort_transaction(_SECONDS))
                self._errors.clear()
                return
        except client().KafkaException as other:
            error = other.args[0]
        self._producer = None
        self._errors.clear()
        if error.code() in (client().KafkaError._FENCED, client().KafkaError.INVALID_PRODUCER_EPOCH):
            raise StreamError(
                f"topic {self._topic}, partition {self._partition}: another process of group {self._group} has taken it over"
            )
        raise StreamError(f"transactions of {self._name}: {error.str()}; start the stream again, nothing is lost")

    def _again(self, call: Callable[[], None]) -> None:
        """Calls until the brokers answer; raises the `KafkaException` for all that ends the transaction."""
        while True:
            try:
                call()
                return
            except client().KafkaException as error:
                first = error.args[0]
                if first.fatal() or first.txn_requires_abort() or not first.retriable():
                    raise
                self._outage.on_error(first)


class _HungError(Exception):
    """A call of the client does not come back."""


def _within(seconds: float, call: Callable[..., Any], *arguments: Any) -> None:
    """Calls in a thread; raises `_HungError` if it does not come back in time, and what it raises."""
    done: Future[None] = Future()

    def run() -> None:
        try:
            done.set_result(call(*arguments))
        except Exception as error:
            done.set_exception(error)

    threading.Thread(target=run, name="kafka-transaction", daemon=True).start()
    try:
        done.result(seconds)
    except TimeoutError:
        raise _HungError from None


_lock = threading.Lock()
_known: dict[tuple[Cluster, str, str, int], Transactions] = {}


def transactions(cluster: Cluster, topic: str, group: str, partition: int) -> Transactions:
    """The transactions of a partition in this process: who reads it and who delivers its outputs share them."""
    with _lock:
        key = (cluster, topic, group, partition)
        if key not in _known:
            _known[key] = Transactions(*key)
        return _known[key]


def _ends_by_itself(error: KafkaError) -> bool:
    codes = client().KafkaError
    return passes(error) or error.code() in (codes._MSG_TIMED_OUT, codes._PURGE_QUEUE, codes._PURGE_INFLIGHT)
