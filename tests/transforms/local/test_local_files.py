"""`torchbeam.score` of files: what the command gives on the same files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import torch
from small_models import Touchy

import torchbeam
from handlers.columnar.chunks import DEAD_LETTER
from handlers.model.directory import ModelDir
from pipelines import score as command
from torchbeam import Trust, UsageError
from transforms.sinks.formats import sink

ROWS = 300


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelDir:
    folder = tmp_path_factory.mktemp("local_files") / "model"
    inputs = [{"name": "x", "columns": ["a", "b"]}]
    return ModelDir.save(Touchy(), folder, task="classification", labels=["no", "yes"], inputs=inputs)


def table(start: int = 0, rows: int = ROWS) -> pa.Table:
    """Rows of which 3 is null, 5 makes the model raise, and 7 makes it give NaN."""
    a: list[float | None] = [number / 10 - 20 for number in range(rows)]
    a[3], a[5], a[7] = None, 13.0, 14.0
    return pa.table({"id": range(start, start + rows), "a": a, "b": [number / 100 for number in range(rows)]})


def command_of(model: ModelDir, data: str, output: Path) -> tuple[pa.Table, pa.Table, dict[str, Any]]:
    """What the command gives, in the order of files and rows."""
    assert command.main([f"--input={data}", f"--model={model.path}", f"--output={output}"]) == 0
    predictions, dead = (ds.dataset(output / name).to_table().sort_by("id") for name in ("predictions", "dead_letters"))
    return predictions, dead, json.loads((output / "report.json").read_text())


def assert_same(found: torchbeam.ScoreResult, expected: tuple[pa.Table, pa.Table, dict[str, Any]]) -> None:
    predictions, dead, report = expected
    assert found.predictions.schema.names == predictions.schema.names
    for name in predictions.schema.names:
        one, other = (each[name].to_pylist() for each in (found.predictions.sort_by("id"), predictions))
        assert one == (pytest.approx(other, abs=1e-6) if name == "confidence" else other), name
    assert found.dead_letters.sort_by("id").to_pylist() == dead.to_pylist()
    for name in ("rows_read", "rows_scored", "rows_dropped", "rows_dead", "files_read", "files_dead", "dead_by_error"):
        assert found.report[name] == report[name], name


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl", "avro"])
def test_it_gives_what_the_command_gives(model: ModelDir, tmp_path: Path, kind: str) -> None:
    """Two files, the second with a value that does not fit and a break at its end, where the format can have them."""
    folder = tmp_path / "in" / "day=7"
    folder.mkdir(parents=True)
    for name, start in (("x", 0), ("y", 1000)):
        with pa.OSFile(str(folder / f"{name}.{kind}"), "wb") as file:
            encoder = sink(kind).encoder(file, table().schema)
            encoder.write(table(start))
            encoder.close()
    second = folder / f"y.{kind}"
    if kind in ("csv", "jsonl"):
        second.write_text(second.read_text().replace("-10.5", '"n/a"'))
    else:
        second.write_bytes(second.read_bytes()[: second.stat().st_size // 2])
    expected = command_of(model, str(tmp_path / "in"), tmp_path / "out")
    found = torchbeam.score(model, tmp_path / "in", device="cpu")
    assert_same(found, expected)
    assert set(found.predictions["day"].to_pylist()) == {7}
    failed_files = tmp_path / "out" / "failed_files.jsonl"
    failed = [json.loads(line) for line in failed_files.read_text().splitlines()] if failed_files.exists() else []
    assert list(found.failed_files) == failed
    assert len(failed) == (0 if kind in ("csv", "jsonl") else 1)
    assert (
        ("; 1 files could not be read" in repr(found)) == bool(failed) == ("could not be read" in found._repr_html_())
    )


def test_order_replay_and_patterns(model: ModelDir, tmp_path: Path) -> None:
    """Rows and dead letters come in the order of files and rows, those that could not be read among the others."""
    values = {2: "", 4: "x", 6: "14"}  # the model raises for 13, and gives NaN for 14
    lines = [f"{number},{values.get(number, number)},1" for number in range(14)]
    (tmp_path / "1.csv").write_text("\n".join(["id,a,b", *lines]))
    (tmp_path / "2.csv").write_text("id,a,b\n100,1,1\n101,x,1\n")
    (tmp_path / "3.txt").write_text("id,a,b\n200,1,1\n")
    found = torchbeam.score(model, str(tmp_path / "*.csv"), device="cpu", columns=["id"])
    dead = found.dead_letters[DEAD_LETTER].to_pylist()
    assert [(Path(each["source"]).name, each["row"]) for each in dead] == [
        ("1.csv", 2),
        ("1.csv", 4),
        ("1.csv", 6),
        ("1.csv", 13),
        ("2.csv", 1),
    ]
    good = [number for number in range(14) if number not in (2, 4, 6, 13)]
    assert found.predictions["id"].to_pylist() == [*good, 100]
    assert found.predictions.schema.names == ["id", "predicted_class", "confidence", "model_version"]
    by_hand = Touchy()(torch.tensor([[float(number), 1.0] for number in [*good, 1]])).softmax(1).amax(1)
    assert found.predictions["confidence"].to_pylist() == pytest.approx(by_hand.tolist(), abs=1e-6)

    pq.write_table(found.dead_letters, tmp_path / "dead.parquet")
    again = torchbeam.score(model, tmp_path / "dead.parquet", device="cpu")
    assert again.dead_letters[DEAD_LETTER].to_pylist() == dead

    text = torchbeam.score(model, tmp_path / "3.txt", device="cpu", input_format="csv")
    assert text.predictions["id"].to_pylist() == [200]


def test_many_chunks(model: ModelDir, tmp_path: Path) -> None:
    """Rows of several chunks and splits come once, in their order."""
    rows = 70_000
    whole = pa.table({"id": range(rows), "a": [0.5] * rows, "b": [None] + [1.0] * (rows - 1)})
    pq.write_table(whole, tmp_path / "x.parquet", row_group_size=20_000)
    found = torchbeam.load(model, device="cpu").score(tmp_path / "x.parquet", columns=["id"])
    assert found.predictions["id"].to_pylist() == list(range(1, rows))
    assert found.report["rows_read"] == rows
    assert found.dead_letters["id"].to_pylist() == [0]


def test_no_rows(model: ModelDir, tmp_path: Path) -> None:
    pq.write_table(table().slice(0, 0), tmp_path / "x.parquet")
    found = torchbeam.score(model, tmp_path, device="cpu")
    assert found.predictions.schema.names == ["id", "a", "b", "predicted_class", "confidence", "model_version"]
    assert (found.report["rows_read"], found.report["files_read"], found.dead_letters.num_rows) == (0, 1, 0)


def test_wrong_use_is_one_line(model: ModelDir, tmp_path: Path) -> None:
    pq.write_table(table(), tmp_path / "x.parquet")
    pq.write_table(table().select(["id", "a"]), tmp_path / "no_b.parquet")
    (tmp_path / "z.json").write_text('{"a": 1, "b": 1}\n')
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    coded = shutil.copytree(model.path, tmp_path / "coded")
    (coded / "code").mkdir()
    (coded / "code" / "own.py").write_text("")
    loaded = torchbeam.load(model, device="cpu")
    cases: list[tuple[Any, Any, dict[str, Any], str]] = [
        (model, tmp_path / "none.csv", {}, "no file matches"),
        (model, "", {}, "data is the path ''; give a file"),
        (model, tmp_path / "*.*", {}, "mixes formats"),
        (model, tmp_path / "broken.parquet", {}, "none of the 1 input files can be read"),
        (model, tmp_path / "no_b.parquet", {}, '"b"'),
        (model, tmp_path / "x.parquet", {"input_format": "xml"}, "is not known"),
        (model, "ftp://host/x.csv", {}, "data ftp://host/x.csv: paths of ftp:// are not read here"),
        (model, table(), {"input_format": "csv"}, "input_format is for files"),
        (coded, tmp_path / "x.parquet", {"trust": Trust(code=False)}, "brings code of its own"),
        (model.path, tmp_path / "x.parquet", {"trust": Trust(version="0" * 12)}, "has version"),
        (model, table(), {"trust": Trust()}, "give it to ModelDir"),
        (loaded, table(), {"trust": Trust()}, "loaded already"),
    ]
    for given, data, options, message in cases:
        with pytest.raises(UsageError, match=message) as caught:
            torchbeam.score(given, data, **options)
        assert "\n" not in str(caught.value)
