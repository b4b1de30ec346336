"""Kafka as source and sink, on a real broker: what comes back is what went in, and wrong use is one line."""

from __future__ import annotations

import logging
import sys
import threading
import time
from pathlib import Path

import pytest
from deadlines import WAIT_SECONDS
from kafka_brokers import PASSWORD, USER, Sent, TestBroker

from handlers.errors import StreamError, UsageError
from handlers.redact import redact
from transforms.streams.endpoints import Settings, sink_of, source_of
from transforms.streams.kafka import KafkaSink, KafkaSource, default_group
from transforms.streams.kafka_cluster import Cluster
from transforms.streams.messages import Messages, OutMessage, Reader, Sink, Source, Writer

pytestmark = pytest.mark.slow(30)

NOON = 1_700_000_000_000  # ms since 1970


def source(kafka: TestBroker, topic: str, **fields: object) -> KafkaSource:
    return KafkaSource(Cluster(kafka.address), topic, f"group-of-{topic}", **fields)  # type: ignore[arg-type]


def of_url(url: str, group: str = "g", config: str | None = None) -> KafkaSource:
    made = source_of(url, Settings(group, config))
    assert isinstance(made, KafkaSource)
    return made


def to_url(url: str, flag: str = "--output", config: str | None = None) -> KafkaSink:
    made = sink_of(url, Settings(config=config), flag)
    assert isinstance(made, KafkaSink)
    return made


def read_all(of: KafkaSource, partition: str = "0", offset: int | None = None, least: int = 1) -> list[Messages]:
    """The micro-batches of a partition until `least` messages are there."""
    reader = of.reader(partition, of.start(partition) if offset is None else offset)
    found: list[Messages] = []
    end = time.monotonic() + WAIT_SECONDS
    while sum(map(len, found)) < least:
        assert time.monotonic() < end, found
        if (messages := reader.read(1000, 0.2)) is not None:
            found.append(messages)
    reader.close()
    return found


def test_messages_go_round(kafka: TestBroker) -> None:
    there, back = kafka.topic(), kafka.topic()
    sent = [
        Sent(b"k1", b'{"a": 1}', [("trace", b"\x00\xff"), ("trace", b"again"), ("none", None)], NOON, 0, 0),
        Sent(None, b"", [], NOON + 1, 0, 1),
        Sent(b"", None, [], NOON + 2, 0, 2),
        Sent(b"\xff\xfe", b"\xc3\x28", [("e", b"")], 1, 0, 3),
        Sent(b"big", bytes(range(256)) * 40_000, [], NOON + 4, 0, 4),
    ]
    kafka.put(there, sent)
    of, to = source(kafka, there), to_url(kafka.url(back))
    assert isinstance(of, Source)
    assert isinstance(to, Sink)
    of.check()
    to.check()
    writer = to.writer()
    assert isinstance(writer, Writer)
    for messages in read_all(of, least=5):
        rows = zip(messages.keys, messages.values, messages.headers, messages.times, strict=True)
        writer.write([OutMessage(*row) for row in rows])
        writer.flush()
    writer.close()
    assert kafka.get(back) == sent


def test_a_chunk_knows_where_it_is_from(kafka: TestBroker) -> None:
    topic = kafka.topic(partitions=2)
    kafka.put(topic, [b"a", b"b", b"c"], partition=1)
    of = source(kafka, topic)
    assert of.partitions() == ["0", "1"]
    reader = of.reader("1", 1)
    assert isinstance(reader, Reader)
    while (messages := reader.read(1, 5.0)) is None:
        pass
    assert (messages.source, messages.partition, list(messages.offsets), list(messages.values)) == (
        topic,
        "1",
        [1],
        [b"b"],
    )
    assert messages.id(0) == f"{topic}/1/1"
    while (messages := reader.read(10, 0.5)) is None:
        pass
    assert list(messages.values) == [b"c"]
    assert reader.read(10, 0.01) is None
    reader.close()


def test_a_restart_begins_behind_what_was_committed(kafka: TestBroker) -> None:
    topic = kafka.topic()
    kafka.put(topic, [b"%d" % number for number in range(10)])
    of = source(kafka, topic)
    assert of.start("0") == 0
    (messages,) = read_all(of, least=10)
    first = Messages(*(topic, "0", messages.offsets[:4]), *([[None] * 4] * 2), [()] * 4, [0] * 4)
    of.commit(first)
    assert kafka.committed(topic, of.group) == 4
    again = source(kafka, topic)
    assert again.start("0") == 4
    assert [value for each in read_all(again, least=6) for value in each.values] == [
        b"%d" % number for number in range(4, 10)
    ]
    assert of_url(kafka.url(topic), "another-group").start("0") == 0


def test_latest_stays_where_it_first_began(kafka: TestBroker) -> None:
    topic = kafka.topic()
    kafka.put(topic, [b"old"] * 3)
    assert source(kafka, topic, begin="latest").start("0") == 3
    kafka.put(topic, [b"between"])
    assert source(kafka, topic, begin="latest").start("0") == 3


def test_an_offset_whose_messages_are_gone(kafka: TestBroker, caplog: pytest.LogCaptureFixture) -> None:
    topic = kafka.topic()
    kafka.put(topic, [b"%d" % number for number in range(8)])
    of = source(kafka, topic)
    kafka.delete_before(topic, 5)
    assert of.start("0") == 5  # nothing was committed
    with caplog.at_level(logging.WARNING):
        found = read_all(of, offset=2, least=3)
        of.commit(Messages(topic, "0", [2], [None], [None], [()], [0]))
        assert of.start("0") == 5
    assert [value for each in found for value in each.values] == [b"5", b"6", b"7"]
    assert f"topic {topic}, partition 0: the messages from offset 2 to 4 are gone before they were read" in caplog.text
    assert (
        f"topic {topic}, partition 0: the messages from offset 3 on are gone; it has those from 5 to 7" in caplog.text
    )
    # A topic that was created again has fewer messages than were committed.
    with pytest.raises(
        StreamError, match=rf"topic {topic}, partition 0: offset 20 is behind its end, 8: the topic was crea"
    ):
        read_all(of, offset=20)


def test_keys_go_where_java_puts_them(kafka: TestBroker) -> None:
    """Of the murmur2 hashes in the tests of Kafka's own clients: "21" is -973932308, "foobar" is -790332482."""
    topic = kafka.topic(partitions=7)
    writer = to_url(kafka.url(topic)).writer()
    writer.write([OutMessage(key, b"v", (), NOON * 1000) for key in (b"21", b"foobar", b"21")])
    writer.flush()
    writer.close()
    expected = sorted((hash_ & 0x7FFFFFFF) % 7 for hash_ in (-973932308, -790332482, -973932308))
    assert [sent.partition for sent in kafka.get(topic)] == expected


def test_a_message_that_the_topic_does_not_take(kafka: TestBroker) -> None:
    topic = kafka.topic(**{"max.message.bytes": "1000"})
    writer = to_url(kafka.url(topic)).writer()
    writer.write([OutMessage(None, b"x" * 2000, (), NOON)])
    with pytest.raises(
        StreamError, match=rf"^topic {topic} does not take a message of this size; give it the max.message"
    ):
        writer.flush()
    writer.close()


def test_the_broker_goes_away_and_comes_back(kafka: TestBroker, caplog: pytest.LogCaptureFixture) -> None:
    there, back = kafka.topic(), kafka.topic()
    kafka.put(there, [b"1"])
    of, to = source(kafka, there), to_url(kafka.url(back)).writer()
    reader = of.reader("0", 0)
    while (first := reader.read(10, 1.0)) is None:
        pass
    with caplog.at_level(logging.WARNING):
        kafka.kill()
        to.write([OutMessage(None, b"a", (), NOON * 1000)])
        done = threading.Thread(target=lambda: (to.flush(), of.commit(first)))
        done.start()
        while "waiting, nothing is lost" not in caplog.text:
            assert reader.read(10, 0.1) is None
        assert done.is_alive()
        kafka.start()
        done.join(WAIT_SECONDS)
        kafka.put(there, [b"2"])
        while (second := reader.read(10, 1.0)) is None:
            pass
    assert list(second.values) == [b"2"]
    assert kafka.committed(there, of.group) == 1
    assert [sent.value for sent in kafka.get(back)] == [b"a"]
    assert f"Kafka at {kafka.address} answers again" in caplog.text
    reader.close()
    to.close()


def test_wrong_urls() -> None:
    for url, error in {
        "kafka://host:9092": "--input=kafka://host:9092: nothing is not the name of a topic",
        "kafka:///topic": "--input=kafka:///topic is not of the form kafka://HOST:9092",
        "kafka://host:0/topic": "is not of the form",
        "kafka://host:port/topic": "is not of the form",
        "kafka://a,,b/topic": "is not of the form",
        "kafka://host/to/pic": "to/pic is not the name of a topic",
        "kafka://host/..": r"\.\. is not the name of a topic",
        "kafka://alice:wonderland@host/topic": "--input: user and password belong into the file of --kafka_config",
    }.items():
        with pytest.raises(UsageError, match=error) as raised:
            of_url(url, "group")
        assert "wonderland" not in str(raised.value)
    both = of_url("kafka://one,[::1]:9093,two:1/a.b_c-d", "g")
    assert (both.cluster.servers, both.topic) == ("one:9092,[::1]:9093,two:1", "a.b_c-d")


def test_the_group_is_that_of_topic_and_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert (
        default_group("in", "kafka://a:9092,b:9092/out")
        == default_group("in", "kafka://b:9092/out")
        == "torchbeam.in.out"
    )
    assert default_group("in", "folder:out") == default_group("in", f"folder:{tmp_path}/out")
    assert default_group("in", "folder:out") != default_group("in", "folder:out2")


def test_nothing_answers() -> None:
    started = time.monotonic()
    with pytest.raises(UsageError, match=r"^--input: Kafka at 127\.0\.0\.1:1 cannot be reached: .*Connection refused$"):
        of_url("kafka://127.0.0.1:1/topic", "group").check()
    with pytest.raises(
        UsageError, match=r"^--output: Kafka at no-such-host\.invalid:9092 cannot be reached: .*resolve"
    ):
        to_url("kafka://no-such-host.invalid/topic").check()
    assert time.monotonic() - started < WAIT_SECONDS


def test_no_such_topic_and_it_is_not_made(kafka: TestBroker) -> None:
    topic = kafka.topic(name="transactions")
    wrong = topic.replace("transactions", "transaction")
    for check in (
        of_url(kafka.url(wrong), "g").check,
        to_url(kafka.url(wrong), "--dead_letters").check,
    ):
        with pytest.raises(UsageError) as raised:
            check()
        option = "--dead_letters" if "dead" in str(raised.value) else "--input"
        assert str(raised.value).startswith(
            f"{option}: Kafka at {kafka.address} has no topic {wrong} that this user may see; "
        )
        assert f"these look like it: {topic}" in str(raised.value)
    assert wrong not in kafka.topics()


def config(folder: Path, **options: str) -> str:
    file = folder / "client.properties"
    lines = "".join(f"{name.replace('_', '.')} = {value}\n" for name, value in options.items())
    file.write_text(f"# for tests\n! as Java has it\n\n{lines}")
    return str(file)


SASL = {"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "PLAIN", "sasl_username": USER}


def test_passwords_and_tls(kafka: TestBroker, tmp_path: Path) -> None:
    topic = kafka.topic()
    kafka.put(topic, [b"1"])
    right = config(tmp_path, **SASL, sasl_password=PASSWORD)
    of = of_url(f"kafka://{kafka.sasl_address}/{topic}", "g-sasl", right)
    of.check()
    assert [list(each.values) for each in read_all(of)] == [[b"1"]]
    assert redact(f"it is {PASSWORD}") == "it is ***"  # known, once the file was read
    assert PASSWORD not in repr(of)

    tls = SASL | {"security_protocol": "SASL_SSL", "sasl_password": PASSWORD, "ssl_ca_location": str(kafka.authority)}
    sink = to_url(f"kafka://{kafka.tls_address}/{topic}", config=config(tmp_path, **tls))
    sink.check()
    writer = sink.writer()
    writer.write([OutMessage(None, b"2", (), NOON * 1000)])
    writer.flush()
    writer.close()
    assert [sent.value for sent in kafka.get(topic)] == [b"1", b"2"]


@pytest.mark.parametrize(
    ("listener", "options", "error"),
    [
        (
            "sasl",
            SASL | {"sasl_password": "cheshire-cat"},
            "refuses the user: .*Invalid username or password.*; see --kafka_con",
        ),
        ("sasl", {}, "cannot be reached: .*; does it want TLS or a password"),
        (
            "tls",
            SASL | {"security_protocol": "SASL_SSL", "sasl_password": "cheshire-cat"},
            "no TLS connection to .*certificate",
        ),
        ("plain", {"security_protocol": "SSL"}, "cannot be reached: .*; is it a listener without TLS"),
    ],
)
def test_refused(kafka: TestBroker, tmp_path: Path, listener: str, options: dict[str, str], error: str) -> None:
    address = {"sasl": kafka.sasl_address, "tls": kafka.tls_address, "plain": kafka.address}[listener]
    sink = to_url(f"kafka://{address}/topic", config=config(tmp_path, **options))
    with pytest.raises(UsageError, match=f"^--output: .*{error}") as raised:
        sink.check()
    assert "\n" not in str(raised.value)
    assert "cheshire-cat" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("sasl.password secret-cat", "line 1: not of the form name=value$"),
        ("a=b\nSecret-cat=1", "line 2: not of the form name=value$"),
        ("group.id=g", "line 1: group.id cannot be set here; write --group$"),
        ("acks=1", "line 1: acks cannot be set here; it is set by this command$"),
        ("plugin.library.paths=x.so", "line 1: plugin.library.paths cannot be set here; it loads code$"),
        (
            "bootstrap.servers=other:1",
            "line 1: bootstrap.servers is not 127.0.0.1:1, as the URL says; remove the line$",
        ),
        ("sasl.jaas.config=Login username=a password=secret-cat", "write sasl.username and sasl.password$"),
        (
            "no.such.option=secret-cat",
            "the client of Kafka refuses the option no.such.option; there is no such option, or ",
        ),
        ("security.protocol=secret-cat", "the client of Kafka refuses the option security.protocol; "),
        ("ssl.key.pem=secret-cat\nsecurity.protocol=SSL", "the client of Kafka refuses "),
    ],
)
def test_wrong_config(tmp_path: Path, text: str, error: str) -> None:
    (tmp_path / "c.properties").write_text(text)
    file = str(tmp_path / "c.properties")
    with pytest.raises(UsageError, match=error) as raised:
        to_url("kafka://127.0.0.1:1/topic", config=file).check()
    assert f"--kafka_config={file}" in str(raised.value)
    assert "ecret-cat" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_no_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    with pytest.raises(UsageError, match=r"^kafka:// needs confluent-kafka; pip install 'torchbeam\[stream\]'$"):
        to_url("kafka://127.0.0.1:1/topic").check()


def test_no_config_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^--kafka_config=.*/none cannot be read: "):
        to_url("kafka://127.0.0.1:1/topic", config=str(tmp_path / "none")).check()
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=r"^--kafka_config=.*/binary is not UTF-8 text$"):
        to_url("kafka://127.0.0.1:1/topic", config=str(tmp_path / "binary")).check()
