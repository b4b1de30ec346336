"""BigQuery: tables, and the results of queries, as Arrow by the Storage Read API.

The driver opens a read session, which is a snapshot of the table cut into streams, and every stream is a split. A
stream can be read many times, so that a bundle may be retried, and goes on where it broke off.

Where `BIGQUERY_EMULATOR_HOST` (`http://host:port`, queries) or `BIGQUERY_STORAGE_EMULATOR_HOST` (`host:port`, reading) is
set, that server is asked instead, without credentials.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from handlers.errors import ServiceError, UsageError, one_line
from transforms.bigquery import BEFORE_RUN, PREFIX, WAY_OUT, billed_project, rest_client
from transforms.sources.blocks import Block, Numeric, Plan, ReadOptions, Split, check_columns, fit, widened
from transforms.sources.digits import dumps
from transforms.sources.files import InputFile
from transforms.sources.formats.parquet import plain_schema

NAME = "bigquery"
EXTENSIONS: tuple[str, ...] = ()
COMPRESSED = False

_TABLE = re.compile(r"([a-z0-9:.-]+)[.:]([A-Za-z0-9_]+)\.([^\s.`]+)")
_QUERY = re.compile(r"\(|(select|with)\b", re.IGNORECASE)
_IN_RUN = 600


def find(name: str) -> list[InputFile]:
    """The table that `name` stands for, as `bigquery:project.dataset.table`; a query is run, into a temporary one.

    Raises `UsageError` where it is neither, or the query fails.
    """
    text = name.removeprefix(PREFIX).strip()
    if _QUERY.match(text):
        return [InputFile(PREFIX + _result_of(text), 0)]
    if _TABLE.fullmatch(text) is None:
        raise UsageError(f'--input={name}: write bigquery:project.dataset.table, or "bigquery:SELECT …"')
    return [InputFile(PREFIX + text, 0)]


def _result_of(query: str) -> str:
    """Runs `query` and gives the table that holds its result, which BigQuery keeps for a day."""
    try:
        job = rest_client(billed_project()).query(query)
        job.result(max_results=1)
        table = job.destination
    except Exception as error:
        raise UsageError(f"the query of --input failed: {one_line(error)}; {WAY_OUT}") from error
    if table is None:
        raise UsageError("the query of --input gives no rows to read; write a SELECT")
    return f"{table.project}.{table.dataset_id}.{table.table_id}"


def plan(files: Sequence[InputFile], _numeric: Numeric) -> Plan:
    """Opens a read session of the one table; its columns are those of the table."""
    from google.cloud.bigquery_storage_v1 import types

    (table,) = files
    match = _TABLE.fullmatch(table.path.removeprefix(PREFIX))
    assert match is not None  # noqa: S101 - `find` made it
    project, dataset, name = match.groups()
    try:
        session = _read_client().create_read_session(
            parent=f"projects/{billed_project() or project}",
            read_session=types.ReadSession(
                table=f"projects/{project}/datasets/{dataset}/tables/{name}", data_format=types.DataFormat.ARROW
            ),
            retry=_retry(BEFORE_RUN),
        )
        columns = pa.ipc.read_schema(pa.py_buffer(session.arrow_schema.serialized_schema))
    except Exception as error:
        raise UsageError(f"{table.path} cannot be read: {one_line(error)}; {WAY_OUT}") from error
    splits = [Split(table.path, NAME, stream=(number, each.name)) for number, each in enumerate(session.streams)]
    return Plan(plain_schema(columns), splits)


def blocks(split: Split, schema: pa.Schema, options: ReadOptions) -> Iterator[Block]:
    """Reads a stream of the session. Rows are numbered as they come in it.

    Raises `ServiceError` where BigQuery does not give them: no row is at fault, and the runner may try again.
    """
    assert split.stream is not None  # noqa: S101 - `plan` made it
    row = 0
    for batch in _batches(split.stream[1], split):
        check_columns(batch.schema.names, options.needed, split)
        numbers = np.arange(row, row + batch.num_rows, dtype=np.int64)
        row += batch.num_rows
        if batch.schema.equals(schema):
            yield Block(batch, numbers)
        else:
            yield fit(batch, schema, numbers, split, cast=widened, raw=dumps)


def _batches(stream: str, split: Split) -> Iterator[pa.RecordBatch]:
    columns: pa.Schema | None = None
    try:
        # Where the connection breaks off, this asks again from the row that it got to.
        for message in _read_client().read_rows(stream, retry=_retry(_IN_RUN)):
            if message.arrow_schema.serialized_schema:
                columns = pa.ipc.read_schema(pa.py_buffer(message.arrow_schema.serialized_schema))
            data = message.arrow_record_batch.serialized_record_batch
            if data:
                yield pa.ipc.read_record_batch(pa.py_buffer(data), columns)
    except Exception as error:
        raise ServiceError(f"{split.source} cannot be read to its end: {one_line(error)}") from error


# Clients, one for a process


def _read_client() -> Any:
    return _read_client_of(os.environ.get("BIGQUERY_STORAGE_EMULATOR_HOST"))


@functools.lru_cache(maxsize=1)
def _read_client_of(emulator: str | None) -> Any:
    from google.cloud.bigquery_storage_v1 import BigQueryReadClient

    if emulator is None:
        return BigQueryReadClient()  # type: ignore[no-untyped-call]
    import grpc  # type: ignore[import-untyped]
    from google.cloud.bigquery_storage_v1.services.big_query_read.transports import BigQueryReadGrpcTransport

    channel = grpc.insecure_channel(emulator, [("grpc.max_receive_message_length", -1)])
    return BigQueryReadClient(transport=BigQueryReadGrpcTransport(channel=channel))  # type: ignore[no-untyped-call]


def _retry(seconds: float) -> Any:
    from google.api_core.exceptions import ServiceUnavailable
    from google.api_core.retry import Retry, if_exception_type

    return Retry(predicate=if_exception_type(ServiceUnavailable), initial=0.1, maximum=20, timeout=seconds)
