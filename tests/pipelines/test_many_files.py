"""The command on 300 small files, ten of them bad: every row and every file has its account."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import torch

from handlers.columnar.scorer import Scorer
from handlers.model.directory import ModelDir
from pipelines import score
from transforms.sinks.write import _Roll

FILES, ROWS = 300, 3
CUT, LACKING, EMPTY, ODD = (7, 77, 150, 299), (0, 100), (30, 31), (40, 240)  # ten files


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that gives 2x + 1."""
    net = torch.nn.Linear(1, 1)
    with torch.no_grad():
        net.weight.fill_(2.0)
        net.bias.fill_(1.0)
    folder = tmp_path_factory.mktemp("line") / "line"
    ModelDir.save(
        net,
        folder,
        task="regression",
        inputs=[{"name": "input", "columns": ["x"]}],
        arguments={"in_features": 1, "out_features": 1},
    )
    return folder


def make_files(folder: Path, kind: str) -> None:
    """File i holds the ids from 3i on, in the folder of its hundred; x is id / 4, and none of id 10, 20, 30, …"""
    for number in range(FILES):
        ids = [] if number in EMPTY else list(range(ROWS * number, ROWS * number + ROWS))
        x = pa.array([None if id_ % 10 == 0 else id_ / 4 for id_ in ids], pa.float64())
        columns = {"id": pa.array(ids, pa.int64()), "x": x}
        if number in LACKING:
            del columns["x"]
        file = folder / f"hundred={number // 100}" / f"{number:03}.{kind}"
        file.parent.mkdir(parents=True, exist_ok=True)
        table = pa.table(columns)
        if kind == "parquet":
            pq.write_table(table if number not in ODD else table.select(["x", "id"]), file)
        else:
            pacsv.write_csv(table, file)
        if number in CUT:
            whole = file.read_bytes()
            file.write_bytes(whole[:-20] if kind == "parquet" else whole[:-1] + b',"')
        elif number in ODD and kind == "csv":
            file.write_text(file.read_text() + "oops,nothing\n")


def read(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = ds.dataset(sorted(folder.glob("part-*.parquet"))).to_table().to_pylist()
    return sorted(rows, key=lambda row: (row["id"] is None, row["id"] or 0))


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_every_row_and_file_has_its_account(kind: str, line: Path, tmp_path: Path) -> None:
    make_files(tmp_path / "in", kind)
    out = tmp_path / "out"
    assert score.main([f"--input={tmp_path / 'in'}", f"--model={line}", f"--output={out}"]) == 0

    # A Parquet file without its end has no rows; a CSV file has those before the break.
    kept = {number: ROWS for number in range(FILES) if number not in (*LACKING, *EMPTY)}
    kept |= dict.fromkeys(CUT, 0 if kind == "parquet" else ROWS - 1)
    ids = [ROWS * number + row for number in sorted(kept) for row in range(kept[number])]
    without_x = [id_ for id_ in ids if id_ % 10 == 0]
    unreadable = ODD if kind == "csv" else ()
    report = json.loads((out / "report.json").read_text())
    assert report["rows_read"] == len(ids) + len(unreadable)
    assert report["rows_scored"] == len(ids) - len(without_x)
    assert report["rows_dead"] == len(without_x) + len(unreadable)
    assert (report["files_read"], report["files_dead"]) == (FILES - 6, 6)

    failed = [json.loads(each) for each in (out / "failed_files.jsonl").read_text().splitlines()]
    assert [(each["path"], each["rows"]) for each in failed] == [
        (str(tmp_path / "in" / f"hundred={number // 100}" / f"{number:03}.{kind}"), kept.get(number, 0))
        for number in sorted((*CUT, *LACKING))
    ]
    assert all(each["error"] for each in failed)

    predictions = read(out / "predictions")
    assert [row["id"] for row in predictions] == [id_ for id_ in ids if id_ % 10]
    assert [row["prediction"] for row in predictions] == [row["id"] / 2 + 1 for row in predictions]
    assert all(row["hundred"] == row["id"] // (100 * ROWS) for row in predictions)

    def origin(number: int) -> str:
        return str(tmp_path / "in" / f"hundred={number // 100}" / f"{number:03}.{kind}")

    dead = read(out / "dead_letters")
    assert [
        (row["id"], row["hundred"], row["dead_letter"]["source"], row["dead_letter"]["row"]) for row in dead
    ] == sorted((id_, id_ // (100 * ROWS), origin(id_ // ROWS), id_ % ROWS) for id_ in without_x) + [
        (None, number // 100, origin(number), ROWS) for number in unreadable
    ]


def test_limit_stops_within_the_files(line: Path, tmp_path: Path) -> None:
    make_files(tmp_path / "in", "parquet")
    out = tmp_path / "out"
    # Files 1 to 6 hold 18 rows; file 0 lacks the column, and its rows count for the limit all the same.
    assert score.main([f"--input={tmp_path / 'in'}", f"--model={line}", f"--output={out}", "--limit=20"]) == 0
    report = json.loads((out / "report.json").read_text())
    assert [row["id"] for row in read(out / "predictions")] == [id_ for id_ in range(ROWS, 20) if id_ % 10]
    assert (report["rows_read"], report["rows_dead"], report["files_dead"]) == (17, 1, 1)


def test_chunk_bytes_bounds_what_goes_through_a_run(
    line: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of 0.1 MB, of which 1,000 are sampled by number: chunks, the sample and the groups of the sinks are bounded."""
    columns = {"id": range(60), "x": [0.5] * 60, "text": ["y" * 100_000] * 60}
    pq.write_table(pa.table(columns), tmp_path / "in.parquet")
    sizes: dict[str, list[int]] = {"scored": [], "written": []}
    score_chunk, write_group = Scorer.score, _Roll.write

    def scored(self: Scorer, chunk: pa.RecordBatch) -> Any:
        sizes["scored"].append(chunk.nbytes)
        return score_chunk(self, chunk)

    def written(self: _Roll, batches: list[pa.RecordBatch]) -> None:
        sizes["written"].append(sum(batch.nbytes for batch in batches))
        write_group(self, batches)

    monkeypatch.setattr(Scorer, "score", scored)
    monkeypatch.setattr(_Roll, "write", written)
    out = tmp_path / "out"
    arguments = [f"--input={tmp_path / 'in.parquet'}", f"--model={line}", f"--output={out}", "--chunk_bytes=1MB"]
    assert score.main(arguments) == 0
    assert [row["id"] for row in read(out / "predictions")] == list(range(60))
    for step, found in sizes.items():
        assert 500_000 < max(found) <= 1_000_000, step
        assert len(found) >= 6, step
