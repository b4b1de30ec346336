import apache_beam as beam
import pyarrow as pa
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms.window import FixedWindows, SlidingWindows, TimestampedValue
from hypothesis import given, settings
from hypothesis import strategies as st

from handlers.columnar.rechunker import Rechunker
from transforms.inference.rechunk import Rechunk

MUCH = 2**30


def chunk(start: int, rows: int) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({"n": pa.array(range(start, start + rows), pa.int64())})


def rechunk(chunks: list[pa.RecordBatch], rows: int, max_bytes: int = MUCH) -> list[pa.RecordBatch]:
    rechunker = Rechunker(rows, max_bytes)
    return [found for given in chunks for found in rechunker.push(given)] + list(rechunker.flush())


def sizes(chunks: list[pa.RecordBatch]) -> list[int]:
    return [found.num_rows for found in chunks]


def test_small_chunks_are_merged_and_large_ones_cut() -> None:
    found = rechunk([chunk(0, 3), chunk(3, 4), chunk(7, 25), chunk(32, 1)], rows=10)

    assert sizes(found) == [10, 10, 10, 3]
    assert [number for part in found for number in part["n"].to_pylist()] == list(range(33))


def test_a_chunk_of_the_right_size_is_the_same_object() -> None:
    given = chunk(0, 10)

    assert rechunk([given], rows=10)[0] is given


def test_full_chunks_after_a_smaller_one_are_not_copied() -> None:
    given = [chunk(0, 7), chunk(7, 10), chunk(17, 10), chunk(27, 4)]

    found = rechunk(given, rows=10)

    assert all(one is other for one, other in zip(found, given, strict=True))


def test_cutting_copies_nothing() -> None:
    given = chunk(0, 100)

    found = rechunk([given], rows=10)

    assert sizes(found) == [10] * 10
    assert {part["n"].buffers()[1].address for part in found} == {given["n"].buffers()[1].address}


def test_bytes_are_a_limit_too_but_one_row_always_passes() -> None:
    assert sizes(rechunk([chunk(0, 100)], rows=1000, max_bytes=240)) == [30, 30, 30, 10]  # 8 bytes a row
    assert sizes(rechunk([chunk(0, 20), chunk(20, 20)], rows=1000, max_bytes=240)) == [30, 10]
    assert sizes(rechunk([chunk(0, 3)], rows=1000, max_bytes=1)) == [1, 1, 1]


def test_empty_chunks_vanish() -> None:
    assert rechunk([chunk(0, 0), chunk(0, 0)], rows=10) == []
    assert sizes(rechunk([chunk(0, 4), chunk(0, 0), chunk(4, 4)], rows=10)) == [8]


def test_schemas_with_a_common_type_are_merged() -> None:
    found = rechunk([chunk(0, 2), pa.RecordBatch.from_pydict({"n": [0.5], "more": ["x"]})], rows=10)

    assert [part.to_pylist() for part in found] == [
        [{"n": 0.0, "more": None}, {"n": 1.0, "more": None}, {"n": 0.5, "more": "x"}]
    ]


def test_schemas_without_one_stay_apart_and_in_order() -> None:
    texts = pa.RecordBatch.from_pydict({"n": ["a", "b"]})

    found = rechunk([chunk(0, 1), chunk(1, 1), texts, texts, chunk(2, 1)], rows=10)

    assert [part["n"].to_pylist() for part in found] == [[0, 1], ["a", "b", "a", "b"], [2]]


def test_a_value_that_the_common_type_cannot_hold_keeps_its_chunk_apart() -> None:
    exact = 2**60 + 1

    found = rechunk([chunk(exact, 1), pa.RecordBatch.from_pydict({"n": [0.5]})], rows=10)

    assert [number for part in found for number in part["n"].to_pylist()] == [exact, 0.5]


@settings(max_examples=200, deadline=None)
@given(
    given=st.lists(st.integers(0, 40), max_size=12),
    rows=st.integers(1, 30),
    max_bytes=st.integers(1, 400),
)
def test_no_row_is_lost_moved_or_there_twice(given: list[int], rows: int, max_bytes: int) -> None:
    starts = [sum(given[:index]) for index in range(len(given))]

    found = rechunk([chunk(start, size) for start, size in zip(starts, given, strict=True)], rows, max_bytes)

    assert [number for part in found for number in part["n"].to_pylist()] == list(range(sum(given)))
    assert all(0 < size <= rows for size in sizes(found))
    full = min(rows, max(max_bytes // 8, 1))
    passed = [size == rows or 0.9 * max_bytes <= 8 * size <= max_bytes for size in sizes(found)]
    assert all(size == full or following for size, following in zip(sizes(found), passed[1:], strict=False))


def numbers(part: pa.RecordBatch, window: beam.transforms.window.BoundedWindow = beam.DoFn.WindowParam) -> tuple:
    return (float(window.start), part["n"].to_pylist())


def test_chunks_of_two_windows_are_not_merged() -> None:
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        found = (
            pipeline
            | beam.Create([0, 1, 10, 11, 2], reshuffle=False)
            | beam.Map(lambda second: TimestampedValue(chunk(second, 1), second)).with_output_types(pa.RecordBatch)
            | beam.WindowInto(FixedWindows(10))
            | Rechunk(2, MUCH)
            | beam.Map(numbers)
        )
        assert_that(found, equal_to([(0.0, [0, 1]), (10.0, [10, 11]), (0.0, [2])]))


def test_a_chunk_in_several_windows_is_in_each_of_them() -> None:
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        found = (
            pipeline
            | beam.Create([12, 13], reshuffle=False)
            | beam.Map(lambda second: TimestampedValue(chunk(second, 1), second)).with_output_types(pa.RecordBatch)
            | beam.WindowInto(SlidingWindows(10, 5))
            | Rechunk(100, MUCH)
            | beam.Map(numbers)
        )
        assert_that(found, equal_to([(5.0, [12, 13]), (10.0, [12, 13])]))


def test_in_a_pipeline_a_bundle_is_brought_to_size() -> None:
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        found = (
            pipeline
            | beam.Create([0])
            | beam.FlatMap(lambda _: [chunk(0, 7), chunk(7, 7), chunk(14, 7)]).with_output_types(pa.RecordBatch)
            | "to 10" >> Rechunk(10, MUCH)
            | "again" >> Rechunk(10, MUCH)
            | beam.Map(lambda part: part.num_rows)
        )
        assert_that(found, equal_to([10, 10, 1]))
