"""What reads from Kafka and writes to it: clients of `confluent_kafka` with the options that the delivery depends on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from handlers.errors import StreamError
from transforms.streams.kafka_cluster import Cluster, Outage, client, reason_of
from transforms.streams.messages import OutMessage

if TYPE_CHECKING:
    from confluent_kafka import Consumer, KafkaError, Message, Producer

ASK_SECONDS = 10.0
_QUEUE_SECONDS = 1.0
_AHEAD_KB = 32 << 10  # that a client reads ahead in its partition
# With "rebootstrap" a commit of offsets waits for ever once the group's coordinator was away (librdkafka issue 5511).
IN_TRANSACTIONS = {"metadata_recovery_strategy": "none"}
_LARGEST_MESSAGE = 1_000_000_000  # that the client allows


class Refusal(NamedTuple):
    """A message that the brokers have refused: why, and the topic that it was for."""

    error: KafkaError
    topic: str


def consumer(cluster: Cluster, group: str, **functions: Any) -> Consumer:
    """A client that reads what is committed, and commits nothing by itself.

    Args:
        cluster: where it reads.
        group: the group that it commits for.
        functions: `error_cb`, if errors are to be seen.
    """
    made: Consumer = cluster.connect(
        client().Consumer,
        group_id=group,
        enable_auto_commit=False,
        enable_auto_offset_store=False,
        auto_offset_reset="error",
        isolation_level="read_committed",
        queued_max_messages_kbytes=_AHEAD_KB,
        fetch_queue_backoff_ms=20,
        **functions,
    )
    return made


def committed(cluster: Cluster, asked: Consumer, topic: str, partition: int) -> int | None:
    """The offset that the group of `asked` has committed for a partition; None if it has none."""
    found = cluster.until_answered(
        lambda: asked.committed([client().TopicPartition(topic, partition)], timeout=ASK_SECONDS),
        f"the committed offset of topic {topic}, partition {partition}",
    )[0]
    return found.offset if found.offset >= 0 else None


def producer(cluster: Cluster, errors: list[Refusal], outage: Outage, transactional_id: str | None = None) -> Producer:
    """A client whose messages come once and in order to every partition, with the partitions of Java's client.

    Args:
        cluster: where it writes.
        errors: gets the messages that the brokers refuse.
        outage: is told while the brokers are away; until they are back, messages wait.
        transactional_id: the name of its transactions, if it has any.
    """

    def delivered(error: KafkaError | None, message: Message) -> None:
        if error is not None:
            errors.append(Refusal(error, message.topic() or ""))

    made: Producer = cluster.connect(
        client().Producer,
        enable_idempotence=True,
        acks="all",
        partitioner="murmur2_random",
        # The broker says what is too large, by the configuration of the topic.
        message_max_bytes=_LARGEST_MESSAGE,
        allow_auto_create_topics=False,
        delivery_report_only_error=True,
        error_cb=outage.on_error,
        on_delivery=delivered,
        # A message waits for the brokers as long as it takes; in a transaction, as long as that lasts.
        **(
            {"transactional_id": transactional_id, **IN_TRANSACTIONS} if transactional_id else {"message_timeout_ms": 0}
        ),
    )
    return made


def send(to: Producer, topic: str, messages: Sequence[OutMessage], errors: list[Refusal]) -> None:
    """Hands messages to a producer with these `errors`; raises `KafkaException` if one was refused."""
    for message in messages:
        # 0 would be the time of writing.
        time_ms = max(message.time // 1000, 1)
        while True:
            try:
                to.produce(topic, message.value, message.key, headers=list(message.headers), timestamp=time_ms)
                break
            except BufferError:  # its queue is full
                to.poll(_QUEUE_SECONDS)
                raise_first(errors)
    to.poll(0)
    raise_first(errors)


def raise_first(errors: list[Refusal]) -> None:
    """Raises `KafkaException` for the first of the errors, if there is one."""
    if errors:
        raise client().KafkaException(errors[0].error)


def refused(error: KafkaError, topic: str) -> StreamError:
    """The error of a message that the brokers have refused."""
    if error.code() == client().KafkaError.MSG_SIZE_TOO_LARGE:
        return StreamError(
            f"topic {topic} does not take a message of this size; give it the max.message.bytes of the input topic "
            "(kafka-configs.sh --alter) and start again: nothing is lost"
        )
    return StreamError(f"topic {topic} does not take a message: {reason_of(error)}")
