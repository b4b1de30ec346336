"""BigQuery tables as the output of a run: load jobs load its Parquet files.

Predictions go to the given table, dead letters to `<table>_dead_letters`. The id of a job is derived from the run, so
a retried step waits for the job of an earlier attempt and loads nothing twice.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from handlers.errors import ServiceError, UsageError, one_line
from transforms import bigquery

DEAD_LETTERS_SUFFIX = "_dead_letters"
# BigQuery's limit for one load job.
JOB_FILES = 10_000

_OUTPUT = re.compile(r"([a-z0-9:.-]+)[.:]([A-Za-z0-9_]+)\.([\w-]+)")
_COLUMN = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,299}")
_RESERVED = ("_table_", "_file_", "_partition", "_row_timestamp", "__root__", "_colidentifier")


@dataclass(frozen=True)
class Tables:
    """The tables that a run writes to.

    Attributes:
        predictions_table: as `project.dataset.table`.
        project: the project in which the jobs run.
        location: the location of the dataset and the jobs.
        overwrite: whether existing rows and columns are replaced.
    """

    predictions_table: str
    project: str
    location: str | None = None
    overwrite: bool = False

    @property
    def dead_letters_table(self) -> str:
        """As `project.dataset.table_dead_letters`."""
        return self.predictions_table + DEAD_LETTERS_SUFFIX


def plan_tables(output: str, *, overwrite: bool) -> Tables:
    """The tables of `output`, given as `bigquery:project.dataset.table`, after checking that a run can write to them.

    Raises:
        UsageError: if the table name is invalid, the dataset does not exist or is not accessible, or the table has rows
            and `overwrite` is off.
    """
    match = _OUTPUT.fullmatch(output.removeprefix(bigquery.PREFIX))
    if match is None:
        raise UsageError(f"--output={output}: write bigquery:project.dataset.table")
    project, dataset, table = match.groups()
    billed = bigquery.billed_project() or project
    try:
        client = bigquery.rest_client(billed)
        found = client.get_dataset(f"{project}.{dataset}", retry=bigquery.rest_retry())
    except Exception as error:
        raise _unusable(output, error) from error
    tables = Tables(f"{project}.{dataset}.{table}", billed, found.location, overwrite)
    for name in (tables.predictions_table, tables.dead_letters_table):
        _check_table(client, output, name, overwrite)
    return tables


def check_columns(tables: Tables, predictions: pa.Schema, dead_letters: pa.Schema) -> None:
    """Raises `UsageError` if the tables cannot have these columns, or exist with other columns."""
    client = bigquery.rest_client(tables.project)
    for name, schema in ((tables.predictions_table, predictions), (tables.dead_letters_table, dead_letters)):
        wanted = table_schema(schema)
        there = None if tables.overwrite else _find_table(client, f"{bigquery.PREFIX}{name}", name)
        if there is not None and (misfit := _misfit(wanted, there.schema)):
            raise UsageError(f"{name} exists and {misfit}; change or drop it, or replace it with --overwrite")


def _misfit(wanted: Sequence[Any], there: Sequence[Any], parent: str = "") -> str | None:
    found = {each.name.lower(): each for each in there}
    for each in wanted:
        path, match = parent + each.name, found.get(each.name.lower())
        if match is None:
            return f'has no column "{path}"'
        if (_kind(match), match.mode == "REPEATED") != (_kind(each), each.mode == "REPEATED"):
            return f'its column "{path}" is {match.mode} {_kind(match)}, not {each.mode} {_kind(each)}'
        if inner := _misfit(each.fields, match.fields, f"{path}."):
            return inner
    return None


def _kind(column: Any) -> str:
    """The current name of the type; BigQuery returns older names."""
    older = {"INTEGER": "INT64", "FLOAT": "FLOAT64", "BOOLEAN": "BOOL", "STRUCT": "RECORD"}
    return str(older.get(column.field_type, column.field_type))


def _check_table(client: Any, output: str, name: str, overwrite: bool) -> None:
    table = _find_table(client, output, name)
    if table is None:
        return
    if table.table_type != "TABLE":
        raise UsageError(f"--output={output}: {name} is a {table.table_type.lower()}, not a table; write elsewhere")
    if not overwrite and (table.num_rows or table.streaming_buffer):
        raise UsageError(
            f"--output={output}: {name} has rows; name another table, or replace the rows with --overwrite"
        )


def _find_table(client: Any, output: str, name: str) -> Any:
    from google.api_core.exceptions import NotFound

    try:
        return client.get_table(name, retry=bigquery.rest_retry())
    except NotFound:
        return None
    except Exception as error:
        raise _unusable(output, error) from error


def _unusable(output: str, error: Exception) -> UsageError:
    return UsageError(f"--output={output} cannot be written: {one_line(error)}; {bigquery.WAY_OUT}")


def load(tables: Tables, table: str, job: str, schema: pa.Schema, files: Sequence[str]) -> int:
    """Loads at least one Parquet file into `table` and returns the number of rows; safe to retry with the same `job`.

    Raises:
        ServiceError: if BigQuery did not load them. Load jobs are atomic: a failed one adds no rows.
    """
    rows = 0
    try:
        client = bigquery.rest_client(tables.project)
        for number, start in enumerate(range(0, len(files), JOB_FILES)):
            config = _config(schema, append=number > 0, overwrite=tables.overwrite)
            begun = _begin(client, tables, table, f"{job}-{number}", files[start : start + JOB_FILES], config)
            rows += begun.result().output_rows
    except Exception as error:
        raise ServiceError(
            f"{bigquery.PREFIX}{table} could not be loaded: {one_line(error)}; fix it and run again, with --overwrite "
            "if the other table has rows"
        ) from error
    return rows


def _begin(client: Any, tables: Tables, table: str, job: str, files: Sequence[str], config: Any) -> Any:
    from google.api_core.exceptions import Conflict

    for name in itertools.chain([job], (f"{job}-again-{number}" for number in itertools.count(1))):
        try:
            return client.load_table_from_uri(files, table, job_id=name, location=tables.location, job_config=config)
        except Conflict:  # an earlier attempt started it
            begun = client.get_job(name, location=tables.location)
            if begun.error_result is None:
                return begun
    raise AssertionError  # unreachable: the names never end


def _config(schema: pa.Schema, *, append: bool, overwrite: bool) -> Any:
    from google.cloud.bigquery import LoadJobConfig, WriteDisposition
    from google.cloud.bigquery.format_options import ParquetOptions

    lists = ParquetOptions()  # type: ignore[no-untyped-call]
    lists.enable_list_inference = True  # otherwise a list becomes a nested struct, as Parquet stores it
    first = WriteDisposition.WRITE_TRUNCATE if overwrite else WriteDisposition.WRITE_EMPTY
    return LoadJobConfig(
        source_format="PARQUET",
        schema=table_schema(schema),
        write_disposition=WriteDisposition.WRITE_APPEND if append else first,
        parquet_options=lists,
    )


# Columns


def loadable(schema: pa.Schema) -> pa.Schema:
    """`schema` with column types, also nested ones, that `table_schema` supports.

    The conversion keeps all values; a time with a fraction of a microsecond cannot be cast.
    """
    return pa.schema([each.with_type(_loadable(each.type)) for each in schema])


def _loadable(kind: pa.DataType) -> pa.DataType:
    if _is_list(kind) and (inner := _loadable(kind.value_type)) != kind.value_type:
        return pa.list_(inner)
    if pa.types.is_struct(kind):
        return pa.struct([each.with_type(_loadable(each.type)) for each in kind])
    if pa.types.is_timestamp(kind) and kind.unit == "ns":
        return pa.timestamp("us", kind.tz)
    return {pa.time64("ns"): pa.time64("us"), pa.uint64(): pa.decimal128(20, 0), pa.float16(): pa.float32()}.get(
        kind, kind
    )


def table_schema(schema: pa.Schema) -> list[Any]:
    """The `SchemaField`s of a table for the columns of `schema`, all nullable.

    Raises:
        UsageError: if BigQuery does not support a type or a column name.
    """
    return _fields(list(schema), "")


def _fields(columns: Sequence[pa.Field], parent: str) -> list[Any]:
    seen: set[str] = set()
    for column in columns:
        low = column.name.lower()
        if _COLUMN.fullmatch(column.name) is None or low.startswith(_RESERVED):
            raise _refusal(parent + column.name, "its name must have only letters, digits and _, and not be reserved")
        if low in seen:
            raise _refusal(parent + column.name, "the name is not unique, since BigQuery ignores case")
        seen.add(low)
    return [_field(column, parent) for column in columns]


def _field(column: pa.Field, parent: str) -> Any:
    from google.cloud.bigquery import SchemaField

    path, kind, mode = parent + column.name, column.type, "NULLABLE"
    if _is_list(kind):
        kind, mode = kind.value_type, "REPEATED"
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_struct(kind) and kind.num_fields:
        return SchemaField(column.name, "RECORD", mode, fields=_fields(list(kind), f"{path}."))
    name = _scalar(kind)
    if name is None:
        raise _refusal(path, f"BigQuery has no type for {column.type}")
    return SchemaField(column.name, name, mode)


def _is_list(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _scalar(kind: pa.DataType) -> str | None:
    """The BigQuery type that stores values of `kind` from Parquet unchanged; None if there is none."""
    types = pa.types
    # Integers are signed with 64 bits; times have microseconds.
    if types.is_integer(kind) and kind != pa.uint64():
        return "INT64"
    if types.is_float32(kind) or types.is_float64(kind):
        return "FLOAT64"
    if types.is_timestamp(kind) and kind.unit != "ns":
        return "TIMESTAMP" if kind.tz is not None else "DATETIME"
    if types.is_time(kind) and kind.unit != "ns":
        return "TIME"
    if types.is_decimal(kind):
        return _decimal(kind.precision - kind.scale, kind.scale)
    for name, holds in (
        ("BOOL", types.is_boolean),
        ("STRING", lambda each: types.is_string(each) or types.is_large_string(each)),
        (
            "BYTES",
            lambda each: types.is_binary(each) or types.is_large_binary(each) or types.is_fixed_size_binary(each),
        ),
        ("DATE", types.is_date),
    ):
        if holds(kind):
            return name
    return None


def _decimal(whole: int, scale: int) -> str | None:
    if 0 <= scale <= 9 and whole <= 29:
        return "NUMERIC"
    return "BIGNUMERIC" if 0 <= scale <= 38 and whole <= 38 else None


def _refusal(path: str, reason: str) -> UsageError:
    return UsageError(
        f'BigQuery cannot hold the column "{path}": {reason}; cast, rename or remove it first, or write files'
    )
