"""What a preparation refuses: counts that do not add up, rows that nothing can be learned from, outputs that hold something."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from handlers.errors import AccountingError, UsageError
from handlers.paths import is_remote
from handlers.train.cleaning import near
from handlers.train.prepared import ABOUT, TRAIN, VALIDATION
from transforms.accounting import Counts
from transforms.file_ops import join
from transforms.preparation.merge import Merged
from transforms.preparation.spill import Sampling
from transforms.sinks.publish import DEAD_LETTERS
from transforms.sources import Input

# What is replaced in a folder; nothing else in it is touched.
PARTS = {TRAIN: "part-*.arrow", VALIDATION: "part-*.arrow", DEAD_LETTERS: "part-*.parquet"}


def check_counts(counts: Counts, result: dict[str, Any]) -> None:
    """Raises `AccountingError` if a row is missing or counted twice."""
    accounted = counts.rows_scored + counts.rows_dropped + counts.rows_dead
    dead = sum(part["rows"] for part in result["dead_letters"])
    if counts.rows_read != accounted or counts.rows_dead != dead:
        raise AccountingError(
            f"{counts.rows_read} rows were read, but {counts.rows_scored} usable + {counts.rows_dropped} dropped + "
            f"{counts.rows_dead} dead = {accounted} came out, {dead} of them as dead letters: nothing is prepared"
        )


def check_usable(counts: Counts, label: str, where: str) -> None:
    """Refuses an input of which no row can be used."""
    if counts.rows_scored:
        return
    if counts.rows_dead:
        worst = max(counts.dead_by_error, key=lambda error: counts.dead_by_error[error])
        nulls = counts.dead_by_error.get("label/NullValue", 0)
        hint = f': column "{label}" is null in {nulls} of them' if nulls else f"; most are {worst}"
        raise UsageError(f"none of the {counts.rows_read} rows of {where} can be trained on{hint}")
    if not counts.rows_read and counts.files_dead:
        raise UsageError(f"none of the {counts.files_dead} files of {where} could be read")
    what = "all rows were dropped by preprocess" if counts.rows_dropped else "there are no rows"
    raise UsageError(f"{where} gives nothing to train on: {what}")


def check_merged(merged: Merged, counts: Counts, result: dict[str, Any], sampling: Sampling) -> None:
    """Compares the rows of the shards with what was counted, and refuses a sample with nothing to train on."""
    found, limit = merged.train + merged.validation, sampling.rows
    if limit is not None:
        expected = min(limit, counts.rows_scored)
    else:
        written = sum(part["rows"] for part in result["files"])
        expected = counts.rows_scored if sampling.share >= 1 else written
    if found != expected:
        raise AccountingError(f"{expected} rows were to be prepared, but the shards hold {found}")
    if not found:
        raise UsageError(
            f"--sample={sampling.share:g} takes none of {counts.rows_scored} rows; give a larger share, or --sample_rows"
        )
    if not merged.train:
        raise UsageError(f"all {found} rows are held out; give more rows, a smaller --validation or another --seed")


def check_label(folder: Path, label: str, schema: pa.Schema, rows: int) -> None:
    """Refuses a label that is the same in every row of the shards in `folder`; lists may be."""
    if pa.types.is_nested(schema.field(label).type):
        return
    values: pa.Array | None = None
    for part in (TRAIN, VALIDATION):
        for file in sorted((folder / part).iterdir()):
            reader = pa.ipc.open_file(pa.memory_map(str(file)))
            for index in range(reader.num_record_batches):
                found = pc.unique(reader.get_batch(index).column(label))
                values = found if values is None else pc.unique(pa.concat_arrays([values, found]))
                if len(values) > 1:
                    return
    if values is not None:
        raise UsageError(
            f'column "{label}", the label, is {values[0].as_py()!r} in all {rows} rows; there is nothing to learn'
        )


def check_split(name: str, read: pa.Schema, cleaned: pa.Schema, where: str) -> None:
    """Refuses a column of --split_by that there is not, or whose values cannot be compared."""
    schema = read if name in read.names else cleaned
    if name not in schema.names:
        raise UsageError(f'--split_by: {where} has no column "{name}"; {near(name, [*read.names, *cleaned.names])}')
    kind = schema.field(name).type
    try:
        pa.array([], kind).cast(pa.string())
    except pa.ArrowException:
        raise UsageError(
            f'--split_by: column "{name}" is {kind}, whose values cannot be compared; name another'
        ) from None


def check_apart(source: Input, output: str) -> None:
    """Refuses an output that would replace what the run reads."""
    replaced = tuple(f"{os.path.realpath(join(output, name))}/" for name in PARTS)
    for path in sorted({split.path for split in source.splits}):
        if not is_remote(path) and os.path.realpath(path).startswith(replaced):
            raise UsageError(f"{path}, of the input, is part of prepared rows in --output {output}; write elsewhere")


def check_free(output: Path, *, overwrite: bool) -> None:
    """Refuses an output that has prepared rows, or a part of them, unless they are to be replaced."""
    for name in PARTS:
        if (output / name).exists() and not (output / name).is_dir():
            raise UsageError(f"--output {output} cannot be written: {output / name} is not a folder")
    if overwrite:
        return
    if (output / ABOUT).exists():
        raise UsageError(f"--output {output} holds prepared rows; write elsewhere, or replace them with --overwrite")
    for name, pattern in PARTS.items():
        if next((output / name).glob(pattern), None) is not None:
            raise UsageError(
                f"--output {output} holds files of another run in {name}/; write elsewhere, or replace them with --overwrite"
            )
