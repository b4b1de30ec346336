"""The command from Parquet to Avro and from Avro to Parquet, dead letters and a broken file included."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from poisoned_table import Table, save_model

from handlers.columnar.chunks import ROW, merge, without_provenance
from pipelines import score
from transforms.sources import BadRows, plan_input, read_split

ROWS = 4_000


def run(*arguments: object) -> int:
    return score.main([str(argument) for argument in arguments])


def counts(output: Path) -> tuple[int, ...]:
    found = json.loads((output / "report.json").read_text())
    return tuple(found[f"rows_{what}"] for what in ("read", "scored", "dropped", "dead"))


def rows_of(folder: Path) -> pa.Table:
    found = plan_input(str(folder))
    pieces = [piece for split in found.splits for piece in read_split(split, found.schema)]
    return pa.table(without_provenance(merge([piece for piece in pieces if not isinstance(piece, BadRows)])))


@pytest.fixture(scope="module")
def scored(poisoned: Table, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("avro")
    pq.write_table(poisoned.table.slice(0, ROWS), folder / "in.parquet")
    arguments = (f"--input={folder / 'in.parquet'}", f"--model={model}", f"--output={folder / 'out'}")
    assert run(*arguments, "--output_format=avro") == 0
    return folder / "out"


def expected(poisoned: Table) -> list[int]:
    return [row for row in range(ROWS) if row not in poisoned.poison and row not in poisoned.dropped]


def test_predictions_in_avro_are_those_of_plain_torch(scored: Path, poisoned: Table) -> None:
    ids = expected(poisoned)
    assert all(path.suffix == ".avro" for path in (scored / "predictions").iterdir())
    found = rows_of(scored / "predictions").sort_by("id")
    assert found["id"].to_pylist() == ids
    assert found.select(poisoned.table.schema.names).equals(poisoned.table.take(pa.array(ids)))
    assert np.abs(found["confidence"].to_numpy() - poisoned.probabilities[ids].max(axis=1)).max() <= 1e-6


def test_dead_letters_in_avro_are_scored_again(scored: Path, poisoned: Table, tmp_path: Path) -> None:
    bad = {row: way for row, way in poisoned.poison.items() if row < ROWS}
    save_model(tmp_path / "mended", preprocess=["poison_rows:mended"])
    assert (
        run(f"--input={scored / 'dead_letters'}", f"--model={tmp_path / 'mended'}", f"--output={tmp_path / 'o'}") == 0
    )
    mended = sorted(row for row, way in bad.items() if way == "preprocess")
    assert counts(tmp_path / "o") == (len(bad), len(mended), 0, len(bad) - len(mended))
    letters = ds.dataset(tmp_path / "o" / "dead_letters").to_table().to_pylist()
    assert {row["id"]: row["dead_letter"]["row"] for row in letters} == {row: row for row in bad if row not in mended}


def test_avro_is_scored_up_to_where_it_breaks(scored: Path, model: Path, poisoned: Table, tmp_path: Path) -> None:
    (part,) = (scored / "predictions").iterdir()
    whole = part.read_bytes()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "broken.avro").write_bytes(whole[: len(whole) // 2])
    found = plan_input(str(tmp_path / "in"))
    columns = f"--columns={','.join(poisoned.table.schema.names)}"
    assert run(f"--input={tmp_path / 'in'}", f"--model={model}", f"--output={tmp_path / 'out'}", columns) == 0
    read, good, _, dead = counts(tmp_path / "out")
    assert 0 < read == good < len(expected(poisoned))
    assert dead == 0
    failed = json.loads((tmp_path / "out" / "failed_files.jsonl").read_text())
    assert (failed["path"], failed["rows"]) == (found.splits[0].path, read)
    assert ROW not in ds.dataset(tmp_path / "out" / "predictions").schema.names
