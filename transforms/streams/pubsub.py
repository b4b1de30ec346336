"""Google Cloud Pub/Sub as a source and a sink of messages.

Messages are pulled (`Subscriber.Pull`, https://cloud.google.com/pubsub/docs/pull) and acknowledged when what became of
them is written. What a killed process had pulled is sent again when its lease ends.
"""

from __future__ import annotations

import base64
import logging
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any, TypeVar

from google.api_core.exceptions import AlreadyExists, DeadlineExceeded, GoogleAPIError, NotFound
from google.api_core.retry import Retry
from google.auth.exceptions import GoogleAuthError
from google.cloud import pubsub_v1  # type: ignore[attr-defined, unused-ignore]
from google.pubsub_v1.types import ReceivedMessage

from handlers.errors import StreamError, UsageError, one_line
from transforms.streams.endpoints import Settings
from transforms.streams.messages import Messages, OutMessage

_LOG = logging.getLogger(__name__)

DEFAULT_GROUP = "torchbeam"
LEASE_SECONDS = 60  # within it a micro-batch is scored and written; it is extended when the batch is taken
ANSWER_SECONDS = 10.0  # for every question but a pull
PULL_SECONDS = 1.0
PULL_MESSAGES = 1000  # a pull gives no more than this
ACK_MESSAGES = 2000  # a request may have 512 KiB; a receipt has about 200 bytes

ATTRIBUTE_BYTES = 1024  # of a value; https://cloud.google.com/pubsub/quotas#resource_limits
EVENT_TIME = "event_time"  # attribute: ISO 8601; without it the time of publication counts
KEY_BASE64 = "key_base64"  # attribute: a key that is not UTF-8, and so cannot be an ordering key

_RETRY = Retry(timeout=ANSWER_SECONDS)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

T = TypeVar("T")


def source(address: str, settings: Settings, flag: str) -> PubSubSource:
    """The source of `pubsub://PROJECT/subscriptions/NAME`, or of a topic, whose subscription is named by the group."""
    project, kind, name = _parts(address, flag, ("subscriptions", "topics"))
    if kind == "subscriptions":
        return PubSubSource(project, name)
    return PubSubSource(project, f"{settings.group or DEFAULT_GROUP}-{name}", name)


def sink(address: str, settings: Settings, flag: str, *, whole: bool) -> PubSubSink:
    """The sink of `pubsub://PROJECT/topics/NAME`; a message has all that it came with anyway."""
    del settings, whole
    project, _, name = _parts(address, flag, ("topics",))
    return PubSubSink(project, name)


def _parts(address: str, flag: str, kinds: Sequence[str]) -> tuple[str, str, str]:
    match = re.fullmatch(r"pubsub://([a-z0-9.:-]+)/([a-z]+)/([A-Za-z][A-Za-z0-9._~+%-]{2,254})", address)
    if match is None or match[2] not in kinds:
        forms = " or ".join(f"pubsub://PROJECT/{kind}/NAME" for kind in kinds)
        raise UsageError(f'{flag} "{address}" must be {forms}')
    return match[1], match[2], match[3]


@dataclass(frozen=True)
class PubSubSource:
    """Messages of a subscription.

    The key of a message is its ordering key; its headers are its attributes.

    Attributes:
        project: the project of the subscription.
        subscription: its name.
        topic: where the subscription does not exist, it is made for this topic, and kept.
        readers: how many readers pull at once, each as a partition of its own.
    """

    project: str
    subscription: str
    topic: str | None = None
    readers: int = 1

    @property
    def name(self) -> str:
        """The full name of the subscription."""
        return f"projects/{self.project}/subscriptions/{self.subscription}"

    def check(self) -> None:
        """Raises `UsageError` if there is no such subscription, or Pub/Sub refuses the user."""
        with _subscriber() as client:
            try:
                _asked(
                    self.name,
                    lambda: client.get_subscription(subscription=self.name, timeout=ANSWER_SECONDS, retry=_RETRY),
                )
            except NotFound:
                if self.topic is None:
                    raise UsageError(
                        f"there is no {self.name}; create it (gcloud pubsub subscriptions create), or give the topic"
                    ) from None
                self._create(client, f"projects/{self.project}/topics/{self.topic}")

    def _create(self, client: pubsub_v1.SubscriberClient, topic: str) -> None:
        def create() -> None:
            client.create_subscription(
                name=self.name, topic=topic, ack_deadline_seconds=LEASE_SECONDS, timeout=ANSWER_SECONDS, retry=_RETRY
            )

        try:
            _asked(self.name, create)
        except AlreadyExists:
            return  # another run was faster
        except NotFound:
            raise UsageError(f"there is no {topic}; create it (gcloud pubsub topics create)") from None
        _LOG.warning("created %s; it keeps messages until it is deleted", self.name)

    def partitions(self) -> list[str]:
        """A name for each reader."""
        return [str(index) for index in range(self.readers)]

    def start(self, partition: str) -> int:
        """0: Pub/Sub itself knows what is not acknowledged yet."""
        return 0

    def reader(self, partition: str, offset: int) -> PubSubReader:
        """A reader that counts its messages from `offset` on."""
        return PubSubReader(self.name, partition, offset)

    def commit(self, messages: Messages) -> None:
        """Acknowledges `messages`."""
        for start in range(0, len(messages.receipts), ACK_MESSAGES):
            receipts = list(messages.receipts[start : start + ACK_MESSAGES])
            _written(
                self.name,
                lambda receipts=receipts: self._client.acknowledge(  # type: ignore[misc]
                    subscription=self.name, ack_ids=receipts, timeout=ANSWER_SECONDS, retry=_RETRY
                ),
            )

    @cached_property
    def _client(self) -> pubsub_v1.SubscriberClient:
        return _subscriber()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_client"}


class PubSubReader:
    """Pulls messages of a subscription."""

    def __init__(self, subscription: str, partition: str, offset: int) -> None:
        self._subscription = subscription
        self._partition = partition
        self._offset = offset
        self._client = _subscriber()
        self._pulled = time.monotonic()
        self._more = False  # more messages wait than the last pull took

    def read(self, max_messages: int, seconds: float) -> Messages | None:
        """Up to `max_messages`; None if nothing came.

        A pull gives at once what there is. So messages gather at the server for `seconds`, unless more wait there than
        a pull takes. A pull that is given up may have messages on the way, which come again when their lease ends: it
        waits for longer than `seconds`, which is too short.
        """
        if not self._more:
            time.sleep(max(seconds - (time.monotonic() - self._pulled), 0))
        received: list[ReceivedMessage] = []
        self._more = True
        while self._more and len(received) < max_messages:
            asked = min(max_messages - len(received), PULL_MESSAGES)
            try:
                reply = self._client.pull(
                    subscription=self._subscription, max_messages=asked, timeout=PULL_SECONDS, retry=None
                )
            except DeadlineExceeded:
                self._more = False
            except GoogleAPIError as error:
                raise StreamError(f"{self._subscription}: {one_line(error)}") from None
            else:
                received.extend(reply.received_messages)
                self._more = len(reply.received_messages) == asked
        self._pulled = time.monotonic()
        return self._messages(received) if received else None

    def _messages(self, received: Sequence[ReceivedMessage]) -> Messages:
        receipts = [each.ack_id for each in received]
        for start in range(0, len(receipts), ACK_MESSAGES):
            _written(
                self._subscription,
                lambda start=start: self._client.modify_ack_deadline(  # type: ignore[misc]
                    subscription=self._subscription,
                    ack_ids=receipts[start : start + ACK_MESSAGES],
                    ack_deadline_seconds=LEASE_SECONDS,
                    timeout=ANSWER_SECONDS,
                    retry=_RETRY,
                ),
            )
        first, self._offset = self._offset, self._offset + len(received)
        messages = [each.message for each in received]
        return Messages(
            source=self._subscription,
            partition=self._partition,
            offsets=range(first, self._offset),
            keys=[_key(each) for each in messages],
            values=[each.data for each in messages],
            headers=[
                tuple(
                    (name, text.encode())
                    for name, text in sorted(each.attributes.items())
                    if name not in (EVENT_TIME, KEY_BASE64)
                )
                for each in messages
            ],
            times=[_time(each) for each in messages],
            receipts=receipts,
            ids=[f"{self._subscription}/{each.message_id}" for each in messages],
        )

    def close(self) -> None:
        """Leaves Pub/Sub."""
        self._client.close()


@dataclass(frozen=True)
class PubSubSink:
    """Publishes messages to a topic: the key as the ordering key, headers as attributes.

    Attributes:
        project: the project of the topic.
        topic: its name.
    """

    project: str
    topic: str

    @property
    def name(self) -> str:
        """The full name of the topic."""
        return f"projects/{self.project}/topics/{self.topic}"

    def check(self) -> None:
        """Raises `UsageError` if there is no such topic, or Pub/Sub refuses the user."""
        client = _client(pubsub_v1.PublisherClient)
        try:
            _asked(self.name, lambda: client.get_topic(topic=self.name, timeout=ANSWER_SECONDS, retry=_RETRY))
        except NotFound:
            raise UsageError(f"there is no {self.name}; create it (gcloud pubsub topics create)") from None
        finally:
            client.transport.close()

    def writer(self) -> PubSubWriter:
        """A writer."""
        return PubSubWriter(self.name)


class PubSubWriter:
    """Publishes to a topic, in batches of the client library."""

    def __init__(self, topic: str) -> None:
        self._topic = topic
        ordered = pubsub_v1.types.PublisherOptions(enable_message_ordering=True)
        self._client = _client(pubsub_v1.PublisherClient, publisher_options=ordered)
        self._futures: list[Future[str]] = []

    def write(self, messages: Sequence[OutMessage]) -> None:
        """Takes messages on."""
        for message in messages:
            attributes = {name: _text(value or b"") for name, value in message.headers}
            attributes[EVENT_TIME] = (_EPOCH + timedelta(microseconds=message.time)).isoformat()
            key = ""
            if message.key is not None:
                try:
                    key = message.key.decode()
                except UnicodeDecodeError:
                    attributes[KEY_BASE64] = base64.b64encode(message.key).decode()
            self._futures.append(
                self._client.publish(self._topic, message.value or b"", ordering_key=key, **attributes)
            )

    def flush(self) -> None:
        """Waits until all are published; raises `StreamError` if one is not."""
        futures, self._futures = self._futures, []
        for future in futures:
            _written(self._topic, future.result)

    def close(self) -> None:
        """Publishes what is left and leaves."""
        self._client.stop()


def _text(value: bytes) -> str:
    """The value of a header as that of an attribute, which is text, and cut where it is too long for one."""
    text = value.decode(errors="backslashreplace").encode()
    return text[:ATTRIBUTE_BYTES].decode(errors="ignore")


def _key(message: Any) -> bytes | None:
    if encoded := message.attributes.get(KEY_BASE64):
        return base64.b64decode(encoded)
    return message.ordering_key.encode() or None


def _time(message: Any) -> int:
    when = message.publish_time
    if given := message.attributes.get(EVENT_TIME):
        try:
            when = datetime.fromisoformat(given)
            when = when if when.tzinfo else when.replace(tzinfo=UTC)
        except ValueError:
            pass  # an attribute of the same name that means something else
    return int((when - _EPOCH) / timedelta(microseconds=1))


def _subscriber() -> pubsub_v1.SubscriberClient:
    return _client(pubsub_v1.SubscriberClient)


def _client(kind: Callable[..., Any], **options: Any) -> Any:
    try:
        return kind(**options)
    except GoogleAuthError as error:
        raise UsageError(
            f"Pub/Sub needs credentials of Google Cloud (gcloud auth application-default login): {one_line(error)}"
        ) from None


def _asked(what: str, call: Callable[[], T]) -> T:
    """The answer to a question before the run; raises `UsageError`, or `NotFound` and `AlreadyExists` as they are."""
    try:
        return call()
    except (NotFound, AlreadyExists):
        raise
    except (GoogleAPIError, GoogleAuthError) as error:
        raise UsageError(f"{what}: {one_line(error)}") from None


def _written(what: str, call: Callable[[], T]) -> T:
    """The answer to a call of a run; raises `StreamError`, after which the runner begins anew."""
    try:
        return call()
    except (GoogleAPIError, GoogleAuthError) as error:
        raise StreamError(f"{what}: {one_line(error)}") from None
