"""The hashes that decide about rows: uniform, and independent of where and in which order rows are read."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from handlers.columnar.chunks import with_provenance
from transforms.preparation.hashes import Smallest, below, relative, row_hashes, value_hashes


def chunk(rows: int, source: str = "data/a.parquet", first: int = 0) -> pa.RecordBatch:
    return with_provenance(pa.record_batch({"x": pa.array(np.arange(rows))}), source, first)


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_uniform(seed: int) -> None:
    hashes = row_hashes(chunk(200_000), seed, "sample", "data/*.parquet")
    for shift in (60, 32, 4):  # the first, middle and last digits
        counts = np.bincount(((hashes >> np.uint64(shift)) & np.uint64(15)).astype(int), minlength=16)
        assert stats.chisquare(counts).pvalue > 1e-4
    assert len(np.unique(hashes)) == 200_000


def test_seed_purpose_and_source_are_independent() -> None:
    one = row_hashes(chunk(50_000), 0, "sample", "data")
    for other in (
        row_hashes(chunk(50_000), 1, "sample", "data"),
        row_hashes(chunk(50_000), 0, "split", "data"),
        row_hashes(chunk(50_000, "data/b.parquet"), 0, "sample", "data"),
    ):
        both = np.histogram2d(one.astype(float), other.astype(float), bins=8)[0]
        assert stats.chisquare(both.ravel()).pvalue > 1e-4


def test_the_same_row_in_another_chunk_and_folder() -> None:
    whole = row_hashes(chunk(100, "data/y=1/a.parquet"), 7, "sample", "data/*/*.parquet")
    assert row_hashes(chunk(60, "data/y=1/a.parquet", 40), 7, "sample", "data").tolist() == whole[40:].tolist()
    moved = row_hashes(chunk(100, "/mnt/copy/y=1/a.parquet"), 7, "sample", "/mnt/copy/")
    assert moved.tolist() == whole.tolist()


def test_relative_sources() -> None:
    assert relative("data/a.parquet", "data/a.parquet") == "a.parquet"
    assert relative("data/a.parquet", "./data/*.parquet") == "a.parquet"
    assert relative("gs://bucket/data/y=1/a.parquet", "gs://bucket/data") == "y=1/a.parquet"
    assert relative("/old/run/a.parquet", "scored/dead_letters") == "/old/run/a.parquet"
    assert relative("a.parquet", "*.parquet") == "a.parquet"


def test_values() -> None:
    texts, numbers = pa.array(["a", "b", None, "a"]), pa.array([1, 1, 2, 1])
    hashes = value_hashes([texts, numbers], 0, "split")
    assert hashes[0] == hashes[3]
    assert len(set(hashes.tolist())) == 3
    assert value_hashes([texts.dictionary_encode(), numbers.cast(pa.int32())], 0, "split").tolist() == hashes.tolist()
    assert value_hashes([texts, numbers], 1, "split").tolist() != hashes.tolist()
    swapped = value_hashes([pa.array(["1", "2"]), pa.array(["2", "1"])], 0, "split")
    assert swapped[0] != swapped[1]


def test_a_share() -> None:
    hashes = np.array([0, 2**62, 2**63, 2**64 - 1], dtype=np.uint64)
    assert below(hashes, 0).tolist() == [False] * 4
    assert below(hashes, 0.5).tolist() == [True, True, False, False]
    assert below(hashes, 1).tolist() == [True] * 4


@given(
    numbers=st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 5), min_size=1, max_size=60),
    count=st.integers(1, 70),
    step=st.integers(1, 20),
)
def test_the_smallest_are_never_lost(numbers: list[int], count: int, step: int) -> None:
    array = np.array(numbers, dtype=np.uint64)
    smallest = Smallest(count)
    kept = np.concatenate(
        [array[start : start + step][smallest.add(array[start : start + step])] for start in range(0, len(array), step)]
    )
    wanted = sorted(numbers)[:count]
    assert sorted(kept.tolist())[:count] == wanted
    if len(numbers) >= count:
        assert int(smallest.settle()) == wanted[-1]
        assert sorted(each for each in kept.tolist() if each <= int(smallest.limit))[:count] == wanted


def test_few_numbers_are_held() -> None:
    random = np.random.default_rng(0)
    smallest, passed = Smallest(10_000), 0
    for _ in range(50):
        passed += int(smallest.add(random.integers(0, 2**64, 65_536, dtype=np.uint64)).sum())
        assert smallest._held <= 2 * 10_000 + 65_536
    assert passed < 65_536 + 10_000 * (2 + np.log2(50 * 65_536 / 10_000))
