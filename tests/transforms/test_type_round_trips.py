"""What becomes of every type that the sources know, on its way through an output format and back in."""

import datetime
import uuid
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from handlers.columnar.chunks import single_batch, without_provenance
from transforms.sinks.write import Writer
from transforms.sources import BadRows, plan_input, read_split

UTC = datetime.UTC
MOMENT = datetime.datetime(2024, 5, 1, 12, 30, 15)
BIG = 2**40 + 7
SAME = None  # the type that it had

# Of each type of a Parquet file: values, and the type and the values that come back from Avro where they differ.
CASES: list[tuple[pa.DataType, list[Any], pa.DataType | None, list[Any] | None]] = [
    (pa.null(), [None, None], SAME, None),
    (pa.bool_(), [True, False, None], SAME, None),
    (pa.int8(), [-128, 127, None], pa.int32(), None),
    (pa.int16(), [-(2**15), 2**15 - 1, None], pa.int32(), None),
    (pa.int32(), [-(2**31), 2**31 - 1, None], SAME, None),
    (pa.int64(), [-(2**63), 2**63 - 1, None], SAME, None),
    (pa.uint8(), [0, 255, None], pa.int32(), None),
    (pa.uint16(), [0, 2**16 - 1, None], pa.int32(), None),
    (pa.uint32(), [0, 2**32 - 1, None], pa.int64(), None),
    (pa.uint64(), [0, 2**64 - 1, None], pa.decimal128(20, 0), [Decimal(0), Decimal(2**64 - 1), None]),
    (pa.float16(), [0.5, -2.0, None], pa.float32(), None),
    (pa.float32(), [0.5, float("inf"), None], SAME, None),
    (pa.float64(), [0.1, -float("inf"), None], SAME, None),
    (pa.decimal32(7, 2), [Decimal("12345.67"), None], pa.decimal128(7, 2), None),
    (pa.decimal64(18, 6), [Decimal("-1.000001"), None], pa.decimal128(18, 6), None),
    (pa.decimal128(38, 9), [Decimal("-12345678901234567890123456789.123456789"), None], SAME, None),
    (pa.decimal256(76, 2), [Decimal("9" * 74 + ".99"), Decimal("-0.01"), None], SAME, None),
    (pa.string(), ["", "Größe ∞", None], SAME, None),
    (pa.large_string(), ["a", None], pa.string(), None),
    (pa.string_view(), ["a", "longer than twelve bytes", None], pa.string(), None),
    (pa.binary(), [b"", b"\x00\xff", None], SAME, None),
    (pa.large_binary(), [b"\x00\xff", None], pa.binary(), None),
    (pa.binary_view(), [b"\x00\xff", None], pa.binary(), None),
    (pa.binary(3), [b"\x00\xff\x01", None], SAME, None),
    (pa.uuid(), [uuid.UUID(int=5), None], pa.binary(16), [uuid.UUID(int=5).bytes, None]),
    (pa.date32(), [datetime.date(1, 1, 1), datetime.date(9999, 12, 31), None], SAME, None),
    (pa.date64(), [datetime.date(2024, 5, 1), None], pa.date32(), None),
    (pa.time32("s"), [datetime.time(1, 2, 3), None], pa.time32("ms"), None),
    (pa.time32("ms"), [datetime.time(1, 2, 3, 4000), None], SAME, None),
    (pa.time64("us"), [datetime.time(1, 2, 3, 4), None], SAME, None),
    (pa.time64("ns"), [BIG, None], pa.int64(), [BIG, None]),
    (pa.timestamp("s"), [MOMENT, None], pa.timestamp("ms"), None),
    (pa.timestamp("ms"), [MOMENT, None], SAME, None),
    (pa.timestamp("us"), [MOMENT, datetime.datetime(1, 1, 1), None], SAME, None),
    (pa.timestamp("ns"), [BIG, -1, None], SAME, None),
    (pa.timestamp("ms", "UTC"), [MOMENT.replace(tzinfo=UTC), None], SAME, None),
    (pa.timestamp("us", "UTC"), [MOMENT.replace(tzinfo=UTC), None], SAME, None),
    (pa.timestamp("ns", "UTC"), [BIG, None], SAME, None),
    (pa.timestamp("us", "Europe/Rome"), [MOMENT.replace(tzinfo=UTC), None], pa.timestamp("us", "UTC"), None),
    (pa.duration("s"), [7, None], pa.int64(), [7, None]),
    (pa.duration("ms"), [BIG, None], pa.int64(), [BIG, None]),
    (pa.duration("us"), [BIG, None], pa.int64(), [BIG, None]),
    (pa.duration("ns"), [-BIG, None], pa.int64(), [-BIG, None]),
    (pa.dictionary(pa.int32(), pa.string()), ["a", "b", "a", None], pa.string(), None),
    (pa.list_(pa.int64()), [[1, None, 2], [], None], SAME, None),
    (pa.large_list(pa.string()), [["a", None], [], None], pa.list_(pa.string()), None),
    # Arrow itself cannot read a Parquet file back in which such a list is null.
    (pa.list_(pa.float32(), 2), [[1.0, 2.0], [3.0, None]], pa.list_(pa.float32()), None),
    (pa.list_(pa.timestamp("us")), [[MOMENT, None], None], SAME, None),
    (
        pa.struct(
            [("a b", pa.int32()), ("d", pa.date32()), ("deep", pa.struct([("x", pa.list_(pa.decimal128(5, 2)))]))]
        ),
        [{"a b": 1, "d": datetime.date(2024, 5, 1), "deep": {"x": [Decimal("1.25"), None]}}, None],
        SAME,
        None,
    ),
    (pa.list_(pa.struct([("a", pa.string()), ("b", pa.bool_())])), [[{"a": "x", "b": None}, None], None], SAME, None),
    (pa.map_(pa.string(), pa.int64()), [[("a", 1), ("b", None)], [], None], SAME, None),
    (pa.map_(pa.string(), pa.decimal128(5, 2)), [[("a", Decimal("1.25")), ("b", None)], None], SAME, None),
    (
        pa.map_(pa.int32(), pa.bool_()),
        [[(1, True), (2, None)], None],
        pa.list_(pa.struct([("key", pa.int32()), ("value", pa.bool_())])),
        [[{"key": 1, "value": True}, {"key": 2, "value": None}], None],
    ),
]
# What a Parquet file itself does not keep.
PARQUET = {pa.time32("s"): pa.time32("ms"), pa.timestamp("s"): pa.timestamp("ms"), pa.date64(): pa.date32()}
NAMES = [str(kind) for kind, *_ in CASES]


def read(path: Path) -> pa.RecordBatch:
    def chunks() -> Iterator[pa.RecordBatch]:
        found = plan_input(str(path))
        for split in found.splits:
            for piece in read_split(split, found.schema):
                assert not isinstance(piece, BadRows), piece.dead_letters.to_pylist()
                yield without_provenance(piece)

    return single_batch(pa.Table.from_batches(chunks()))


def through(batch: pa.RecordBatch, folder: Path, output_format: str) -> pa.RecordBatch:
    writer = Writer(str(folder), batch.schema, output_format)
    writer.write(batch)
    writer.finish()
    return read(folder)


def source(folder: Path, kind: pa.DataType, values: list[Any]) -> pa.RecordBatch:
    folder.mkdir()
    pq.write_table(pa.table({"value": pa.array(values, kind)}), folder / "a.parquet")
    return read(folder)


def plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


@pytest.mark.parametrize(("kind", "values", "_avro", "_values"), CASES, ids=NAMES)
def test_parquet_keeps_every_type(
    tmp_path: Path, kind: pa.DataType, values: list[Any], _avro: Any, _values: Any
) -> None:
    first = source(tmp_path / "in", kind, values)
    assert first.schema.field(0).type == PARQUET.get(kind, plain(kind))
    again = through(first, tmp_path / "out", "parquet")

    assert again.schema == first.schema
    assert again.column(0).equals(first.column(0))


@pytest.mark.parametrize(("kind", "values", "avro", "back"), CASES, ids=NAMES)
def test_what_becomes_of_a_type_in_avro(
    tmp_path: Path, kind: pa.DataType, values: list[Any], avro: pa.DataType | None, back: list[Any] | None
) -> None:
    first = source(tmp_path / "in", kind, values)
    avro = avro or kind

    once = through(first, tmp_path / "avro", "avro")
    assert once.schema.field(0).type == avro
    assert once.column(0).equals(pa.array(values if back is None else back, avro))

    again = through(through(once, tmp_path / "parquet", "parquet"), tmp_path / "again", "avro")
    assert again.schema == once.schema
    assert again.column(0).equals(once.column(0))


def test_polars_reads_our_avro_and_we_read_that_of_polars(tmp_path: Path) -> None:
    """Another implementation, which shares no code with ours."""
    columns = {
        "n": [1, None],
        "s": ["a", None],
        "x": [0.5, None],
        "b": [True, None],
        "d": [MOMENT.date(), None],
        "local": [MOMENT, None],
        "l": [[1, 2], None],
    }
    (batch,) = pa.table(columns).to_batches()
    writer = Writer(str(tmp_path), batch.schema, "avro")
    writer.write(batch)
    (part,) = writer.finish()

    frame = pl.read_avro(part.path)
    assert frame.to_dict(as_series=False) == columns

    frame.write_avro(tmp_path / "in.avro", compression="deflate")
    assert read(tmp_path / "in.avro").equals(batch)
