"""Avro messages, with and without a schema registry that answers over HTTP as Confluent's does."""

from __future__ import annotations

import io
import json
import pickle
import struct
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fastavro
import pytest
from stream_messages import messages

from handlers.columnar.chunks import without_provenance
from handlers.errors import StreamError, UsageError
from handlers.model.spec import ModelSpec
from transforms.streams.decode import decode
from transforms.streams.settle import MessageFormat, decoder_of

MIB = 1 << 20
SPEC = ModelSpec.model_validate(
    {"name": "m", "format": "torch_export", "weights": "w.pt2", "inputs": [{"name": "x", "columns": ["a"]}]}
)
FIRST = {
    "type": "record",
    "name": "Order",
    "fields": [
        {"name": "a", "type": ["null", "double"]},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
    ],
}
SECOND = {**FIRST, "fields": [{"name": "note", "type": "string"}, *FIRST["fields"]]}  # with a field that is left out
THIRD = {"type": "record", "name": "Order", "fields": [{"name": "a", "type": "string"}]}  # cannot be read as FIRST


def encoded(schema: Any, record: dict[str, Any]) -> bytes:
    data = io.BytesIO()
    fastavro.schemaless_writer(data, fastavro.parse_schema(schema), record)
    return data.getvalue()


def framed(number: int, value: bytes) -> bytes:
    return struct.pack(">bI", 0, number) + value


class _Registry(ThreadingHTTPServer):
    schemas: dict[int, Any]
    asked: list[str]
    broken = False


class _Handler(BaseHTTPRequestHandler):
    server: _Registry

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        self.server.asked.append(path)
        if self.server.broken:
            return self._answer(500, {"error_code": 50001, "message": "broken"})
        if path == "/subjects":
            return self._answer(200, ["orders-value"])
        if path == "/subjects/orders-value/versions/latest":
            return self._answer(
                200, {"subject": "orders-value", "id": 1, "version": 1, "schema": json.dumps(self.server.schemas[1])}
            )
        number = path.removeprefix("/schemas/ids/")
        if number.isdigit() and int(number) in self.server.schemas:
            return self._answer(200, {"schema": json.dumps(self.server.schemas[int(number)])})
        return self._answer(404, {"error_code": 40403, "message": "not found"})

    def _answer(self, status: int, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def registry() -> Iterator[_Registry]:
    server = _Registry(("127.0.0.1", 0), _Handler)
    server.schemas, server.asked = {1: FIRST, 2: SECOND, 3: THIRD}, []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def _url(server: _Registry) -> str:
    return f"http://127.0.0.1:{server.server_port}"


def test_plain_avro(tmp_path: Path) -> None:
    (tmp_path / "order.avsc").write_text(json.dumps(FIRST))
    decoder = pickle.loads(
        pickle.dumps(decoder_of(MessageFormat("avro", str(tmp_path / "order.avsc")), SPEC, "orders"))
    )
    good = encoded(FIRST, {"a": 1.5, "at": 0})
    none = encoded(FIRST, {"a": None, "at": 86_400_000})
    values = [good, good[:-1], good + b"\0", b"\x07", None, none, b"\xff" * 30]
    decoded = decode(messages(values), decoder, MIB)
    assert decoded.indices.tolist() == [0, 5]
    rows = without_provenance(decoded.chunk).to_pylist()
    assert [(row["a"], row["at"].isoformat()) for row in rows] == [
        *((1.5, "1970-01-01T00:00:00+00:00"), (None, "1970-01-02T00:00:00+00:00"))
    ]
    assert set(decoded.failures) == {1, 2, 3, 4, 6}
    assert decoded.failures[2].message == "1 bytes are left behind the record; it was written with another schema"


def test_values_that_no_column_holds_cost_their_message(tmp_path: Path) -> None:
    schema = {
        "type": "record",
        "name": "Order",
        "fields": [{"name": "t", "type": "string"}, {"name": "a", "type": "double"}],
    }
    (tmp_path / "order.avsc").write_text(json.dumps(schema))
    decoder = decoder_of(MessageFormat("avro", str(tmp_path / "order.avsc")), SPEC, "orders")
    good = encoded(schema, {"t": "ab", "a": 1.0})
    decoded = decode(messages([good, good.replace(b"ab", b"\xff\xfe"), good]), decoder, MIB)
    assert decoded.indices.tolist() == [0, 2]
    assert list(decoded.failures) == [1]


def test_schema_registry(registry: _Registry) -> None:
    decoder = decoder_of(MessageFormat("avro", registry=_url(registry)), SPEC, "orders")
    assert decoder.schema.names == ["a", "at"]
    values = [
        framed(1, encoded(FIRST, {"a": 1.0, "at": 0})),
        framed(2, encoded(SECOND, {"note": "x", "a": 2.0, "at": 0})),
        framed(3, encoded(THIRD, {"a": "text"})),
        framed(99, encoded(FIRST, {"a": 3.0, "at": 0})),
        encoded(FIRST, {"a": 4.0, "at": 0}),
        framed(1, b""),
        framed(99, b"x"),
        framed(1, encoded(FIRST, {"a": 5.0, "at": 0})),
    ]
    registry.asked.clear()
    decoded = decode(messages(values), decoder, MIB)
    assert decoded.chunk.column("a").to_pylist() == [1.0, 2.0, 5.0]
    assert decoded.indices.tolist() == [0, 1, 7]
    assert {index: each.type for index, each in decoded.failures.items()} == {
        2: "SchemaResolutionError",
        3: "UnknownSchema",
        4: "ValueError",
        5: "EOFError",
        6: "UnknownSchema",
    }
    assert decoded.failures[3].message == "the schema registry has no schema 99"
    assert sorted(registry.asked) == [f"/schemas/ids/{number}" for number in (1, 2, 3, 99)]  # each is asked for once


def test_json_behind_the_id_of_a_schema(registry: _Registry) -> None:
    decoder = decoder_of(MessageFormat(registry=_url(registry)), SPEC, "orders")
    values = [framed(1, b'{"a":1}'), b'{"a":2}', framed(98, b'{"a":3}'), framed(1, b"no"), framed(2, b'{"a":4}')]
    decoded = decode(messages(values), decoder, MIB)
    assert decoded.chunk.column("a").to_pylist() == [1.0, 4.0]
    assert decoded.indices.tolist() == [0, 4]
    assert {index: each.type for index, each in decoded.failures.items()} == {
        1: "ValueError",
        2: "UnknownSchema",
        3: "JSONDecodeError",
    }


def test_a_registry_that_does_not_answer_makes_no_dead_letters(registry: _Registry) -> None:
    decoder = decoder_of(MessageFormat("avro", registry=_url(registry)), SPEC, "orders")
    registry.broken = True
    with pytest.raises(StreamError, match="the schema registry does not answer"):
        decode(messages([framed(2, encoded(SECOND, {"note": "x", "a": 2.0, "at": 0}))]), decoder, MIB)


def test_settings_that_cannot_work(registry: _Registry, tmp_path: Path) -> None:
    bad = tmp_path / "bad.avsc"
    bad.write_text('{"type": "string"}')
    for form, reason in (
        (MessageFormat("avro"), "needs --schema=FILE.avsc, or --schema_registry=URL"),
        (MessageFormat("avro", str(bad)), "is no Avro schema of a record"),
        (MessageFormat("avro", registry="localhost:8081"), "must be a URL"),
        (MessageFormat("avro", registry="http://127.0.0.1:9"), "the schema registry does not answer"),
        (MessageFormat("text", registry=_url(registry)), "has no meaning with --message_format=text"),
    ):
        with pytest.raises(UsageError) as error:
            decoder_of(form, SPEC, "orders")
        assert reason in str(error.value)
    with pytest.raises(UsageError, match='no subject "others-value"; give the schema of the run as --schema=FILE'):
        decoder_of(MessageFormat("avro", registry=_url(registry)), SPEC, "others")
