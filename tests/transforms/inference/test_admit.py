"""Chunks from anywhere: their columns, their provenance, and the rows that do not fit."""

import pyarrow as pa
import pytest

from handlers.columnar.chunks import ROW, SOURCE, chunk_schema, refusals, with_provenance, without_provenance
from handlers.errors import UsageError
from transforms.inference.admit import admit

SCHEMA = pa.schema({"a": pa.int64(), "b": pa.string()})
GOOD = pa.record_batch({"a": [1, 2, 3], "b": ["x", "y", None]}, SCHEMA)


def test_rows_get_a_source_of_their_chunk_and_their_index() -> None:
    one, two = (admit(GOOD, SCHEMA, frozenset({"a"}), "orders") for _ in range(2))
    assert one.schema.equals(chunk_schema(SCHEMA))
    assert without_provenance(one).equals(GOOD)
    assert one.column(ROW).to_pylist() == [0, 1, 2]
    sources = [set(each.column(SOURCE).to_pylist()) for each in (one, two)]
    assert all(len(each) == 1 and next(iter(each)).startswith("orders#") for each in sources)
    assert sources[0] != sources[1]  # the same rows twice are two chunks


def test_a_chunk_of_a_source_is_the_same_object() -> None:
    chunk = with_provenance(GOOD, "in.csv", 7)
    assert admit(chunk, SCHEMA, frozenset(), "p") is chunk


def test_provenance_of_ones_own_in_plain_types() -> None:
    batch = GOOD.append_column(SOURCE, pa.array(["u", "u", "v"])).append_column(ROW, pa.array([5, 6, 0], pa.int32()))
    chunk = admit(batch, SCHEMA, frozenset(), "p")
    assert chunk.schema.equals(chunk_schema(SCHEMA))
    assert chunk.column(SOURCE).to_pylist() == ["u", "u", "v"]
    assert chunk.column(ROW).to_pylist() == [5, 6, 0]


def test_tables_are_taken_and_other_columns_left_out() -> None:
    table = pa.table({"extra": [0, 0, 0], "b": ["x", "y", None], "a": pa.chunked_array([[1], [2, 3]])})
    chunk = admit(table, SCHEMA, frozenset({"a"}), "p")
    assert without_provenance(chunk).equals(GOOD)
    assert refusals(chunk) == {}


def test_values_that_do_not_fit_cost_their_row() -> None:
    batch = pa.record_batch({"a": ["1", "oops", "3"], "b": ["x", "y", "z"]})
    chunk = admit(batch, SCHEMA, frozenset({"a"}), "p")
    assert chunk.column("a").to_pylist() == [1, None, 3]
    (row, failure), *others = refusals(chunk).items()
    assert (row, others, failure.stage, failure.type) == (1, [], "read", "ValueError")
    assert failure.message == 'column "a" holds "oops" in row 1 of its chunk; int64 was expected'
    assert failure.raw == '{"a": "oops", "b": "y"}'


def test_an_absent_column_is_null_and_a_needed_one_costs_all_rows() -> None:
    without_b = admit(GOOD.select(["a"]), SCHEMA, frozenset({"a"}), "p")
    assert without_b.column("b").to_pylist() == [None] * 3
    assert refusals(without_b) == {}
    without_a = admit(GOOD.select(["b"]), SCHEMA, frozenset({"a"}), "p")
    found = refusals(without_a)
    assert {row: each.type for row, each in found.items()} == dict.fromkeys(range(3), "MissingColumn")
    assert 'no column "a"' in found[0].message
    assert found[1].raw == '{"b": "y"}'


@pytest.mark.parametrize(
    ("element", "says"),
    [
        ({"a": 1}, "this element is a dict"),
        (pa.RecordBatch.from_arrays([[1], [2]], names=["a", "a"]), 'more than one column "a"'),
        (GOOD.append_column(ROW, pa.array([1, 2, 3])), "__row__ alone"),
        (GOOD.append_column(SOURCE, pa.array(["u"] * 3)).append_column(ROW, pa.array(["x"] * 3)), "must be text"),
    ],
)
def test_what_is_no_chunk(element: object, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        admit(element, SCHEMA, frozenset(), "p")


def test_no_rows() -> None:
    assert admit(SCHEMA.empty_table(), SCHEMA, frozenset({"a"}), "p").num_rows == 0
    assert admit(pa.table({"c": pa.array([], pa.int8())}), SCHEMA, frozenset({"a"}), "p").num_rows == 0
