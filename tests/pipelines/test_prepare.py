"""`prepare`, run for real on Beam's in-process runner; which rows it gives is worked out by hand."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from scipy import stats

from handlers.columnar.chunks import with_provenance
from handlers.errors import UsageError
from handlers.model.directory import ModelDir
from handlers.train.cleaning import Cleaner, plan_cleaning
from handlers.train.config import ConfigSpec, ModelConfig
from handlers.train.prepared import Prepared
from pipelines import cli, prepare, score
from transforms.evaluation.fingerprint import Fingerprint
from transforms.preparation import merge as merging

ROWS = 3000


def run(*arguments: object, **named: object) -> int:
    return prepare.main([*map(str, arguments), *(f"--{name}={value}" for name, value in named.items())])


def ids(shards: Any, name: str = "id") -> list[int]:
    return [row for batch in shards.batches(1000) for row in batch.column(name).to_pylist()]


def write(folder: Path, files: int = 3, rows: int = ROWS) -> Path:
    """`rows` rows in `files` files: `id` counts, `x` is -2 … 2, `y` is 0 or 1, every third customer has 30 rows."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in range(files):
        numbers = np.arange(part * rows // files, (part + 1) * rows // files)
        table = {"id": numbers, "x": (numbers % 5) - 2.0, "customer": numbers % (rows // 30), "y": numbers % 2}
        pq.write_table(pa.table(table), folder / f"{part}.parquet", row_group_size=400)
    return folder


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("rows") / "in")


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def refusal(*arguments: object, **named: object) -> str:
        capsys.readouterr()
        assert run(*arguments, **named) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1, err
        return err

    return refusal


def test_all_rows(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(input=table, label="y", output=tmp_path / "out") == 0
    assert "rows sampled  3,000" in capsys.readouterr().out
    prepared = Prepared.open(tmp_path / "out")
    train, validation = ids(prepared.train), ids(prepared.validation)
    assert sorted(train + validation) == list(range(ROWS))
    assert stats.binomtest(len(validation), ROWS, 0.2).pvalue > 1e-3
    # Shuffled, so that neighbours have nothing in common.
    assert abs(np.corrcoef(train, np.arange(len(train)))[0, 1]) < 0.1
    assert prepared.train.schema.names == ["id", "x", "customer", "y"]
    assert prepared.about["rows"] == {
        "read": ROWS, "sampled": ROWS, "train": len(train), "validation": len(validation), "dropped": 0, "dead": 0,
    }  # fmt: skip
    found = Fingerprint.parse(json.dumps(prepared.about), "prepared.json")
    rows = pa.Table.from_batches(prepared.train.batches(1000))
    assert found == Fingerprint.of(rows)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "dead_letters", "prepared.json", "train", "validation",
    ]  # fmt: skip


def test_the_same_sample_wherever_and_in_whatever_order(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = {"label": "y", "sample_rows": 500, "seed": 5}
    assert run(input=table, output=tmp_path / "one", **flags) == 0
    shutil.copytree(table, tmp_path / "copy/of")
    monkeypatch.chdir(tmp_path)
    workers = ["--direct_num_workers=2", "--direct_running_mode=multi_threading"]
    assert run(*workers, "--chunk_bytes=1MB", input="copy/of/*.parquet", output="two", **flags) == 0
    # Ranges of a few rows, as where there are more rows than fit into one.
    monkeypatch.setattr(merging, "RANGE_BYTES", 1000)
    assert run(input="copy/of", output="three", **flags) == 0
    one, two, three = (Prepared.open(tmp_path / name) for name in ("one", "two", "three"))
    assert len(one.train) + len(one.validation) == 500
    for part in ("train", "validation"):
        expected = pa.Table.from_batches(getattr(one, part).batches(100))
        for other in (two, three):
            assert pa.Table.from_batches(getattr(other, part).batches(100)).equals(expected)
    assert run(input=table, output=tmp_path / "four", **flags | {"seed": 6}) == 0
    other = Prepared.open(tmp_path / "four")
    common = set(ids(one.train) + ids(one.validation)) & set(ids(other.train) + ids(other.validation))
    assert stats.hypergeom.cdf(len(common), ROWS, 500, 500) < 1 - 1e-4


def test_a_share_and_the_rows_of_a_larger_one(table: Path, tmp_path: Path) -> None:
    for share in (0.1, 0.3):
        assert run(input=table, label="y", output=tmp_path / str(share), sample=share, validation=0) == 0
    tenth, third = (ids(Prepared.open(tmp_path / name).train) for name in ("0.1", "0.3"))
    assert stats.binomtest(len(tenth), ROWS, 0.1).pvalue > 1e-3
    assert third[: len(tenth)] == tenth  # in the order of the same hash


def test_a_customer_is_in_one_part(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(input=table, label="y", output=tmp_path / "out", split_by="customer", validation=0.3) == 0
    prepared = Prepared.open(tmp_path / "out")
    train, validation = (Counter(ids(part, "customer")) for part in (prepared.train, prepared.validation))
    assert not set(train) & set(validation)
    assert set((train + validation).values()) == {30}
    assert stats.binomtest(len(validation), 100, 0.3).pvalue > 1e-3
    # The parts do not depend on the sample: another sample moves no customer.
    assert run(input=table, label="y", output=tmp_path / "few", split_by="customer", validation=0.3, sample=0.2) == 0
    few = Prepared.open(tmp_path / "few")
    assert set(ids(few.train, "customer")) <= set(train)
    assert set(ids(few.validation, "customer")) <= set(validation)
    assert "warning" not in capsys.readouterr().err


CODE = """
import pandas as pd

def clean(frame: pd.DataFrame):
    frame = frame[frame["id"] != 3]
    frame["x"] = frame["x"].fillna(0.0)
    if (frame["id"] == 5).any():
        raise ValueError("five")
    return frame.drop(columns=["customer"])
"""


def test_every_row_is_accounted_for(tmp_path: Path) -> None:
    """Of 100 rows one is dropped, one fails a function, two have no label; a value and a file cannot be read."""
    folder = write(tmp_path / "in", files=1, rows=120)
    rows = pq.read_table(folder / "0.parquet").slice(0, 100).to_pydict()
    rows["y"][7], rows["x"][10] = None, None
    rows["y"] = [None if y is None else float(y) for y in rows["y"]]
    rows["y"][8] = float("nan")
    pq.write_table(pa.table(rows), folder / "0.parquet")
    (folder / "1.parquet").write_bytes(b"PAR1 and no more")
    (tmp_path / "model.yaml").write_text("features: {twice: 2 * x}\npreprocess: [clean_for_prepare:clean]\n")
    (tmp_path / "code").mkdir()
    (tmp_path / "code/clean_for_prepare.py").write_text(CODE)
    flags = {"input": folder, "label": "y", "model": tmp_path / "model.yaml", "output": tmp_path / "out"}
    assert run("--max_failure_rate=0.01", **flags) == 3
    prepared = Prepared.open(tmp_path / "out")
    expected = {"read": 100, "dropped": 1, "dead": 3, "sampled": 96}
    assert {name: prepared.about["rows"][name] for name in expected} == expected
    assert prepared.about["dead_by_error"] == {
        "label/NotFinite": 1, "label/NullValue": 1, "preprocess/ValueError": 1,
    }  # fmt: skip
    assert prepared.about["files"] == {"read": 1, "dead": 1}
    failed = json.loads((tmp_path / "out/failed_files.jsonl").read_text())
    assert failed["path"].endswith("1.parquet")
    dead = pq.read_table(tmp_path / "out/dead_letters").to_pylist()
    assert {row["id"]: row["dead_letter"]["stage"] for row in dead} == {5: "preprocess", 7: "label", 8: "label"}
    assert all(row["customer"] == row["id"] % 4 for row in dead)  # as they were read
    found = {
        row["id"]: row
        for part in (prepared.train, prepared.validation)
        for row in part.take(np.arange(len(part))).to_pylist()
    }
    assert prepared.train.schema.names == ["id", "x", "y", "twice"]
    assert sorted(found) == [each for each in range(100) if each not in (3, 5, 7, 8)]
    assert (found[10]["x"], found[10]["twice"]) == (0.0, None)
    # The fingerprint is of rows as they are read, which is what later rows are compared with.
    assert prepared.about["fingerprint"]["columns"]["x"]["nulls"] > 0 or 10 in ids(prepared.validation)
    # The dead letters are prepared again, once the function is right.
    again = tmp_path / "again"
    (tmp_path / "code/clean_for_prepare.py").write_text(CODE.replace('raise ValueError("five")', "pass"))
    assert (
        run(**flags | {"input": tmp_path / "out/dead_letters", "output": again, "validation": 0}) == 2
    )  # one row is constant
    assert not again.exists()


class Sum(torch.nn.Module):
    """Gives its inputs back, so that a test sees what the model was given."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_training_sees_what_scoring_sees(table: Path, tmp_path: Path) -> None:
    seen = []
    for sql in ("x * x + 1", "case when x < 0 then 100 else x end"):
        fields = {"features": {"made": sql}, "inputs": [{"name": "x", "columns": ["x", "made"]}]}
        shutil.rmtree(tmp_path, ignore_errors=True)
        model = ModelDir.save(Sum(), tmp_path / "model", task="raw", **fields)
        # A model directory is a config, too.
        assert run(input=table, label="y", model=model.path, output=tmp_path / "out", validation=0) == 0
        prepared = Prepared.open(tmp_path / "out")
        assert score.main([f"--input={table}", f"--model={model.path}", f"--output={tmp_path / 'scored'}"]) == 0
        scored = pq.read_table(tmp_path / "scored/predictions").sort_by("id")
        rows = pa.Table.from_batches(prepared.train.batches(500)).sort_by("id")
        given = np.stack([rows["x"].to_numpy(), rows["made"].to_numpy()], axis=1)
        answers = next(
            scored[name] for name in scored.column_names if name not in ("id", "x", "customer", "y", "model_version")
        )
        assert np.allclose(np.stack(answers.to_pylist()), given, rtol=0, atol=1e-6)
        seen.append(given[:5, 1].tolist())
    # x of the first rows is -2, -1, 0, 1, 2.
    assert seen == [[5, 2, 1, 2, 5], [100, 100, 0, 1, 2]]


def test_csv_labels(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("x,price\n1,10\n2,20\n3,oops\n4,\n5,1.5\n")
    (tmp_path / "model.yaml").write_text("task: regression\ninputs: [{name: x, columns: [x]}]\n")
    flags = {"input": tmp_path / "rows.csv", "label": "price", "validation": 0}
    assert run(model=tmp_path / "model.yaml", output=tmp_path / "out", **flags) == 0
    prepared = Prepared.open(tmp_path / "out")
    dead = prepared.about["rows"]["dead"]
    assert prepared.about["rows"]["read"] == dead + len(prepared.train) == 5


def test_wrong_usage(table: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    out = tmp_path / "out"
    good = {"input": table, "label": "y", "output": out}
    assert 'has no column "costumer"; did you mean "customer"?' in refused(**good | {"label": "costumer"})
    assert 'did you mean "y"?' in refused(**good | {"label": "Y"})
    assert "there are: id, x, customer, y" in refused(**good | {"label": "price"})
    assert "--split_by: --input" in refused(**good, split_by="nobody")
    assert "--sample and --sample_rows exclude each other" in refused(**good, sample=0.5, sample_rows=10)
    assert "--sample must be a number above 0" in refused(**good, sample=0)
    assert "--validation must be less than 1" in refused(**good, validation=1)
    assert "--seed must be a whole number" in refused(**good, seed=-1)
    assert "--sample_rows must be a whole number" in refused(**good, sample_rows="many")
    assert "takes none of 3000 rows" in refused(**good, sample=1e-9)
    assert "all 1 rows are held out" in refused(**good, sample_rows=1, validation=0.9999999)
    assert "give a local folder" in refused(**good | {"output": "gs://bucket/prepared"})
    assert "cannot be read: No such file" in refused(**good, model=tmp_path / "none.yaml")
    assert "unknown option --sample_row; did you mean --sample_rows?" in refused("--sample_row=3", **good)
    (tmp_path / "model.yaml").write_text("features: {mean: avg(x)}\n")
    assert "depends on other rows" in refused(**good, model=tmp_path / "model.yaml")
    assert not out.exists()


def test_labels_that_say_nothing(tmp_path: Path, refused: Callable[..., str]) -> None:
    rows = {"x": [1.0, 2.0, 3.0], "constant": ["a", "a", "a"], "nothing": pa.nulls(3, pa.float64())}
    pq.write_table(pa.table(rows), tmp_path / "rows.parquet")
    flags = {"input": tmp_path / "rows.parquet", "output": tmp_path / "out"}
    assert "is 'a' in all 3 rows; there is nothing to learn" in refused(**flags, label="constant", validation=0)
    assert 'column "nothing" is null in 3 of them' in refused(**flags, label="nothing")
    pq.write_table(pa.table(rows).slice(0, 0), tmp_path / "rows.parquet")
    assert "there are no rows" in refused(**flags, label="x")
    assert not (tmp_path / "out").exists()


def test_what_is_replaced(table: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    out = tmp_path / "out"
    (out / "train").mkdir(parents=True)
    (out / "train/notes.txt").write_text("mine")
    flags = {"input": table, "label": "y", "output": out}
    assert run(**flags) == 0
    assert "holds prepared rows" in refused(**flags)
    assert run("--overwrite", "--sample_rows=10", "--validation=0", **flags) == 0
    assert len(Prepared.open(out).train) == 10
    assert (out / "train/notes.txt").read_text() == "mine"
    (out / "prepared.json").unlink()
    assert "holds files of another run in train/" in refused(**flags)
    copy = {"input": out / "dead_letters", "label": "y", "output": out}
    assert "is part of prepared rows in --output" in refused("--overwrite", **copy)


def test_labels_of_lists() -> None:
    labels = pa.array([[1.0, 2.0], [1.0, None], None, [float("nan")], []])
    chunk = with_provenance(pa.record_batch({"y": labels, "x": pa.array(range(5))}), "a.parquet", 0)
    plan = plan_cleaning(ModelConfig(spec=ConfigSpec(features={"z": "x + 1"})), "y", chunk, "rows")
    cleaned = Cleaner(plan).clean(chunk)
    assert cleaned.indices.tolist() == [0, 4]
    assert cleaned.rows.column("z").to_pylist() == [1, 5]
    assert cleaned.dead_by_error == Counter({"label/NullValue": 2, "label/NotFinite": 1})


def test_help_and_the_table_of_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    assert "prepare     clean, sample" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run("--help")
    shown = capsys.readouterr().out
    assert "--sample_rows" in shown


def test_opening_what_a_killed_run_left(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(UsageError, match="is not complete"):
        Prepared.open(tmp_path)


def test_windows_by_key(tmp_path: Path, refused: Callable[..., str]) -> None:
    """Three rows of a key make a window; features and labels are those of its last row, as in scoring."""
    rows = {"key": [0, 1] * 20, "step": np.arange(40) // 2, "v": np.arange(40.0), "late": np.arange(40) // 20}
    pq.write_table(pa.table(rows), tmp_path / "rows.parquet")
    (tmp_path / "model.yaml").write_text(
        "sequences: {by: [key], order_by: step, columns: [v], length: 3}\nfeatures: {last: 10 * step}\n"
    )
    flags = {"input": tmp_path / "rows.parquet", "model": tmp_path / "model.yaml", "output": tmp_path / "out"}
    assert "is among the columns of sequences" in refused(**flags, label="v")
    assert run(**flags, label="late", split_by="key", validation=0) == 0
    prepared = Prepared.open(tmp_path / "out")
    assert prepared.about["rows"]["dropped"] == 4  # the first two rows of both keys
    found = sorted(prepared.train.take(np.arange(len(prepared.train))).to_pylist(), key=lambda row: row["v"])
    expected = [
        {"v": [last - 4.0, last - 2.0, float(last)], "late": last // 20, "last": 10 * (last // 2)}
        for last in range(4, 40)
    ]
    assert [{name: row[name] for name in ("v", "late", "last")} for row in found] == expected
    assert prepared.about["fingerprint"]["columns"]["v"]["kind"] == "numeric"  # of the rows as they were read
