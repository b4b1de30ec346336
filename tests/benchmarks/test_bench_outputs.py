"""Outputs that are, and that are not, those of the loop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from benchmarks.outputs import Shape, difference, read

INPUT = pa.schema([("f_0", pa.float64()), ("city", pa.string())])
EXPECTED = pa.table(
    {
        "f_0": [0.25, -1.5, 3.0],
        "city": ["Riga", None, "Bern"],
        "predicted_class": ["low", "high", "low"],
        "confidence": pa.array([0.5, 0.9, 0.7], pa.float32()),
        "model_version": ["m", "m", "m"],
    }
)


def found(folder: Path, table: pa.Table, change: Callable[[pa.Table], pa.Table]) -> str | None:
    """In what a changed output differs."""
    for name, each in (("loop", table), ("other", change(table))):
        (folder / name / "predictions").mkdir(parents=True)
        pq.write_table(each, folder / name / "predictions" / "part.parquet")
    loop, other = (read(folder / name, Shape(), INPUT) for name in ("loop", "other"))
    return difference(other, loop, Shape())


def replaced(name: str, values: list[object]) -> Callable[[pa.Table], pa.Table]:
    index = EXPECTED.schema.get_field_index(name)
    return lambda table: table.set_column(index, name, pa.array(values, table.schema.field(name).type))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda table: table.sort_by("f_0"), None),
        (lambda table: table.set_column(1, "city", pc.dictionary_encode(table["city"])), None),
        (replaced("confidence", [0.5 + 9e-7, 0.9, 0.7]), None),
        (replaced("confidence", [0.5 + 2e-6, 0.9, 0.7]), "1 rows are more than 1e-06 away"),
        (replaced("confidence", [0.5, float("nan"), None]), "2 rows are more than 1e-06 away"),
        (replaced("predicted_class", ["low", "low", "low"]), "1 rows have another predicted_class"),
        (replaced("city", ["Riga", "Oslo", "Bern"]), "1 rows have other values in columns of the input"),
        (replaced("f_0", [0.25, -1.5, 3.5]), "other rows: 1 have another f_0"),
        (lambda table: table.slice(1), "2 rows instead of 3"),
        (lambda table: pa.concat_tables([table, table]), "6 rows instead of 3"),
    ],
)
def test_difference(tmp_path: Path, change: Callable[[pa.Table], pa.Table], problem: str | None) -> None:
    assert found(tmp_path, EXPECTED, change) == problem


def test_refused_rows_and_hidden_files(tmp_path: Path) -> None:
    for name, rows in (("predictions/a", 3), ("predictions/_hidden", 3), ("dead_letters/b", 2), ("refused/c", 1)):
        path = tmp_path / f"{name}.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(EXPECTED.slice(0, rows), path)
    output = read(tmp_path, Shape(), INPUT)
    assert (output.keys.tolist(), output.refused) == ([-1.5, 0.25, 3.0], 3)


def test_lists_of_numbers(tmp_path: Path) -> None:
    shape = Shape(key="id", label=None, numbers=("embedding",))
    values = pa.array([[1.0, 2.0], [3.0, 4.0]], pa.list_(pa.float32()))
    pq.write_table(pa.table({"id": [7, 5], "embedding": values}), tmp_path / "part.parquet")
    assert read(tmp_path, shape, None).numbers.tolist() == [[3, 4], [1, 2]]
