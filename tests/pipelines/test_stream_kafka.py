"""`stream` over a real Kafka broker: every message comes out, whatever it is, and whatever is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from child_processes import wait_until
from deadlines import WAIT_SECONDS
from kafka_brokers import PASSWORD, USER, Sent, TestBroker

from handlers import ModelDir
from pipelines.stream import main
from transforms.streams.kafka_transaction import HUNG_SECONDS

pytestmark = pytest.mark.slow(60)

NOON = 1_700_000_000_000  # ms since 1970
NET = """
import torch


class StreamNet(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def forward(self, x):
        return self.layer(x)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prediction is a + 2 b."""
    folder = tmp_path_factory.mktemp("stream")
    (folder / "stream_net.py").write_text(NET)
    sys.path.insert(0, str(folder))
    try:
        from stream_net import StreamNet
    finally:
        sys.path.remove(str(folder))
    net = StreamNet()
    net.load_state_dict({"layer.weight": torch.tensor([[1.0, 2.0]]), "layer.bias": torch.zeros(1)})
    inputs = [{"name": "x", "columns": ["a", "b"]}]
    code = [folder / "stream_net.py"]
    return ModelDir.save(net, folder / "model", name="sum", task="regression", inputs=inputs, code=code).path


class Topics:
    """The topics of a stream, and its arguments."""

    def __init__(self, kafka: TestBroker, model: Path, partitions: int = 1) -> None:
        self.input, self.output = kafka.topic(partitions, "numbers"), kafka.topic(partitions, "scored")
        self.dead, self.accounts = kafka.topic(name="dead"), kafka.topic(name="accounts")
        self.group = f"torchbeam.{self.input}.{self.output}"
        options = {"input": self.input, "output": self.output, "dead_letters": self.dead, "accounts": self.accounts}
        self.arguments = [f"--model={model}", *(f"--{name}={kafka.url(topic)}" for name, topic in options.items())]


def value(number: int) -> bytes:
    return json.dumps({"a": number, "b": number % 7}).encode()


def accounts(kafka: TestBroker, topics: Topics) -> dict[str, int]:
    """The sums of all chunks; of two with the same first message, that of the last."""
    chunks = {sent.headers[0][1]: json.loads(sent.value or b"") for sent in kafka.get(topics.accounts)}
    return {name: sum(chunk[name] for chunk in chunks.values()) for name in ("read", "scored", "dropped", "dead")}


def test_poisoned_messages(kafka: TestBroker, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    topics = Topics(kafka, model)
    poison: dict[bytes, bytes | None] = {
        b"no JSON": b"{a: 1}",
        b"wrong type": b'{"a": "one", "b": 2}',
        b"no object": b"[1, 2]",
        b"large": b'{"a": 1, "b": 2, "c": "' + b"x" * 10_000_000 + b'"}',
        b"empty": b"",
        b"tombstone": None,
        b"no UTF-8": b'{"a": 1, "b": 2, "c": "\xff\xc3\x28"}',
        b"missing": b'{"a": 1}',
        b"bytes": bytes(range(256)),
        b"\xff key": b"null",
    }
    sent = []
    for number, (key, bad) in enumerate(poison.items()):
        sent.append(Sent(b"good %d" % number, value(number), [("trace", b"\x00%d" % number)], NOON + number))
        sent.append(Sent(key, bad, [("trace", b"\xff"), ("torchbeam-error", b"of before")], NOON + number))
    kafka.put(topics.input, sent)

    assert main([*topics.arguments, f"--stop_after={len(sent)}"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "20 messages read, 10 scored, 0 dropped, 10 dead letters"
    dead = kafka.get(topics.dead)
    assert {each.key: each.value for each in dead} == poison
    for each in dead:
        offset = next(at for at, given in enumerate(sent) if given.key == each.key)
        (trace, trace_value), (id_, of), (error, reason) = each.headers
        assert (trace, trace_value, id_, error) == ("trace", b"\xff", "torchbeam-id", "torchbeam-error")
        assert of == f"{topics.input}/0/{offset}".encode()
        assert json.loads(reason or b"")["offset"] == offset
        assert each.time == sent[offset].time
    good = kafka.get(topics.output)
    assert [(each.key, each.time) for each in good] == [(each.key, each.time) for each in sent[::2]]
    for number, each in enumerate(good):
        row = json.loads(each.value or b"")
        assert (row["a"], row["b"], row["prediction"]) == (number, number % 7, number + 2 * (number % 7))
        assert row["message_id"] == f"{topics.input}/0/{2 * number}"
        assert each.headers == [("trace", b"\x00%d" % number), ("torchbeam-id", row["message_id"].encode())]
    assert accounts(kafka, topics) == {"read": 20, "scored": 10, "dropped": 0, "dead": 10}
    assert kafka.committed(topics.input, topics.group) == 20


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.stream", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        kill(process)


def kill(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
def test_killed_in_the_middle(
    kafka: TestBroker, model: Path, start: Callable[..., subprocess.Popen[str]], delivery: str
) -> None:
    """The whole command is killed, then the broker; each comes back and goes on."""
    topics = Topics(kafka, model, partitions=2)
    rows = 12_000
    arguments = [*topics.arguments, f"--delivery={delivery}", "--max_batch_rows=100"]

    def put(numbers: range) -> None:
        kafka.put(topics.input, [Sent(b"%d" % n, value(n) if n % 1000 else b"bad", [], NOON + n) for n in numbers])

    def delivered() -> int:
        return sum(max(kafka.committed(topics.input, topics.group, partition), 0) for partition in (0, 1))

    put(range(rows))
    process = start(*arguments)
    wait_until(lambda: delivered() > 500, process=process)
    kill(process)
    assert delivered() < rows
    process = start(*arguments)
    at = delivered()
    wait_until(lambda: delivered() > at + 500, process=process)
    kafka.kill()
    kafka.start()
    put(range(rows, rows + 500))
    # Each partition may hang so long, see there.
    wait_until(lambda: delivered() == rows + 500, WAIT_SECONDS + 2 * HUNG_SECONDS, process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == 130, err

    found = [*kafka.get(topics.output), *kafka.get(topics.dead)]
    by_id: dict[bytes, list[Sent]] = {}
    for sent in found:
        by_id.setdefault(dict(sent.headers)["torchbeam-id"] or b"", []).append(sent)
    ids = {
        f"{topics.input}/{sent.partition}/{sent.offset}".encode(): (sent.key, sent.value)
        for sent in kafka.get(topics.input)
    }
    assert by_id.keys() == ids.keys()
    assert len(ids) == rows + 500
    for id_, copies in by_id.items():
        key, given = ids[id_]
        assert len({(sent.key, sent.value) for sent in copies}) == 1
        assert copies[0].key == key
        if given == b"bad":
            assert copies[0].value == given
        else:
            row = json.loads(copies[0].value or b"")
            number = int(key or b"")
            assert (row["a"], row["prediction"]) == (number, number + 2 * (number % 7))
    dead = len(range(0, rows + 500, 1000))
    expected = {"read": rows + 500, "scored": rows + 500 - dead, "dropped": 0, "dead": dead}
    assert accounts(kafka, topics) == expected
    if delivery == "exactly_once":
        assert len(found) == len(ids)


def config(folder: Path, text: str) -> str:
    (folder / "client.properties").write_text(text)
    return f"--kafka_config={folder / 'client.properties'}"


def test_wrong_use(kafka: TestBroker, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each is one line and exit code 2, before anything is read."""
    topics = Topics(kafka, model)
    kafka.put(topics.input, [value(1)])
    sasl = "security.protocol=SASL_PLAINTEXT\nsasl.mechanism=PLAIN\nsasl.username={}\nsasl.password={}\n"
    at_sasl = [argument.replace(kafka.address, kafka.sasl_address) for argument in topics.arguments]
    for arguments, error in [
        (["--input=kafka://127.0.0.1:1/numbers"], "--input: Kafka at 127.0.0.1:1 cannot be reached: "),
        (
            [f"--input={kafka.url('numbers')}"],
            f"--input: Kafka at {kafka.address} has no topic numbers that this user may see",
        ),
        ([f"--output={kafka.url('no-such')}"], f"--output: Kafka at {kafka.address} has no topic no-such"),
        ([f"--accounts={kafka.url('no-such')}"], f"--accounts: Kafka at {kafka.address} has no topic no-such"),
        ([*at_sasl, config(tmp_path, sasl.format(USER, "cheshire-cat"))], "Invalid username or password"),
        (["--kafka_config=/none"], "--kafka_config=/none cannot be read"),
        (
            ["--input=kafka://alice:cheshire-cat@host/topic"],
            "--input: user and password belong into the file of --kafka_config",
        ),
        (
            ["--delivery=exactly_once", f"--accounts=folder:{tmp_path}"],
            "--delivery=exactly_once needs all outputs in the Kafka",
        ),
        (
            ["--delivery=exactly_once", f"--input=folder:{tmp_path}"],
            "--delivery=exactly_once needs a source with transactions",
        ),
        (["--from=end"], "--from"),
        (["--group=a/b"], "--group must be letters, digits"),
    ]:
        replaced = {argument.partition("=")[0] for argument in arguments}
        given = [*(each for each in topics.arguments if each.partition("=")[0] not in replaced), *arguments]
        assert main([*given, "--stop_after=1"]) == 2, arguments
        out, err = capsys.readouterr()
        assert error in err
        assert err.count("\n") == 1
        assert "cheshire-cat" not in err + out
    assert kafka.committed(topics.input, topics.group) < 0

    right = config(tmp_path, sasl.format(USER, PASSWORD))
    assert main([*at_sasl, right, "--stop_after=1"]) == 0
    out, err = capsys.readouterr()
    assert out == "1 messages read, 1 scored, 0 dropped, 0 dead letters\n"
    assert PASSWORD not in err
    assert [json.loads(sent.value or b"")["prediction"] for sent in kafka.get(topics.output)] == [3.0]
