"""Prepared folders: rows in any order from memory-mapped shards, and one line for a broken folder."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from handlers.errors import UsageError
from handlers.train.prepared import ABOUT, Prepared, Shards, write_about, write_shards

SCHEMA = pa.schema([("x", pa.int64()), ("name", pa.string()), ("label", pa.string())])


def batch(start: int, rows: int) -> pa.RecordBatch:
    numbers = range(start, start + rows)
    names = [None if number % 7 == 0 else f"row {number}" for number in numbers]
    return pa.RecordBatch.from_pydict({"x": list(numbers), "name": names, "label": ["a"] * rows}, schema=SCHEMA)


def folder_of(path: Path, train: list[pa.RecordBatch], validation: list[pa.RecordBatch], **about: object) -> Path:
    rows = {
        "train": write_shards(path / "train", SCHEMA, train),
        "validation": write_shards(path / "validation", SCHEMA, validation),
    }
    write_about(path, {"label": "label", "rows": rows, **about})
    return path


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """100 rows in batches of 30, 0, 25 and 45 rows, and two files."""
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder / "a", SCHEMA, [batch(0, 30), batch(30, 0), batch(30, 25)])
    write_shards(folder / "b", SCHEMA, [batch(55, 45)])
    return Shards([folder / "a/part-00000.arrow", folder / "b/part-00000.arrow"])


@given(indices=st.lists(st.integers(0, 99), max_size=40))
def test_rows_come_in_the_order_of_their_indices(shards: Shards, indices: list[int]) -> None:
    taken = shards.take(np.array(indices, dtype=np.int64))
    assert taken.schema.equals(SCHEMA)
    assert taken.column("x").to_pylist() == indices
    assert taken.column("name").to_pylist() == [None if each % 7 == 0 else f"row {each}" for each in indices]


@given(rows=st.integers(1, 120))
def test_batches_are_all_rows_in_order(shards: Shards, rows: int) -> None:
    batches = list(shards.batches(rows))
    assert [row for each in batches for row in each.column("x").to_pylist()] == list(range(100))
    assert [each.num_rows for each in batches[:-1]] == [rows] * (len(batches) - 1)


def test_an_index_that_is_not_there(shards: Shards) -> None:
    for index in (-1, 100):
        with pytest.raises(IndexError, match="there are 100 rows; indices are from 0 to 99"):
            shards.take(np.array([index]))


def test_a_data_loader_draws_every_row_once(shards: Shards) -> None:
    loader = DataLoader(shards, batch_size=16, shuffle=True, collate_fn=lambda rows: rows)
    batches = list(loader)
    assert [each.num_rows for each in batches] == [16] * 6 + [4]
    drawn = [row for each in batches for row in each.column("x").to_pylist()]
    assert sorted(drawn) == list(range(100))
    assert drawn != list(range(100))


def test_shards_travel_as_their_paths(shards: Shards) -> None:
    pickled = pickle.dumps(shards)
    assert len(pickled) < 1000
    again = pickle.loads(pickled)
    assert len(again) == 100
    assert again[57].to_pylist() == [{"x": 57, "name": "row 57", "label": "a"}]


def test_rows_are_mapped_and_not_read(shards: Shards) -> None:
    before = pa.total_allocated_bytes()
    first = next(shards.batches(10))
    assert first.num_rows == 10
    assert pa.total_allocated_bytes() == before


def test_many_files(tmp_path: Path) -> None:
    rows = write_shards(tmp_path / "train", SCHEMA, (batch(10 * each, 10) for each in range(5)), shard_bytes=1)
    files = sorted((tmp_path / "train").iterdir())
    assert rows == 50
    assert [file.name for file in files] == [f"part-0000{each}.arrow" for each in range(5)]
    assert Shards(files).take(np.array([49, 0])).column("x").to_pylist() == [49, 0]


def test_a_complete_folder(tmp_path: Path) -> None:
    prepared = Prepared.open(folder_of(tmp_path / "prepared", [batch(0, 9), batch(9, 3)], [], seed=4))
    assert (len(prepared.train), len(prepared.validation)) == (12, 0)
    assert (prepared.label, prepared.about["seed"]) == ("label", 4)
    assert prepared.validation.schema.equals(prepared.train.schema)
    assert list(prepared.validation.batches(5)) == []
    assert prepared.validation.take(np.array([], dtype=np.int64)).num_rows == 0


def test_broken_folders(tmp_path: Path) -> None:
    def refused(folder: Path) -> str:
        with pytest.raises(UsageError) as raised:
            Prepared.open(folder)
        assert "\n" not in str(raised.value)
        return str(raised.value)

    def made(name: str) -> Path:
        return folder_of(tmp_path / name, [batch(0, 9)], [batch(9, 3)])

    assert "does not exist" in refused(tmp_path / "none")
    unfinished = made("unfinished")
    (unfinished / ABOUT).unlink()
    assert "is not complete: it has no prepared.json" in refused(unfinished)
    for content in ("", "[]", '{"label": "label"}', '{"label": 3, "rows": {"train": 9, "validation": 3}}'):
        (unfinished / ABOUT).write_text(content)
        assert "is not that of a prepared folder" in refused(unfinished)
    lost = made("lost")
    (lost / "validation/part-00000.arrow").unlink()
    assert "validation has no part-*.arrow" in refused(lost)
    cut = made("cut")
    shard = cut / "train/part-00000.arrow"
    shard.write_bytes(shard.read_bytes()[:-20])
    assert "part-00000.arrow cannot be read" in refused(cut)
    short = made("short")
    write_shards(short / "train", SCHEMA, [batch(0, 5)])
    assert "train holds 5 rows, but prepared.json says 9" in refused(short)
    other = made("other")
    write_about(other, {"label": "price", "rows": {"train": 9, "validation": 3}})
    assert 'no column "price", its label' in refused(other)
    mixed = made("mixed")
    write_shards(mixed / "validation", pa.schema([("y", pa.int64())]), [pa.record_batch({"y": pa.array([1, 2, 3])})])
    assert "have different columns" in refused(mixed)
