import decimal

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import given, settings
from hypothesis import strategies as st

from handlers.columnar.chunks import with_provenance
from transforms.inference.chunk_coder import ChunkCoder

CODER = ChunkCoder()


def wide_chunk(rows: int) -> pa.RecordBatch:
    numbers = np.arange(rows * 20, dtype=np.float64).reshape(20, rows)
    names = pa.array([f"name {row}" for row in range(rows)])
    batch = pa.RecordBatch.from_arrays([*map(pa.array, numbers), names], names=[*(f"f{i}" for i in range(20)), "name"])
    return with_provenance(batch, "data/a.parquet", 0)


def test_a_slice_takes_its_own_rows_along_and_no_others() -> None:
    chunk = wide_chunk(8192)
    part = chunk.slice(4000, 100)

    encoded = CODER.encode(part)

    assert len(encoded) < 30_000  # 100 rows of 20 doubles are 16,000 bytes; the chunk has 1.4 MB
    assert CODER.decode(encoded).equals(part)
    assert CODER.decode(encoded).schema == chunk.schema


def test_of_a_long_dictionary_only_the_values_in_use_go_along() -> None:
    values = [f"value number {number:08d}" for number in range(100_000)]
    indices = pa.array([7, None, 99_999, 7], pa.int32())
    column = pa.DictionaryArray.from_arrays(indices, values)
    batch = pa.RecordBatch.from_arrays([column], names=["c"])

    encoded = CODER.encode(batch)

    assert len(encoded) < 2_000
    assert CODER.decode(encoded).schema == batch.schema
    expected = ["value number 00000007", None, "value number 00099999", "value number 00000007"]
    assert CODER.decode(encoded)["c"].to_pylist() == expected


@pytest.mark.parametrize("ordered", [False, True])
def test_dictionary_types_stay_as_they_are(ordered: bool) -> None:
    column = pa.DictionaryArray.from_arrays(pa.array([2, 0], pa.int8()), ["low", "middle", "high"], ordered=ordered)
    batch = pa.RecordBatch.from_arrays([column], names=["c"])

    decoded = CODER.decode(CODER.encode(batch))

    assert decoded.schema == batch.schema
    assert decoded["c"].to_pylist() == ["high", "low"]
    assert decoded["c"].dictionary.to_pylist() == ["low", "high"]


def test_metadata_and_nested_types_come_through() -> None:
    schema = pa.schema(
        [
            pa.field("v", pa.list_(pa.float32(), 2), metadata={"unit": "m"}),
            pa.field("s", pa.struct([("a", pa.int64()), ("b", pa.list_(pa.string()))])),
            pa.field("d", pa.decimal128(5, 2)),
        ],
        metadata={"made_by": "me"},
    )
    rows = [{"v": [i, i], "s": {"a": i, "b": [str(i)]}, "d": decimal.Decimal(i)} for i in range(10)]
    part = pa.RecordBatch.from_pylist(rows, schema=schema).slice(3, 2)

    decoded = CODER.decode(CODER.encode(part))

    assert decoded.to_pylist() == rows[3:5]
    assert decoded.schema.equals(schema, check_metadata=True)


@settings(max_examples=50, deadline=None)
@given(
    values=st.lists(st.tuples(st.integers(-5, 5) | st.none(), st.text(max_size=3) | st.none(), st.sampled_from("abc"))),
    data=st.data(),
)
def test_any_slice_comes_back(values: list[tuple[int | None, str | None, str]], data: st.DataObject) -> None:
    numbers, texts, letters = zip(*values, strict=True) if values else ((), (), ())
    batch = pa.RecordBatch.from_arrays(
        [
            pa.array(numbers, pa.int64()),
            pa.array(texts, pa.string()),
            pa.array(letters, pa.string()).dictionary_encode(),
        ],
        names=["n", "t", "l"],
    )
    start = data.draw(st.integers(0, len(values)))
    part = batch.slice(start, data.draw(st.integers(0, len(values) - start)))

    decoded = CODER.decode(CODER.encode(part))

    assert decoded.schema == part.schema
    assert decoded.to_pylist() == part.to_pylist()


def split(number: int) -> list[pa.RecordBatch]:
    chunk = pa.RecordBatch.from_pydict({"n": [number, number + 1, number + 2]})
    return [chunk.slice(0, 1), chunk.slice(1, 2)]


def test_beam_takes_the_coder_for_chunks_that_are_shuffled() -> None:
    assert isinstance(beam.coders.registry.get_coder(pa.RecordBatch), ChunkCoder)
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        numbers = (
            pipeline
            | beam.Create([0, 10])
            | beam.FlatMap(split).with_output_types(pa.RecordBatch)
            | beam.Reshuffle()
            | beam.FlatMap(lambda chunk: chunk["n"].to_pylist())
        )
        assert_that(numbers, equal_to([0, 1, 2, 10, 11, 12]))
