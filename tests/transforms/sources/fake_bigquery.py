"""A server that speaks BigQuery's Storage Read API over gRPC, and as much of its REST API as a query needs."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import pyarrow as pa
from google.cloud.bigquery_storage_v1 import types

SERVICE = "google.cloud.bigquery.storage.v1.BigQueryRead"


@dataclass
class FakeBigQuery:
    """Tables by `project.dataset.table`, cut into streams; `asked` is what clients have asked for.

    `breaks` has, for a stream number, the status codes with which its next reads end, after `rows_before_break` rows.
    """

    tables: dict[str, pa.Table]
    streams: int = 2
    message_rows: int = 10
    breaks: dict[int, list[grpc.StatusCode]] = field(default_factory=dict)
    rows_before_break: int = 20
    asked: list[Any] = field(default_factory=list)
    sessions: dict[str, pa.Table] = field(default_factory=dict)
    result: str = ""

    def create_read_session(self, request: Any, context: Any) -> Any:
        self.asked.append(request)
        _, project, _, dataset, _, name = request.read_session.table.split("/")
        if project == "forbidden":
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "bigquery.readsessions.create is denied")
        table = self.tables.get(f"{project}.{dataset}.{name}")
        if table is None:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Not found: Table {project}:{dataset}.{name}")
        assert table is not None
        session = f"{request.parent}/locations/eu/sessions/s{len(self.sessions)}"
        self.sessions[session] = table
        streams = self.streams if table.num_rows else 0
        return types.ReadSession(
            name=session,
            table=request.read_session.table,
            data_format=types.DataFormat.ARROW,
            arrow_schema=types.ArrowSchema(serialized_schema=table.schema.serialize().to_pybytes()),
            streams=[types.ReadStream(name=f"{session}/streams/{number}") for number in range(streams)],
            estimated_row_count=table.num_rows,
        )

    def read_rows(self, request: Any, context: Any) -> Iterator[Any]:
        self.asked.append(request)
        session, _, number = request.read_stream.rpartition("/streams/")
        table = self.rows_of(session, int(number))
        code = self.breaks[int(number)].pop(0) if self.breaks.get(int(number)) else None
        end = min(request.offset + self.rows_before_break, table.num_rows) if code else table.num_rows
        for start in range(request.offset, end, self.message_rows):
            (batch,) = table.slice(start, min(self.message_rows, end - start)).combine_chunks().to_batches()
            yield types.ReadRowsResponse(
                row_count=batch.num_rows,
                arrow_record_batch=types.ArrowRecordBatch(serialized_record_batch=batch.serialize().to_pybytes()),
                arrow_schema=types.ArrowSchema(serialized_schema=table.schema.serialize().to_pybytes())
                if start == request.offset
                else None,
            )
        if code is not None:
            context.abort(code, "the stream broke off")

    def rows_of(self, session: str, number: int) -> pa.Table:
        table = self.sessions[session]
        size = -(-table.num_rows // self.streams)
        return table.slice(number * size, size)

    def offsets(self, stream: int) -> list[int]:
        return [each.offset for each in self.asked if getattr(each, "read_stream", "").endswith(f"/streams/{stream}")]


def serve_storage(fake: FakeBigQuery) -> tuple[grpc.Server, str]:
    server = grpc.server(ThreadPoolExecutor(4))
    handlers = {
        "CreateReadSession": grpc.unary_unary_rpc_method_handler(
            fake.create_read_session, types.CreateReadSessionRequest.deserialize, types.ReadSession.serialize
        ),
        "ReadRows": grpc.unary_stream_rpc_method_handler(
            fake.read_rows, types.ReadRowsRequest.deserialize, types.ReadRowsResponse.serialize
        ),
    }
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, handlers)])
    port = server.add_insecure_port("localhost:0")
    server.start()
    return server, f"localhost:{port}"


def serve_queries(fake: FakeBigQuery) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            fake.asked.append(body)
            if "nonsense" in body["configuration"]["query"]["query"]:
                return self.answer(400, {"error": {"code": 400, "message": "Syntax error: Unexpected nonsense"}})
            return self.answer(200, self.job(body["jobReference"]["jobId"]))

        def do_GET(self) -> None:
            job = self.path.split("?")[0].rsplit("/", 1)[1]
            if "/queries/" not in self.path:
                return self.answer(200, self.job(job))
            reference = {"projectId": "emulator", "jobId": job, "location": "EU"}
            answer = {"jobReference": reference, "jobComplete": True, "totalRows": "1", "schema": {"fields": []}}
            return self.answer(200, answer)

        def job(self, job: str) -> dict[str, Any]:
            project, dataset, table = fake.result.split(".")
            destination = {"projectId": project, "datasetId": dataset, "tableId": table}
            return {
                "jobReference": {"projectId": "emulator", "jobId": job, "location": "EU"},
                "status": {"state": "DONE"},
                "configuration": {"jobType": "QUERY", "query": {"query": "", "destinationTable": destination}},
                "statistics": {"query": {"statementType": "SELECT"}},
            }

        def answer(self, status: int, body: dict[str, Any]) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("localhost", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    return server
