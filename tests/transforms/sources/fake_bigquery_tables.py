"""A server that speaks the part of BigQuery's REST API that load jobs take; it reads their Parquet files itself."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

# As the Storage Read API gives them.
ARROW = {
    "INT64": pa.int64(),
    "FLOAT64": pa.float64(),
    "BOOL": pa.bool_(),
    "STRING": pa.string(),
    "BYTES": pa.binary(),
    "DATE": pa.date32(),
    "TIME": pa.time64("us"),
    "DATETIME": pa.timestamp("us"),
    "TIMESTAMP": pa.timestamp("us", "UTC"),
    "NUMERIC": pa.decimal128(38, 9),
    "BIGNUMERIC": pa.decimal256(76, 38),
}


@dataclass
class FakeTables:
    """Datasets as `project.dataset`; tables by `project.dataset.table`; jobs by their id, as they were posted.

    `refuse` has the reason for which jobs into a table fail; `statuses` has HTTP statuses, each for one request whose
    method and path contain its key, answered once before (`True`) or after the request was carried out.
    """

    datasets: set[str]
    tables: dict[str, pa.Table] = field(default_factory=dict)
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    refuse: dict[str, str] = field(default_factory=dict)
    statuses: list[tuple[str, int, bool]] = field(default_factory=list)
    views: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    schemas: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def answer(self, method: str, path: str, body: dict[str, Any] | None) -> tuple[int, dict[str, Any]]:
        asked = f"{method} {path}"
        self.asked.append(asked)
        ill = next((each for each in self.statuses if each[0] in asked), None)
        if ill is not None:
            self.statuses.remove(ill)
        if ill is None or not ill[2]:
            answer = self._answer(path, body)
        return _error(ill[1], "asked for by the test") if ill is not None else answer

    def _answer(self, path: str, body: dict[str, Any] | None) -> tuple[int, dict[str, Any]]:
        _, project, *rest = path.removeprefix("/bigquery/v2/").split("/")
        match rest:
            case ["datasets", dataset]:
                if f"{project}.{dataset}" not in self.datasets:
                    return _error(404, f"Not found: Dataset {project}:{dataset}")
                reference = {"projectId": project, "datasetId": dataset}
                return 200, {"datasetReference": reference, "location": "EU"}
            case ["datasets", dataset, "tables", table]:
                name = f"{project}.{dataset}.{table}"
                if name not in self.tables:
                    return _error(404, f"Not found: Table {name}")
                reference = {"projectId": project, "datasetId": dataset, "tableId": table}
                kind = "VIEW" if name in self.views else "TABLE"
                schema = {"fields": _older(self.schemas.get(name, []))}
                count = str(self.tables[name].num_rows)
                return 200, {"tableReference": reference, "type": kind, "numRows": count, "schema": schema}
            case ["jobs"]:
                assert body is not None
                job_id = body["jobReference"]["jobId"]
                if job_id in self.jobs:
                    return _error(409, f"Already Exists: Job {job_id}")
                self.jobs[job_id] = body | self._load(body)
                return 200, self.jobs[job_id]
            case ["jobs", job_id]:
                return 200, self.jobs[job_id]
        raise AssertionError(path)

    def _load(self, body: dict[str, Any]) -> dict[str, Any]:
        assert body["jobReference"]["location"] == "EU"
        load = body["configuration"]["load"]
        assert load["sourceFormat"] == "PARQUET"
        assert load["parquetOptions"] == {"enableListInference": True}
        to = load["destinationTable"]
        name = f"{to['projectId']}.{to['datasetId']}.{to['tableId']}"
        there = self.tables.get(name)
        if name in self.refuse:
            return _failed(self.refuse[name], "invalid")
        if load["writeDisposition"] == "WRITE_EMPTY" and there is not None and there.num_rows:
            return _failed(f"Already Exists: Table {name}", "duplicate")
        schema = pa.schema([_arrow(each) for each in load["schema"]["fields"]])
        files = [pq.read_table(path) for path in load["sourceUris"]]
        assert all(file.schema.names == schema.names for file in files)
        loaded = pa.concat_tables([file.cast(schema) for file in files])
        append = load["writeDisposition"] == "WRITE_APPEND" and there is not None
        self.tables[name] = pa.concat_tables([there, loaded]) if append else loaded
        self.schemas[name] = load["schema"]["fields"]
        return {"status": {"state": "DONE"}, "statistics": {"load": {"outputRows": str(loaded.num_rows)}}}


def _older(columns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The columns as BigQuery answers with them: by its first names of types."""
    older = {"INT64": "INTEGER", "FLOAT64": "FLOAT", "BOOL": "BOOLEAN"}
    return [
        each | {"type": older.get(each["type"], each["type"]), "fields": _older(each.get("fields", []))}
        for each in columns
    ]


def _arrow(column: dict[str, Any]) -> pa.Field:
    records = [_arrow(each) for each in column.get("fields", [])]
    kind = pa.struct(records) if column["type"] == "RECORD" else ARROW[column["type"]]
    return pa.field(column["name"], pa.list_(kind) if column["mode"] == "REPEATED" else kind)


def _failed(message: str, reason: str) -> dict[str, Any]:
    error = {"reason": reason, "message": message}
    return {"status": {"state": "DONE", "errorResult": error, "errors": [error]}}


def _error(status: int, message: str) -> tuple[int, dict[str, Any]]:
    return status, {"error": {"code": status, "message": message}}


@contextmanager
def serve_tables(fake: FakeTables) -> Iterator[str]:
    """Gives the address of the server, as `http://host:port`."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self._reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def do_GET(self) -> None:
            self._reply(None)

        def _reply(self, body: dict[str, Any] | None) -> None:
            try:
                status, answer = fake.answer(self.command, self.path.split("?")[0], body)
            except Exception as error:  # an answer, since clients ask for minutes where a connection breaks off
                status, answer = _error(400, repr(error))
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("localhost", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://localhost:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
