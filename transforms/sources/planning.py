"""What the driver settles about an input before the pipeline is built: its format, its columns and its splits."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial

import pyarrow as pa

from handlers.columnar.chunks import DEAD_LETTER, RESERVED
from handlers.encode.columns import matching
from handlers.errors import UsageError
from transforms.bigquery import is_bigquery
from transforms.sources.blocks import CHUNK_ROWS, ReadOptions, Split, is_dead_letter
from transforms.sources.files import InputFile, find_files
from transforms.sources.formats import Format, bigquery, format_of

# Small splits are read together up to this size or so many rows, as long as so many groups are left for the workers.
GROUP_BYTES = 32 << 20
GROUP_ROWS = 500_000
GROUPS = 64
_OPEN_BYTES = 128 << 10  # opening a file takes about as long as reading so many bytes of it

_INT64 = range(-(2**63), 2**63)


@dataclass(frozen=True)
class Input:
    """An input, ready to be read.

    Attributes:
        format: name of the format.
        schema: the columns of all rows, in the end those of `key=value` folders. Provenance is not among them. It is
            empty where no file could be opened.
        splits: what is read, each by one worker.
        rows: how many rows there are, where metadata tells.
        bytes: the size of all files.
        files: how many files there are.
        replay: the input is the dead letters of an earlier run.
    """

    format: str
    schema: pa.Schema
    splits: tuple[Split, ...]
    rows: int | None
    bytes: int
    files: int
    replay: bool


def plan_input(
    pattern: str,
    input_format: str | None = None,
    *,
    numeric_columns: Collection[str] = (),
    limit: int | None = None,
    chunk_rows: int = CHUNK_ROWS,
) -> Input:
    """Settles the format, columns and splits of the files that `pattern` names.

    Args:
        pattern: a file, a directory or a pattern; or a table of BigQuery or a query.
        input_format: name of the format; None for what the extensions tell.
        numeric_columns: patterns of the names of columns that feed numeric inputs of the model.
        limit: read about this many rows.
        chunk_rows: rows of a chunk.

    Raises:
        UsageError: there are no such files, they have no format in common, or their columns cannot be used.
    """
    files, reader = _found(pattern, input_format)
    plan = reader.plan(files, partial(matching, tuple(numeric_columns)))
    replay = DEAD_LETTER in plan.schema.names and is_dead_letter(plan.schema.field(DEAD_LETTER).type)
    schema = _without(plan.schema, [DEAD_LETTER] if replay else [])
    schema = _with_partitions(schema, files)
    if taken := sorted(RESERVED.intersection(schema.names)):
        raise UsageError(f'column "{taken[0]}" of {pattern} has a reserved name; rename it')
    sizes = {file.path: file.size for file in files}
    parts = Counter(split.path for split in plan.splits)
    splits = [
        replace(split, replay=replay, bytes=sizes[split.path] // parts[split.path], whole=parts[split.path] == 1)
        for split in plan.splits
    ]
    if limit is not None:
        splits = _limited(splits, limit, plan.schema, reader, chunk_rows)
    known = [split.rows for split in splits if split.rows is not None]
    return Input(
        format=reader.NAME,
        schema=schema,
        splits=tuple(splits),
        rows=sum(known) if known else None,
        bytes=sum(file.size for file in files),
        files=len(files),
        replay=replay,
    )


def grouped(splits: Sequence[Split]) -> list[tuple[Split, ...]]:
    """Puts small splits together, in their order; each group is read by one worker.

    Of equal splits there are at least `GROUPS` groups, or as many as there are splits.
    """
    weights = [_weight(split) for split in splits]
    limit = min(1.0, sum(weights) / GROUPS)
    groups: list[list[Split]] = []
    weight = limit
    for split, added in zip(splits, weights, strict=True):
        weight += added
        if weight > limit:
            groups.append([])
            weight = added
        groups[-1].append(split)
    return [tuple(group) for group in groups]


def _weight(split: Split) -> float:
    """How much of a group a split takes up. Streams of a table stay alone: each is large, and they have no size."""
    if split.stream is not None:
        return 1.0
    return max((split.bytes + _OPEN_BYTES) / GROUP_BYTES, (split.rows or 0) / GROUP_ROWS)


def _found(pattern: str, input_format: str | None) -> tuple[list[InputFile], Format]:
    if not is_bigquery(pattern):
        files = find_files(pattern)
        return files, format_of(files, input_format)
    if input_format is not None:
        raise UsageError(f"--input_format={input_format} is for files; leave it out with --input=bigquery:…")
    return bigquery.find(pattern), bigquery


def _without(schema: pa.Schema, names: Collection[str]) -> pa.Schema:
    return pa.schema([each for each in schema if each.name not in names])


def _with_partitions(schema: pa.Schema, files: Sequence[InputFile]) -> pa.Schema:
    """`schema` with the columns of `key=value` folders at its end. Raises where the files have one of the same name."""
    values: dict[str, list[str]] = {}
    names = set(schema.names)
    for file in files:
        for key, value in file.partitions:
            if key in names:
                raise UsageError(
                    f'column "{key}" of {file.path} comes from its folder {key}=…, and the files have one of that name, '
                    "too; rename the folder or the column"
                )
            values.setdefault(key, []).extend([] if value is None else [value])
    for key, texts in values.items():
        schema = schema.append(pa.field(key, pa.int64() if texts and all(map(_is_int, texts)) else pa.string()))
    return schema


def _is_int(text: str) -> bool:
    return re.fullmatch(r"[+-]?[0-9]{1,19}", text) is not None and int(text) in _INT64


def _limited(splits: Sequence[Split], limit: int, schema: pa.Schema, reader: Format, chunk_rows: int) -> list[Split]:
    """As many of `splits` as hold `limit` rows, the last one cut."""
    kept: list[Split] = []
    for split in splits:
        if limit <= 0:
            break
        rows, whole = (split.rows, True) if split.rows is not None else _count(split, limit, schema, reader, chunk_rows)
        rows = min(rows, limit)
        # A file that breaks is read up to the limit once more: its break is then told as a failure of that file.
        kept.append(replace(split, rows=rows if whole else None, max_rows=rows if whole else limit))
        limit -= rows
    return kept


def _count(split: Split, limit: int, schema: pa.Schema, reader: Format, chunk_rows: int) -> tuple[int, bool]:
    """How many rows a file has, up to `limit`, found by reading it, and whether that went well."""
    rows = 0
    try:
        for block in reader.blocks(split, schema, ReadOptions(chunk_rows=min(chunk_rows, limit))):
            rows += block.rows
            if rows >= limit:
                break
    except Exception:
        return rows, False
    return rows, True
