"""The command `stream` from Pub/Sub to Pub/Sub, over the wire against Google's own in-memory server."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from stream_runs import check, save_linear, value

sys.path.append(str(Path(__file__).parents[1] / "transforms" / "streams"))
from pubsub_server import MISSING, PROGRAM, PROJECT, create_subscription, create_topic, pubsub_server

from pipelines.stream import main
from transforms.streams.messages import OutMessage
from transforms.streams.pubsub import PubSubSink, PubSubSource

pytestmark = [pytest.mark.skipif(not PROGRAM.exists(), reason=MISSING), pytest.mark.slow(10)]

POISON = [b"no json", b"", b"\xff\xfe", b'{"a": "x", "b": 1}', b"[1, 2]", b'{"a": null, "b": 1}']


@pytest.fixture(autouse=True)
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with pubsub_server() as address:
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", address)
        for topic in ("messages", "out", "dead", "accounts"):
            create_topic(topic)
            if topic != "messages":
                create_subscription(topic, topic)
        yield


def arguments(tmp_path: Path, source: str, *more: str) -> list[str]:
    topics = f"pubsub://{PROJECT}/topics"
    return [
        *(f"--input=pubsub://{PROJECT}/{source}", f"--output={topics}/out", f"--dead_letters={topics}/dead"),
        *(f"--accounts={topics}/accounts", f"--model={tmp_path / 'model'}", *more),
        f"--schema={tmp_path / 'model' / 'schema.json'}",
    ]


def all_of(subscription: str) -> list[OutMessage]:
    reader = PubSubSource(PROJECT, subscription).reader("0", 0)
    found: list[OutMessage] = []
    while (read := reader.read(8192, 0.01)) is not None:
        found += itertools.starmap(OutMessage, zip(read.keys, read.values, read.headers, read.times, strict=True))
    reader.close()
    return found


def publish(values: list[bytes]) -> None:
    writer = PubSubSink(PROJECT, "messages").writer()
    writer.write(
        [OutMessage(f"k{i % 3}".encode(), each, (("n", str(i).encode()),), 1000 + i) for i, each in enumerate(values)]
    )
    writer.flush()
    writer.close()


def test_every_message_comes_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = save_linear(tmp_path / "model")
    create_subscription("messages", "sub")
    publish([*(value(row) for row in range(2000)), *POISON])
    assert main(arguments(tmp_path, "subscriptions/sub", "--stop_after=2006")) == 0
    assert capsys.readouterr().out.splitlines()[0] == "2,006 messages read, 2,000 scored, 0 dropped, 6 dead letters"
    predictions, dead = all_of("out"), all_of("dead")
    check([json.loads(each.value) for each in predictions if each.value], net, 2000)
    for each in predictions:
        headers, row = dict(each.headers), json.loads(each.value or b"")["id"]
        assert (each.key, each.time, headers["n"]) == (f"k{row % 3}".encode(), 1000 + row, str(row).encode())
        assert headers["torchbeam-id"].decode() == json.loads(each.value or b"")["message_id"]
    assert sorted(each.value or b"" for each in dead) == sorted(POISON)
    for each in dead:
        error = json.loads(dict(each.headers)["torchbeam-error"] or b"")
        assert error["message"]
    sums = [json.loads(each.value or b"") for each in all_of("accounts")]
    assert {name: sum(each[name] for each in sums) for name in ("read", "scored", "dropped", "dead")} == {
        "read": 2006,
        "scored": 2000,
        "dropped": 0,
        "dead": 6,
    }
    # All is acknowledged: nothing comes again.
    assert all_of("sub") == []


def test_topic_as_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = save_linear(tmp_path / "model")
    create_subscription("messages", "team-messages")  # the name that a run of the group `team` gives it
    publish([value(row) for row in range(10)])
    assert main(arguments(tmp_path, "topics/messages", "--group=team", "--stop_after=10")) == 0
    check([json.loads(each.value) for each in all_of("out") if each.value], net, 10)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("subscriptions/lost", f"there is no projects/{PROJECT}/subscriptions/lost; create it"),
        ("topics/lost", f"there is no projects/{PROJECT}/topics/lost; create it"),
        ("queues/messages", "must be pubsub://PROJECT/subscriptions/NAME or pubsub://PROJECT/topics/NAME"),
    ],
)
def test_wrong_input(tmp_path: Path, source: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    save_linear(tmp_path / "model")
    assert main(arguments(tmp_path, source)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
