"""Kafka as a source and as a sink of messages.

A partition is read without the rebalancing of a consumer group: the runner decides who reads it. Its offsets are committed for
a group, as those of any consumer, so that Kafka's own tools show how far it is behind.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from handlers.errors import StreamError, UsageError
from transforms.streams.deliver import Ends
from transforms.streams.encode import Outputs
from transforms.streams.endpoints import Settings
from transforms.streams.kafka_clients import ASK_SECONDS, Refusal, committed, consumer, producer, refused, send
from transforms.streams.kafka_cluster import CHECK_SECONDS, Cluster, Outage, client, log, parse_url, passes, reason_of
from transforms.streams.kafka_transaction import transactions
from transforms.streams.messages import Headers, Messages, OutMessage, Reader, Writer

if TYPE_CHECKING:
    from confluent_kafka import Consumer, KafkaError, Message

EXACTLY_ONCE = True  # with Settings.exactly_once

Begin = Literal["earliest", "latest"]

_FLUSH_SECONDS = 1.0


def source(address: str, settings: Settings, flag: str) -> KafkaSource:
    """The source of `kafka://host:9092[,host2:9092]/topic`; raises `UsageError` for one that cannot be."""
    servers, topic = parse_url(address, flag)
    group = settings.group or default_group(topic, settings.output)
    return KafkaSource(Cluster(servers, settings.config), topic, group, settings.begin, settings.exactly_once)


def sink(address: str, settings: Settings, flag: str, *, whole: bool = True) -> KafkaSink:
    """The sink of `kafka://host:9092[,host2:9092]/topic`; raises `UsageError` for one that cannot be."""
    del whole  # a message of Kafka always has all
    servers, topic = parse_url(address, flag)
    return KafkaSink(Cluster(servers, settings.config), topic, flag)


def default_group(topic: str, output: str) -> str:
    """The consumer group of a stream from `topic` to `output`: the same after a restart, another for another output.

    Args:
        topic: the name of the topic.
        output: the URL of the output; of kafka:// its topic counts, since the servers of one cluster can be written in
            many ways, of folder: its path.
    """
    if output.startswith("kafka://"):
        name = output.rpartition("/")[2]
    elif output.startswith("folder:"):
        name = str(Path(output.removeprefix("folder:")).absolute())
    else:
        name = output
    return f"torchbeam.{topic}.{re.sub(r'[^A-Za-z0-9._-]+', '-', name).strip('-')}"


@dataclass(frozen=True)
class KafkaSource:
    """A topic that messages are read from.

    Attributes:
        cluster: where it is.
        topic: its name.
        group: the consumer group that its offsets are committed for.
        begin: where a partition begins for which nothing was committed.
        exactly_once: whether outputs and offsets are committed in one transaction (`ExactlyOnce`).
    """

    cluster: Cluster
    topic: str
    group: str
    begin: Begin = "earliest"
    exactly_once: bool = False

    @property
    def name(self) -> str:
        """The topic."""
        return self.topic

    @property
    def delivery(self) -> type[ExactlyOnce] | None:
        """How outputs are delivered; None for the usual way."""
        return ExactlyOnce if self.exactly_once else None

    def check(self) -> None:
        """Asks the brokers; raises `UsageError` if they or the topic are not there, or refuse the user or the group."""
        self.cluster.check_topic(self.topic, "--input")
        asked = consumer(self.cluster, self.group)
        end = time.monotonic() + CHECK_SECONDS
        while True:
            try:
                asked.committed([client().TopicPartition(self.topic, 0)], timeout=CHECK_SECONDS)
                break
            except client().KafkaException as error:
                # The first group that a cluster sees waits until the topic of offsets is there.
                if not passes(error.args[0]) or time.monotonic() > end:
                    reason = f"this user may not read as group {self.group}, or there is no group: {reason_of(error)}"
                    raise UsageError(f"--input, topic {self.topic}: {reason}; see --group and --kafka_config") from None
        asked.close()

    def partitions(self) -> list[str]:
        """The numbers of the partitions there are now."""
        asked = _shared_consumer(self)
        found = self.cluster.until_answered(lambda: asked.list_topics(timeout=ASK_SECONDS), f"topic {self.topic}")
        if self.topic not in found.topics:
            raise StreamError(f"topic {self.topic} is no longer there")
        return [str(number) for number in sorted(found.topics[self.topic].partitions)]

    def start(self, partition: str) -> int:
        """The offset that the group has committed; the first or the last one (`begin`) if it has none.

        Where the messages at that offset are gone, because the topic keeps them for a limited time or was created again, it
        is the first one that there is, and the log says so.
        """
        asked, number = _shared_consumer(self), int(partition)
        at = self._fence(partition) if self.exactly_once else committed(self.cluster, asked, self.topic, number)
        first, end = self._ends(asked, number)
        if at is None and self.begin == "latest":
            # Committed at once: else a restart before the first message would pass over what came in between.
            self._commit(number, end)
            return end
        if at is not None and not first <= at <= end:
            log.warning(
                "topic %s, partition %d: the messages from offset %d on are gone; it has those from %d to %d, and reading "
                "begins at the first",
                *(self.topic, number, at, first, end - 1),
            )
            at = None
        return first if at is None else at

    def reader(self, partition: str, offset: int) -> Reader:
        """A reader from `offset` on; with `exactly_once` from the first message behind the last transaction."""
        return KafkaReader(
            self, int(partition), max(offset, self._fence(partition) or 0) if self.exactly_once else offset
        )

    def commit(self, messages: Messages) -> None:
        """Commits the offset behind the last message for the group."""
        self._commit(int(messages.partition), messages.offsets[-1] + 1)

    def ends(self, partition: int) -> tuple[int, int]:
        """The offset of the first message of a partition, and the one behind its last."""
        return self._ends(_shared_consumer(self), partition)

    def _ends(self, asked: Consumer, partition: int) -> tuple[int, int]:
        position = client().TopicPartition(self.topic, partition)
        return self.cluster.until_answered(
            lambda: asked.get_watermark_offsets(position, timeout=ASK_SECONDS),
            f"topic {self.topic}, partition {partition}",
        )

    def _fence(self, partition: str) -> int | None:
        return transactions(self.cluster, self.topic, self.group, int(partition)).open()

    def _commit(self, partition: int, offset: int) -> None:
        asked = _shared_consumer(self)

        def commit() -> None:
            done = asked.commit(offsets=[client().TopicPartition(self.topic, partition, offset)], asynchronous=False)
            for each in done or ():
                if each.error is not None:
                    raise client().KafkaException(each.error)

        self.cluster.until_answered(commit, f"group {self.group} cannot commit its offset in topic {self.topic}")


class KafkaReader:
    """Reads one partition.

    Args:
        source: the topic.
        partition: the number of the partition.
        offset: that of the first message, or the one before it.
    """

    def __init__(self, source: KafkaSource, partition: int, offset: int) -> None:
        self._source = source
        self._partition = partition
        self._next = offset
        self._outage = Outage(source.cluster)
        self._consumer = consumer(source.cluster, source.group, error_cb=self._outage.on_error)
        self._consumer.assign([client().TopicPartition(source.topic, partition, offset)])

    def read(self, max_messages: int, seconds: float) -> Messages | None:
        """Up to `max_messages`, as soon as there are so many or `seconds` are over; None if nothing came.

        While the brokers are away nothing comes, and the log says so.

        Raises:
            StreamError: if the topic is gone or the user may no longer read it.
        """
        found = self._consumer.consume(max_messages, seconds)
        errors = [error for message in found if (error := message.error()) is not None]
        if errors:
            found = [message for message in found if message.error() is None]
            if not found:
                self._recover(errors[0])
        if not found:
            return None
        self._outage.over()
        offsets = [message.offset() or 0 for message in found]
        self._next = offsets[-1] + 1
        return Messages(
            self._source.topic,
            str(self._partition),
            offsets,
            [message.key() for message in found],
            [message.value() for message in found],
            [_headers(message) for message in found],
            [max(message.timestamp()[1], 0) * 1000 for message in found],
        )

    def close(self) -> None:
        """Leaves the broker."""
        self._consumer.close()

    def _recover(self, error: KafkaError) -> None:
        """Goes on behind messages that are gone; raises `StreamError` for what does not pass."""
        codes, topic = client().KafkaError, self._source.topic
        if error.code() not in (codes._AUTO_OFFSET_RESET, codes.OFFSET_OUT_OF_RANGE):
            if error.retriable() or error.code() in (codes._TRANSPORT, codes._ALL_BROKERS_DOWN, codes._TIMED_OUT):
                self._outage.on_error(error)
                return
            raise StreamError(f"topic {topic}, partition {self._partition}: {error.str()}")
        first, end = self._source.ends(self._partition)
        if self._next >= first:
            raise StreamError(
                f"topic {topic}, partition {self._partition}: offset {self._next} is behind its end, {end}: the topic was "
                "created again; start the stream again"
            )
        log.warning(
            "topic %s, partition %d: the messages from offset %d to %d are gone before they were read: the topic keeps them "
            "for too short a time",
            *(topic, self._partition, self._next, first - 1),
        )
        self._next = first
        self._consumer.assign([client().TopicPartition(topic, self._partition, first)])


@dataclass(frozen=True)
class KafkaSink:
    """A topic that messages are written to.

    Attributes:
        cluster: where it is.
        topic: its name.
        option: the option that names it, for errors.
    """

    cluster: Cluster
    topic: str
    option: str = "--output"

    @property
    def name(self) -> str:
        """The topic."""
        return self.topic

    def check(self) -> None:
        """Asks the brokers; raises `UsageError` if they or the topic are not there, or refuse the user."""
        self.cluster.check_topic(self.topic, self.option)

    def writer(self) -> Writer:
        """A writer with a producer of its own."""
        return KafkaWriter(self)


@dataclass(frozen=True)
class ExactlyOnce(Ends):
    """The outputs of a chunk and the offset behind it are one transaction: readers of committed messages see each once.

    Attributes:
        source: the topic that is read; all outputs are topics in its cluster.
    """

    source: KafkaSource

    def check(self) -> None:
        """Asks each of them; raises `UsageError` if one is not in the cluster of the source."""
        self.source.check()
        mine = self.source.cluster.cluster_id()
        for sink in self.sinks:
            sink.check()
            if not isinstance(sink, KafkaSink) or sink.cluster.cluster_id() != mine:
                raise UsageError(
                    f"--delivery=exactly_once needs all outputs in the Kafka cluster of --input, and {sink.name} is not in it; "
                    "write a topic of that cluster, or leave --delivery out"
                )

    def open(self) -> InTransactions:
        """What delivers in a worker."""
        return InTransactions(self)


class InTransactions:
    """Delivers chunks, each in one transaction.

    Args:
        delivery: from where and where to.
    """

    def __init__(self, delivery: ExactlyOnce) -> None:
        self._source = delivery.source
        self._topics = [
            sink.name if sink else "" for sink in (delivery.predictions, delivery.dead_letters, delivery.accounts)
        ]

    def deliver(self, messages: Messages, outputs: Outputs) -> None:
        """Writes outputs and commits the offset behind `messages`; raises `StreamError` if another process took over."""
        written = zip(self._topics, (outputs.predictions, outputs.dead_letters, outputs.accounts), strict=True)
        source, partition = self._source, int(messages.partition)
        transactions(source.cluster, source.topic, source.group, partition).deliver(
            messages.offsets[-1] + 1, [(topic, some) for topic, some in written if topic]
        )

    def close(self) -> None:
        """Leaves the transactions open: the next chunk of the partition goes on with them."""


class KafkaWriter:
    """Writes to a topic; messages of one key go to one partition, the one that Java's client would choose.

    Args:
        sink: the topic.
    """

    def __init__(self, sink: KafkaSink) -> None:
        self._topic = sink.topic
        self._errors: list[Refusal] = []
        self._outage = Outage(sink.cluster)
        self._producer = producer(sink.cluster, self._errors, self._outage)

    def write(self, messages: Sequence[OutMessage]) -> None:
        """Takes messages on; raises `StreamError` if the broker refuses one."""
        try:
            send(self._producer, self._topic, messages, self._errors)
        except client().KafkaException as error:
            raise refused(error.args[0], self._topic) from None

    def flush(self) -> None:
        """Waits until the brokers have all, as long as it takes; raises `StreamError` if they refuse one."""
        while self._producer.flush(_FLUSH_SECONDS) and not self._errors:
            pass
        if self._errors:
            raise refused(*self._errors[0])
        self._outage.over()

    def close(self) -> None:
        """Leaves the broker. What was not flushed is dropped."""
        self._producer.purge()
        self._producer.flush(_FLUSH_SECONDS)


@cache
def _shared_consumer(source: KafkaSource) -> Consumer:
    """A client for questions and commits; it reads nothing, and all threads of this process share it."""
    return consumer(source.cluster, source.group)


def _headers(message: Message) -> Headers:
    try:
        headers = message.headers()
    except UnicodeDecodeError:  # of the name of a header, which the client cannot show
        log.warning(
            "topic %s: the message at offset %s has a header whose name is not UTF-8", message.topic(), message.offset()
        )
        return ()
    return tuple(cast("list[tuple[str, bytes | None]]", headers)) if headers else ()
