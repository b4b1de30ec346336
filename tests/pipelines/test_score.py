"""The command, run for real on Beam's in-process runner; expected answers by plain torch or by hand."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import poison_rows
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from poisoned_table import EXPECTED, LABELS, Table, save_model

from pipelines import score


def run(*arguments: object) -> int:
    return score.main([str(argument) for argument in arguments])


def report(output: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((output / "report.json").read_text())
    return found


def read(folder: Path) -> pa.Table:
    return ds.dataset(sorted(folder.glob("part-*.parquet"))).to_table()


def counts(output: Path) -> tuple[object, ...]:
    found = report(output)
    return tuple(found[f"rows_{what}"] for what in ("read", "scored", "dropped", "dead"))


@pytest.fixture(scope="module")
def scored(poisoned: Table, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("scored") / "out"
    assert run(f"--input={poisoned.folder}", f"--model={model}", f"--output={output}") == 0
    return output


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory, poisoned: Table) -> Path:
    """1,000 rows with nothing wrong."""
    file = tmp_path_factory.mktemp("small") / "small.parquet"
    good = [row for row in range(2_000) if row not in poisoned.poison and row not in poisoned.dropped][:1_000]
    pq.write_table(poisoned.table.take(pa.array(good)), file)
    return file


class TestPoisonedTable:
    def test_counts_add_up(self, scored: Path, poisoned: Table) -> None:
        found = report(scored)
        dead, dropped = len(poisoned.poison), len(poisoned.dropped)
        assert counts(scored) == (100_000, 100_000 - dead - dropped, dropped, dead)
        assert found["dead_by_error"] == poisoned.by_error()
        assert (found["files_read"], found["files_dead"]) == (4, 1)

    def test_predictions_are_those_of_plain_torch(self, scored: Path, poisoned: Table) -> None:
        found = read(scored / "predictions").sort_by("id")
        expected_ids = [row for row in range(100_000) if row not in poisoned.poison and row not in poisoned.dropped]
        assert found["id"].to_pylist() == expected_ids
        probabilities = poisoned.probabilities[expected_ids]
        assert np.abs(found["confidence"].to_numpy() - probabilities.max(axis=1)).max() <= 1e-6
        top_two = np.sort(probabilities, axis=1)[:, -2:]
        clear = top_two[:, 1] - top_two[:, 0] > 1e-6
        classes = np.array([LABELS[index] for index in probabilities.argmax(axis=1)])
        assert (np.array(found["predicted_class"].to_pylist())[clear] == classes[clear]).all()

    def test_input_columns_are_untouched(self, scored: Path, poisoned: Table) -> None:
        found = read(scored / "predictions").sort_by("id")
        carried = found.select(poisoned.table.schema.names)
        assert carried.schema.equals(poisoned.table.schema)
        assert carried.equals(poisoned.table.take(found["id"]))
        assert set(found["model_version"].to_pylist()) == {report(scored)["model"]["version"]}  # type: ignore[index]

    def test_dead_letters_are_exactly_the_poisoned_rows(self, scored: Path, poisoned: Table) -> None:
        found = read(scored / "dead_letters").sort_by("id")
        assert found["id"].to_pylist() == sorted(poisoned.poison)
        assert found.select(poisoned.table.schema.names).equals(poisoned.table.take(found["id"]))
        for id_, letter in zip(found["id"].to_pylist(), found["dead_letter"].to_pylist(), strict=True):
            assert f"{letter['stage']}/{letter['type']}" == EXPECTED[poisoned.poison[id_]]
            assert letter["source"] == str(poisoned.folder / f"part-{id_ // 25_000}.parquet")
            assert letter["row"] == id_ % 25_000
            assert letter["message"]

    def test_broken_file_is_told(self, scored: Path, poisoned: Table) -> None:
        (line,) = (scored / "failed_files.jsonl").read_text().splitlines()
        failed = json.loads(line)
        assert failed["path"] == str(poisoned.folder / "part-broken.parquet")
        assert failed["rows"] == 0
        assert failed["error"]

    def test_nothing_is_left_behind(self, scored: Path) -> None:
        assert sorted(path.name for path in scored.iterdir()) == [
            "dead_letters",
            "failed_files.jsonl",
            "predictions",
            "report.json",
        ]

    def test_replay_scores_what_was_mended(self, scored: Path, poisoned: Table, tmp_path: Path) -> None:
        save_model(tmp_path / "mended", preprocess=["poison_rows:mended"])
        output = tmp_path / "again"
        assert run(f"--input={scored / 'dead_letters'}", f"--model={tmp_path / 'mended'}", f"--output={output}") == 0
        mended = sorted(row for row, way in poisoned.poison.items() if way == "preprocess")
        assert counts(output) == (len(poisoned.poison), len(mended), 0, len(poisoned.poison) - len(mended))
        found = read(output / "predictions").sort_by("id")
        assert found["id"].to_pylist() == mended
        assert np.abs(found["confidence"].to_numpy() - poisoned.probabilities[mended].max(axis=1)).max() <= 1e-6
        assert found.schema.equals(read(scored / "predictions").schema)
        for row in read(output / "dead_letters").to_pylist():
            assert row["dead_letter"]["source"] == str(poisoned.folder / f"part-{row['id'] // 25_000}.parquet")
            assert row["dead_letter"]["row"] == row["id"] % 25_000


class TestOptions:
    def test_limit(self, table: Path, model: Path, tmp_path: Path) -> None:
        assert run(f"--input={table}", f"--model={model}", f"--output={tmp_path / 'out'}", "--limit=10") == 0
        assert counts(tmp_path / "out") == (10, 10, 0, 0)

    def test_columns(self, table: Path, model: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        assert run(f"--input={table}", f"--model={model}", f"--output={out}", "--columns=id,code,f_*") == 0
        names = ["id", "code", "f_0", "f_1", "f_2", "f_3", "predicted_class", "confidence", "model_version"]
        assert read(out / "predictions").schema.names == names

    def test_overwrite(self, table: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        arguments = (f"--input={table}", f"--model={model}", f"--output={tmp_path / 'out'}")
        assert run(*arguments) == 0
        before = report(tmp_path / "out")
        assert run(*arguments) == 2
        assert "--overwrite" in capsys.readouterr().err
        assert report(tmp_path / "out") == before
        assert run(*arguments, "--overwrite", "--limit=7") == 0
        assert counts(tmp_path / "out") == (7, 7, 0, 0)
        assert read(tmp_path / "out" / "predictions").num_rows == 7

    def test_batch_sizes_give_the_same(self, table: Path, model: Path, tmp_path: Path) -> None:
        found = []
        for size in ("1000", "7", "auto"):
            out = tmp_path / size
            assert run(f"--input={table}", f"--model={model}", f"--output={out}", f"--batch_size={size}") == 0
            found.append(read(out / "predictions").sort_by("id")["confidence"].to_numpy())
        assert np.abs(found[0] - found[1]).max() <= 1e-6
        assert np.abs(found[0] - found[2]).max() <= 1e-6

    @pytest.mark.parametrize("output_format", ["jsonl", "csv"])
    def test_output_formats(self, table: Path, model: Path, tmp_path: Path, output_format: str) -> None:
        out = tmp_path / "out"
        arguments = [f"--input={table}", f"--model={model}", f"--output={out}", f"--output_format={output_format}"]
        assert run(*arguments, "--columns=id,when,code,note") == 0
        (part,) = (out / "predictions").iterdir()
        lines = part.read_text().splitlines()
        if output_format == "csv":
            assert lines[0] == '"id","when","code","note","predicted_class","confidence","model_version"'
            assert len(lines) == 1_001
        else:
            assert json.loads(lines[0])["predicted_class"] in LABELS
            assert len(lines) == 1_000

    def test_max_failure_rate(
        self, scored: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        mended = tmp_path / "mended"
        save_model(mended, preprocess=["poison_rows:mended"])
        out = tmp_path / "out"
        arguments = [f"--input={scored / 'dead_letters'}", f"--model={mended}", f"--output={out}"]
        assert run(*arguments, "--max_failure_rate=0.1") == 3
        assert "--max_failure_rate" in capsys.readouterr().err
        assert report(out)["rows_scored"] == 19

    def test_report_elsewhere(self, table: Path, model: Path, tmp_path: Path) -> None:
        where = tmp_path / "elsewhere" / "r.json"
        assert run(f"--input={table}", f"--model={model}", f"--output={tmp_path / 'out'}", f"--report={where}") == 0
        assert json.loads(where.read_text())["rows_scored"] == 1_000
        assert not (tmp_path / "out" / "report.json").exists()

    def test_functions_of_the_command_come_after_those_of_the_model(
        self, table: Path, model: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "out"
        arguments = [f"--input={table}", f"--model={model}", f"--output={out}"]
        assert run(*arguments, "--postprocess=poison_rows:add_margin") == 0
        found = read(out / "predictions")
        assert np.allclose(found["margin"].to_numpy(), found["confidence"].to_numpy() - 0.5)


class TestTextFormats:
    def test_csv_and_jsonl_give_what_parquet_gives(self, poisoned: Table, tmp_path: Path) -> None:
        """The same rows, one bad value among them, in three formats."""
        model = tmp_path / "model"
        save_model(model, inputs=[{"name": "x", "columns": ["amount", "f_*", "g_*"]}])
        rows = [row for row in range(300) if row not in poisoned.poison and row not in poisoned.dropped][:100]
        table = poisoned.table.take(pa.array(rows)).drop_columns(["vec"])
        for index in range(4):
            values = [row[index] for row in poisoned.table["vec"].take(pa.array(rows)).to_pylist()]
            table = table.append_column(f"g_{index}", pa.array(values))
        records = table.to_pylist()
        records[17]["f_1"] = "abc"
        json_lines = [json.dumps(record, default=str) for record in records]
        (tmp_path / "in.jsonl").write_text("\n".join([*json_lines[:50], "{not json", *json_lines[50:]]) + "\n")
        header = list(records[0])
        csv_lines = [",".join("" if row[name] is None else str(row[name]) for name in header) for row in records]
        (tmp_path / "in.csv").write_text("\n".join([",".join(header), *csv_lines[:50], "1,2", *csv_lines[50:]]) + "\n")
        for name in ("in.jsonl", "in.csv"):
            out = tmp_path / f"out-{name}"
            assert run(f"--input={tmp_path / name}", f"--model={model}", f"--output={out}") == 0
            assert counts(out) == (101, 99, 0, 2)
            found = read(out / "predictions").sort_by("id")
            kept = [row for index, row in enumerate(rows) if index != 17]
            assert found["id"].to_pylist() == kept
            assert np.abs(found["confidence"].to_numpy() - poisoned.probabilities[kept].max(axis=1)).max() <= 1e-6
            letters = [row["dead_letter"] for row in read(out / "dead_letters").to_pylist()]
            assert sorted((letter["stage"], letter["row"]) for letter in letters) == [("read", 17), ("read", 50)]
            assert all(letter["raw"] for letter in letters)


class TestEmptyAndBroken:
    def test_no_rows_is_a_finished_run(self, poisoned: Table, model: Path, tmp_path: Path) -> None:
        pq.write_table(poisoned.table.slice(0, 0), tmp_path / "empty.parquet")
        assert run(f"--input={tmp_path / 'empty.parquet'}", f"--model={model}", f"--output={tmp_path / 'out'}") == 0
        assert counts(tmp_path / "out") == (0, 0, 0, 0)
        found = read(tmp_path / "out" / "predictions")
        assert found.num_rows == 0
        assert "predicted_class" in found.schema.names

    @pytest.mark.parametrize("name", ["empty.csv", "empty.jsonl"])
    def test_file_without_a_byte(self, model: Path, tmp_path: Path, name: str) -> None:
        (tmp_path / name).touch()
        assert run(f"--input={tmp_path / name}", f"--model={model}", f"--output={tmp_path / 'out'}") == 0
        assert counts(tmp_path / "out") == (0, 0, 0, 0)

    def test_model_that_fails_on_every_row_ends_early(
        self, poisoned: Table, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        save_model(tmp_path / "m", architecture="poison_rows:Broken")
        assert run(f"--input={poisoned.folder}", f"--model={tmp_path / 'm'}", f"--output={tmp_path / 'out'}") == 3
        (line,) = capsys.readouterr().err.splitlines()
        assert "the model is broken" in line
        assert not (tmp_path / "out").exists()

    def test_nothing_scored_ends_with_3(
        self, poisoned: Table, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        bad = [row for row, way in poisoned.poison.items() if way in ("null", "model")]
        pq.write_table(poisoned.table.take(pa.array(bad)), tmp_path / "bad.parquet")
        assert run(f"--input={tmp_path / 'bad.parquet'}", f"--model={model}", f"--output={tmp_path / 'out'}") == 3
        assert counts(tmp_path / "out") == (len(bad), 0, 0, len(bad))
        assert "none of the" in capsys.readouterr().err


def test_expected_counts_of_the_fixture(poisoned: Table) -> None:
    assert Counter(poisoned.poison.values()) == {
        way: 20 if index < 4 else 19
        for index, way in enumerate(("null", "text", "infinity", "length", "model", "preprocess", "postprocess"))
    }
    assert poison_rows.LEFT_OUT not in (poison_rows.PREPROCESS_REFUSES, poison_rows.POSTPROCESS_REFUSES)
