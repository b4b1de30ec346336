"""The merge: the rows of the smallest hashes, in their order, whatever files they come from; a uniform sample."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from handlers.columnar.chunks import with_provenance
from handlers.train.prepared import Shards
from transforms.preparation import merge as merging
from transforms.preparation.merge import merge
from transforms.preparation.spill import HELD_OUT, PRIORITY, Sampling, in_order, with_hashes

SCHEMA = pa.schema([("x", pa.int64())])


def spilled(folder: Path, name: str, rows: int, sampling: Sampling, chunk_rows: int = 50) -> tuple[str, pa.Table]:
    """A file as the workers write it, of rows numbered from 0, and all its rows."""
    chunk = with_provenance(pa.record_batch({"x": pa.array(np.arange(rows))}), f"data/{name}", 0)
    batches = []
    for start in range(0, rows, chunk_rows):
        piece = chunk.slice(start, chunk_rows)
        batch = with_hashes(piece.select(["x"]), piece, sampling)
        batches.append(batch.take(pa.array(in_order(batch))))
    path = folder / f"{name}.arrow"
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, batches[0].schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return str(path), pa.Table.from_batches(batches)


def rows_of(folder: Path, part: str) -> list[int]:
    shards = Shards(sorted((folder / part).iterdir()))
    return [row for batch in shards.batches(1000) for row in batch.column("x").to_pylist()]


@settings(max_examples=30)
@given(
    sizes=st.lists(st.integers(1, 200), min_size=1, max_size=4),
    limit=st.none() | st.integers(1, 500),
    range_bytes=st.sampled_from([100, 1000, 1 << 20]),
)
def test_the_same_as_sorting_all_of_them(sizes: list[int], limit: int | None, range_bytes: int) -> None:
    sampling = Sampling(seed=3, pattern="data", rows=limit, validation=0.3)
    with tempfile.TemporaryDirectory() as scratch, pytest.MonkeyPatch.context() as patched:
        patched.setattr(merging, "RANGE_BYTES", range_bytes)
        folder = Path(scratch)
        files = [spilled(folder, str(index), size, sampling) for index, size in enumerate(sizes)]
        merged = merge([path for path, _ in files][::-1], SCHEMA, folder / "out", rows=limit)
        whole = pa.concat_tables([table for _, table in files]).sort_by(PRIORITY).slice(0, limit)
        held_out = np.array(whole[HELD_OUT].to_pylist(), dtype=bool)
        wanted = whole["x"].to_numpy()
        assert rows_of(folder / "out", "train") == wanted[~held_out].tolist()
        assert rows_of(folder / "out", "validation") == wanted[held_out].tolist()
        assert (merged.train, merged.validation) == (int((~held_out).sum()), int(held_out.sum()))


def test_every_row_is_sampled_equally_often(tmp_path: Path) -> None:
    """40 of 120 rows of two files, by 250 seeds; also the first of the order, and the part, are uniform."""
    sampled, first, trained = np.zeros(120), np.zeros(120), np.zeros(120)
    for seed in range(250):
        sampling = Sampling(seed=seed, pattern="data", rows=40, validation=0.25)
        files = [spilled(tmp_path, name, 60, sampling)[0] for name in ("a", "b")]
        both = [pa.ipc.open_file(file).read_all() for file in files]
        for index, table in enumerate(both):  # which file a row is of
            batches = table.set_column(0, "x", pa.array(table["x"].to_numpy() + 60 * index)).to_batches()
            with pa.OSFile(files[index], "wb") as file, pa.ipc.new_file(file, batches[0].schema) as writer:
                for batch in batches:
                    writer.write_batch(batch)
        merge(files, SCHEMA, tmp_path / "out", rows=40)
        train, validation = rows_of(tmp_path / "out", "train"), rows_of(tmp_path / "out", "validation")
        assert len(train) + len(validation) == 40
        np.add.at(sampled, train + validation, 1)
        np.add.at(trained, train, 1)
        first[train[0]] += 1
    # Drawn without replacement: the variance of a count is that of a binomial; the counts sum to a constant.
    expected = 250 * 40 / 120
    statistic = ((sampled - expected) ** 2 / (expected * (1 - 40 / 120))).sum() * (119 / 120)
    assert 1e-4 < stats.chi2.sf(statistic, 119) < 1 - 1e-4
    assert stats.chisquare(trained).pvalue > 1e-4
    assert stats.chisquare(first).pvalue > 1e-4
    assert stats.binomtest(int(trained.sum()), 250 * 40, 0.75).pvalue > 1e-4


def test_no_rows(tmp_path: Path) -> None:
    merged = merge([], SCHEMA, tmp_path)
    assert (merged.train, merged.validation, merged.fingerprint["rows"]) == (0, 0, 0)
    assert rows_of(tmp_path, "train") == []
