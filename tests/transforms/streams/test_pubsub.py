"""Pub/Sub as a source and a sink, over the wire against Google's own in-memory server."""

from __future__ import annotations

import itertools
import logging
import pickle
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from google.cloud import pubsub_v1
from pubsub_server import (
    MISSING,
    PROGRAM,
    PROJECT,
    create_subscription,
    create_topic,
    pubsub_server,
)

from handlers.errors import StreamError, UsageError
from transforms.streams.messages import Messages, OutMessage, Reader, Sink, Source, Writer
from transforms.streams.pubsub import PubSubReader, PubSubSink, PubSubSource

pytestmark = pytest.mark.skipif(not PROGRAM.exists(), reason=MISSING)

TIME = 1_700_000_000_123_456
_NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with pubsub_server() as address:
        yield address


@pytest.fixture
def topic(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A new topic with a subscription of the same name."""
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", server)
    name = f"topic-{next(_NUMBERS)}"
    create_topic(name)
    create_subscription(name, name)
    return name


def publish(topic: str, messages: list[OutMessage]) -> None:
    writer = PubSubSink(PROJECT, topic).writer()
    writer.write(messages)
    writer.flush()
    writer.close()


def read_all(reader: PubSubReader, max_messages: int = 8192) -> list[Messages]:
    found = []
    while (messages := reader.read(max_messages, 0.01)) is not None:
        found.append(messages)
    return found


def test_protocols(topic: str) -> None:
    source, sink = PubSubSource(PROJECT, topic), PubSubSink(PROJECT, topic)
    assert isinstance(source, Source)
    assert isinstance(sink, Sink)
    reader, writer = source.reader("0", 0), sink.writer()
    assert isinstance(reader, Reader)
    assert isinstance(writer, Writer)
    reader.close()
    writer.close()


def test_what_is_written_is_read(topic: str) -> None:
    sent = [
        OutMessage(b"a", b"one", (("empty", b""), ("kind", b"x")), TIME),
        OutMessage(None, b"\xff\x00", (), 0),
        OutMessage(b"\xfe", b"two", (("kind", b"y"),), TIME + 1),
        OutMessage(None, None, (("kind", b"tombstone"),), TIME + 2),
    ]
    publish(topic, sent)
    (read,) = read_all(PubSubSource(PROJECT, topic).reader("0", 7))
    got = {
        OutMessage(key, value, headers, when)
        for key, value, headers, when in zip(read.keys, read.values, read.headers, read.times, strict=True)
    }
    # Pub/Sub knows no null: a tombstone is an empty message.
    assert got == {each if each.value is not None else each._replace(value=b"") for each in sent}
    assert list(read.offsets) == [7, 8, 9, 10]
    assert read.partition == "0"
    ids = [read.id(index) for index in range(len(read))]
    assert len(set(ids)) == 4
    assert all(each.startswith(f"projects/{PROJECT}/subscriptions/{topic}/") for each in ids)


@pytest.mark.parametrize(
    ("attribute", "expected"),
    [
        ("2026-01-02T03:04:05.000006+00:00", datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC)),
        ("2026-01-02T03:04:05.000006", datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC)),
        ("yesterday", None),  # the time of publication
    ],
)
def test_event_time_of_others(topic: str, attribute: str, expected: datetime | None) -> None:
    before = datetime.now(UTC)
    pubsub_v1.PublisherClient().publish(f"projects/{PROJECT}/topics/{topic}", b"x", event_time=attribute).result()
    (read,) = read_all(PubSubSource(PROJECT, topic).reader("0", 0))
    when = datetime.fromtimestamp(read.times[0] / 1e6, UTC)
    assert abs((when - (expected or before)).total_seconds()) < (1e-5 if expected else 10)


def test_batches_by_size(topic: str) -> None:
    publish(topic, [OutMessage(None, str(index).encode(), (), index) for index in range(2500)])
    source = PubSubSource(PROJECT, topic)
    batches = read_all(source.reader("0", 0), 1200)
    assert [len(each) for each in batches][:2] == [1200, 1200]
    assert sorted(int(value) for each in batches for value in each.values if value) == list(range(2500))
    assert [offset for each in batches for offset in each.offsets] == list(range(2500))


def test_committed_is_gone_and_the_rest_comes_again(server: str, topic: str) -> None:
    # The lease of a reader is a minute; the server is asked to end it, as it does when a process is gone for so long.
    publish(topic, [OutMessage(None, str(index).encode(), (), index) for index in range(10)])
    source = PubSubSource(PROJECT, topic)
    (first,) = read_all(source.reader("0", 0))
    done = replace(
        first, **{name: getattr(first, name)[:5] for name in ("offsets", "keys", "values", "headers", "times")}
    )
    done = replace(done, ids=first.ids[:5], receipts=first.receipts[:5])
    pickle.loads(pickle.dumps(source)).commit(done)
    pubsub_v1.SubscriberClient().modify_ack_deadline(
        subscription=source.name, ack_ids=list(first.receipts[5:]), ack_deadline_seconds=0
    )
    (again,) = read_all(source.reader("0", 0))
    assert set(again.ids) == set(first.ids[5:])  # the same ids, by which a reader removes duplicates
    source.commit(again)
    assert read_all(source.reader("0", 0)) == []


def test_subscription_is_made_for_a_topic(topic: str, caplog: pytest.LogCaptureFixture) -> None:
    source = PubSubSource(PROJECT, "made", topic)
    with caplog.at_level(logging.WARNING):
        source.check()
        source.check()
    assert [record.message for record in caplog.records] == [
        f"created projects/{PROJECT}/subscriptions/made; it keeps messages until it is deleted"
    ]
    publish(topic, [OutMessage(None, b"x", (), 0)])
    (read,) = read_all(source.reader("0", 0))
    assert read.values == [b"x"]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (PubSubSource(PROJECT, "lost"), f"there is no projects/{PROJECT}/subscriptions/lost; create it"),
        (PubSubSource(PROJECT, "new", "lost"), f"there is no projects/{PROJECT}/topics/lost; create it"),
        (PubSubSink(PROJECT, "lost"), f"there is no projects/{PROJECT}/topics/lost; create it"),
    ],
)
def test_what_is_not_there(topic: str, asked: PubSubSource | PubSubSink, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        asked.check()


def test_topic_that_goes_away(topic: str) -> None:
    writer = PubSubSink(PROJECT, topic).writer()
    pubsub_v1.PublisherClient().delete_topic(topic=f"projects/{PROJECT}/topics/{topic}")
    writer.write([OutMessage(None, b"x", (), 0)])
    with pytest.raises(StreamError, match=f"projects/{PROJECT}/topics/{topic}"):
        writer.flush()


def test_subscription_that_goes_away(topic: str) -> None:
    source = PubSubSource(PROJECT, topic)
    reader = source.reader("0", 0)
    pubsub_v1.SubscriberClient().delete_subscription(subscription=source.name)
    with pytest.raises(StreamError, match=source.name):
        reader.read(10, 0.01)


def test_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PUBSUB_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere/key.json")
    with pytest.raises(UsageError, match="Pub/Sub needs credentials of Google Cloud"):
        PubSubSink(PROJECT, "x").check()
