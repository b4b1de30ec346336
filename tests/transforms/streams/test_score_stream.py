"""`ScoreStream` in real pipelines: each message comes out once, while the pipeline runs, with the answers of a plain model."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
import torch
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.testing.util import assert_that
from deadlines import WAIT_SECONDS
from stream_messages import put, records

from handlers import ModelDir
from handlers.errors import StreamError, UsageError
from transforms.streams import read
from transforms.streams.accounts import Accounts, Sums
from transforms.streams.folder import FolderSource
from transforms.streams.messages import Messages, Reader
from transforms.streams.read import MicroBatches
from transforms.streams.runs import end_run, run_of
from transforms.streams.score_stream import ScoreStream
from transforms.streams.settle import MessageFormat


class Sum(torch.nn.Module):
    """a + b of x of (rows, 2); raises where a is 13."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(weight))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if (x[:, 0] == 13).any():
            raise RuntimeError("cannot take 13")
        return self.weight * x.sum(1, keepdim=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelDir:
    folder = tmp_path_factory.mktemp("sum") / "model"
    return ModelDir.save(Sum(), folder, task="regression", inputs=[{"name": "x", "columns": ["a", "b"]}])


def wait_until(condition: Callable[[], bool], thread: threading.Thread) -> None:
    end = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert thread.is_alive()
        assert time.monotonic() < end
        time.sleep(0.01)


def stream(tmp_path: Path, model: ModelDir, source: Any = None, **fields: Any) -> ScoreStream:
    made: dict[str, Any] = {"accounts": f"folder:{tmp_path / 'accounts'}", "batches": MicroBatches(100, 0.01), **fields}
    source = f"folder:{tmp_path / 'in'}" if source is None else source
    return ScoreStream(source, model, f"folder:{tmp_path / 'out'}", f"folder:{tmp_path / 'dead'}", **made)


def run(transform: ScoreStream, check: Callable[[Any], Any] | None = None) -> None:
    try:
        with beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([])) as pipeline:
            accounts = pipeline | transform
            if check is not None:
                assert_that(accounts, check)
    finally:
        end_run(transform.run_id)


POISON: dict[int, tuple[bytes, str]] = {
    5: (b"no json", "decode/JSONDecodeError"),
    17: (b'{"a":"x"}', "decode/ValueError"),
    30: (b"\xff\xfe", "decode/JSONDecodeError"),
    31: (b"x" * 5000, "decode/TooLarge"),
    64: (b'{"a":13,"b":0}', "forward/RuntimeError"),
    99: (b'{"b":1}', "encode/NullValue"),
    100: (b'{"a":1e39,"b":0}', "encode/NotFinite"),
}


def lines(count: int) -> list[bytes]:
    return [
        POISON[index][0] if index in POISON else json.dumps({"a": index + 0.5, "b": 2 * index, "id": index}).encode()
        for index in range(count)
    ]


def test_every_message_comes_out_once(tmp_path: Path, model: ModelDir) -> None:
    put(tmp_path / "in", "one.jsonl", lines(150))
    put(tmp_path / "in", "two.jsonl", lines(50))
    form = MessageFormat(max_bytes=4096)
    counted: list[Accounts] = []

    def check(accounts: list[Accounts]) -> None:
        counted.extend(accounts)
        total = sum((each.sums for each in accounts), Sums())
        assert total == Sums(200, 200 - 11, 0, 11), total

    run(stream(tmp_path, model, stop_after=200, form=form), check)
    predictions = records(tmp_path / "out")
    wanted = [index for count in (150, 50) for index in range(count) if index not in POISON]
    assert [row["prediction"] for row in predictions] == [index * 3 + 0.5 for index in wanted]
    assert [row["a"] for row in predictions] == [index + 0.5 for index in wanted]
    assert {row["model_version"] for row in predictions} == {model.version}
    assert "id" not in predictions[0]  # no input of the model; a schema file would name it
    assert len({row["message_id"] for row in predictions}) == len(predictions)
    dead = records(tmp_path / "dead")
    assert [f"{row['error']['stage']}/{row['error']['type']}" for row in dead] == [
        POISON[index][1] for count in (150, 50) for index in range(count) if index in POISON
    ]
    values = [row["value"].encode() if "value" in row else None for row in dead]
    assert [value for value in values if value is not None] == [
        POISON[index][0] for count in (150, 50) for index in range(count) if index in POISON and index != 30
    ]
    assert [row["value_base64"] for row in dead if "value_base64" in row] == ["//4=", "//4="]
    offsets = {int(row["message_id"].rsplit("/", 1)[1]) for row in [*predictions, *dead]}
    log = b"\n".join([*lines(150), b"", *lines(50)])  # the files one behind the other, apart by one byte
    starts = {0} | {index + 1 for index, byte in enumerate(log) if byte == 10}
    assert offsets == starts - {len(b"\n".join(lines(150))) + 1}
    found = records(tmp_path / "accounts")
    assert [each["from_offset"] for each in found] == sorted(each["from_offset"] for each in found)
    assert sum(each["read"] for each in found) == 200
    for each in found:
        assert each["read"] == each["scored"] + each["dropped"] + each["dead"]
        assert sum(window["read"] for window in each["windows"]) == each["read"]


def test_outputs_appear_while_it_runs_and_a_stop_ends_it(tmp_path: Path, model: ModelDir) -> None:
    put(tmp_path / "in", "one.jsonl", [{"a": 1, "b": 2}])
    transform = stream(tmp_path, model, run_id="live")
    errors: list[BaseException] = []

    def go() -> None:
        try:
            run(transform)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=go)
    thread.start()
    try:
        wait_until(lambda: len(records(tmp_path / "out")) == 1, thread)
        put(tmp_path / "in", "two.jsonl", [{"a": 2, "b": 2}, b"bad"])
        wait_until(lambda: len(records(tmp_path / "out")) == 2 and len(records(tmp_path / "dead")) == 1, thread)
    finally:
        run_of("live").stop()
        thread.join(WAIT_SECONDS)
    assert not thread.is_alive()
    assert not errors
    assert [row["prediction"] for row in records(tmp_path / "out")] == [3, 4]


@dataclass(frozen=True)
class Folders:
    """A source of several partitions, each a folder."""

    path: str

    @property
    def name(self) -> str:
        return self.path

    def _of(self, partition: str) -> FolderSource:
        return FolderSource(str(Path(self.path) / partition))

    def check(self) -> None:
        for partition in self.partitions():
            self._of(partition).check()

    def partitions(self) -> list[str]:
        return sorted(each.name for each in Path(self.path).iterdir())

    def start(self, partition: str) -> int:
        return self._of(partition).start("0")

    def reader(self, partition: str, offset: int) -> Reader:
        return _Renamed(self, partition, self._of(partition).reader("0", offset))

    def commit(self, messages: Messages) -> None:
        self._of(messages.partition).commit(messages)


@dataclass
class _Renamed:
    source: Folders
    partition: str
    inner: Reader

    def read(self, max_messages: int, seconds: float) -> Messages | None:
        found = self.inner.read(max_messages, seconds)
        return found and Messages(**{**vars(found), "source": self.source.name, "partition": self.partition})

    def close(self) -> None:
        self.inner.close()


@pytest.mark.parametrize("in_turn", [True, False])
def test_partitions_take_turns(tmp_path: Path, model: ModelDir, in_turn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "HOLD_SECONDS", 0.0)
    for number in range(3):
        put(tmp_path / "in" / f"p{number}", "a.jsonl", [{"a": number, "b": each} for each in range(250)])
    # The stop after 750 can come only if each partition lets the others have their turn, or ends when they do.
    run(stream(tmp_path, model, Folders(str(tmp_path / "in")), stop_after=750, in_turn=in_turn))
    predictions = records(tmp_path / "out")
    by_partition = {
        f"p{number}": [row["prediction"] for row in predictions if f"/p{number}/" in row["message_id"]]
        for number in range(3)
    }
    assert by_partition == {f"p{number}": [number + each for each in range(250)] for number in range(3)}


def test_a_second_run_goes_on_and_headers_of_the_first_are_replaced(tmp_path: Path, model: ModelDir) -> None:
    put(tmp_path / "in", "one.jsonl", [{"a": each, "b": 0} for each in range(10)])
    run(stream(tmp_path, model, stop_after=4))
    run(stream(tmp_path, model, stop_after=6))
    assert [row["prediction"] for row in records(tmp_path / "out")] == list(range(10))
    assert sum(each["read"] for each in records(tmp_path / "accounts")) == 10


class _Unwritable:
    """A sink whose broker is gone when it is asked to keep what it was given."""

    name = "gone"

    def check(self) -> None:
        pass

    def writer(self) -> _Unwritable:
        return self

    def write(self, messages: Any) -> None:
        pass

    def flush(self) -> None:
        raise StreamError("the broker is gone")

    def close(self) -> None:
        pass


def test_nothing_is_committed_that_was_not_written(tmp_path: Path, model: ModelDir) -> None:
    put(tmp_path / "in", "one.jsonl", [{"a": each, "b": 0} for each in range(10)])
    with pytest.raises(StreamError, match="the broker is gone"):
        run(ScoreStream(f"folder:{tmp_path / 'in'}", model, _Unwritable(), f"folder:{tmp_path / 'dead'}"))
    assert FolderSource(str(tmp_path / "in")).start("0") == 0
    run(stream(tmp_path, model, stop_after=10))
    assert [row["prediction"] for row in records(tmp_path / "out")] == list(range(10))


def test_settings_that_cannot_work(tmp_path: Path, model: ModelDir) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(UsageError, match=r"--input and --output are the same, folder:.*/in"):
        ScoreStream(f"folder:{tmp_path / 'in'}", model, f"folder:{tmp_path}/x/../in", f"folder:{tmp_path / 'dead'}")
    with pytest.raises(UsageError, match='there is no column "c"'):
        stream(tmp_path, model, columns=["c"]).check()
    schema = tmp_path / "schema.json"
    schema.write_text('{"a": "float64", "message_id": "string", "b": "float64"}')
    with pytest.raises(UsageError, match='have a column "message_id", which is for the id of the message'):
        stream(tmp_path, model, form=MessageFormat(schema=str(schema))).check()
    stream(tmp_path, model, form=MessageFormat(schema=str(schema)), columns=["a"]).check()
    schema.write_text('{"a": "string"}')
    with pytest.raises(UsageError, match='column "b" is missing'):
        stream(tmp_path, model, form=MessageFormat(schema=str(schema))).check()


@pytest.fixture(autouse=True)
def _no_runs_are_left() -> Iterator[None]:
    yield
    end_run("live")
