"""The command, run for real on Beam's in-process runner; expected numbers by scikit-learn or by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sklearn.metrics as sk
from poisoned_table import LABELS, Table

from pipelines import cli, evaluate, score
from transforms.evaluation.fingerprint import KEY, Fingerprint

Refused = Callable[..., str]


def run(*arguments: object, **named: object) -> int:
    return evaluate.main([*map(str, arguments), *(f"--{name}={value}" for name, value in named.items())])


def read(output: Path) -> dict[str, Any]:
    assert sorted(path.name for path in output.iterdir()) == ["metrics.json", "report.html"]
    found: dict[str, Any] = json.loads((output / "metrics.json").read_text())
    return found


def scored_table(rows: int, seed: int = 0, noise: float = 1.0) -> pa.Table:
    """Two classes as `score --probabilities` writes them; the rows are the same for every `noise`."""
    random = np.random.default_rng(seed)
    x, truth_noise = random.normal(size=rows), random.normal(size=rows)
    yes = (1 / (1 + np.exp(-(x + noise * np.random.default_rng(9).normal(size=rows))))).astype(np.float32)
    return pa.table(
        {
            "id": np.arange(rows),
            "x": x,
            "age": random.integers(18, 90, rows),
            "country": np.array(["NL", "BE", "DE"])[random.integers(0, 3, rows)],
            "label": np.where(x + truth_noise > 0, "yes", "no"),
            "predicted_class": np.where(yes > 0.5, "yes", "no"),
            "confidence": np.maximum(yes, 1 - yes),
            "probability_no": 1 - yes,
            "probability_yes": yes,
        }
    )


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("scored") / "rows.parquet"
    pq.write_table(scored_table(2000), file, row_group_size=700)
    return file


def test_a_million_rows(tmp_path: Path) -> None:
    rows = scored_table(1_000_000)
    for part in range(2):
        pq.write_table(rows.slice(part * 500_000, 500_000), tmp_path / f"{part}.parquet")
    assert run(input=tmp_path, label="label", output=tmp_path / "_out", slice_by="age") == 0
    found = read(tmp_path / "_out")
    truth = np.array(rows["label"].to_pylist()) == "yes"
    answered = np.array(rows["predicted_class"].to_pylist()) == "yes"
    yes = rows["probability_yes"].to_numpy().astype(np.float64)
    assert found["rows"] == 1_000_000
    assert found["bounds"] == {}
    expected = {
        "accuracy": sk.accuracy_score(truth, answered),
        "f1": sk.f1_score(truth, answered),
        "roc_auc": sk.roc_auc_score(truth, yes),
        "average_precision": sk.average_precision_score(truth, yes),
        "brier": sk.brier_score_loss(truth, yes),
        "matthews_corrcoef": sk.matthews_corrcoef(truth, answered),
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-9, abs=1e-9), name
    assert sum(each["rows"] for each in found["slices"]["age"].values()) == 1_000_000
    assert (tmp_path / "_out" / "report.html").stat().st_size < 2_000_000


def test_slices_drift_and_missing_labels(table: Path, tmp_path: Path) -> None:
    rows = pq.read_table(table)
    labels = rows["label"].to_pylist()
    labels[:30] = [None] * 30
    rows = rows.set_column(rows.schema.names.index("label"), "label", pa.array(labels))
    pq.write_table(rows, tmp_path / "rows.parquet")
    (tmp_path / "training.json").write_text(json.dumps({KEY: Fingerprint.of(rows.select(["x", "country"])).as_json()}))
    options = {"slice_by": "country,age", "fingerprint": tmp_path / "training.json"}
    assert run(input=tmp_path / "rows.parquet", label="label", output=tmp_path / "out", **options) == 0
    found = read(tmp_path / "out")
    assert (found["rows"], found["rows_without_label"], found["rows_read"]) == (1970, 30, 2000)
    frame = rows.slice(30).to_pandas()
    frame["right"] = frame["label"] == frame["predicted_class"]
    for country, mine in frame.groupby("country"):
        assert found["slices"]["country"][country]["accuracy"] == pytest.approx(mine["right"].mean(), abs=1e-12)
    ages = found["slices"]["age"]
    assert len(ages) == 5
    assert next(iter(ages)).startswith("≤ ")
    assert sum(each["rows"] for each in ages.values()) == 1970
    assert set(found["drift"]) == {"x", "country"}
    assert all(each["psi"] < 1e-9 for each in found["drift"].values())


def test_limits(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = {"input": table, "label": "label", "output": tmp_path / "out"}
    assert run("--fail_below=roc_auc=0.5", "--fail_below=accuracy=0.99", "--fail_above=log_loss=9", **flags) == 3
    err = capsys.readouterr().err
    assert "below --fail_below=accuracy=0.99" in err
    assert "roc_auc" not in err
    read(tmp_path / "out")
    assert run("--fail_above=log_loss=9", "--overwrite", **flags) == 0


def test_compare(table: Path, tmp_path: Path) -> None:
    pq.write_table(
        scored_table(2000, noise=3.0).take(pa.array(np.random.default_rng(1).permutation(1990))), tmp_path / "b.parquet"
    )
    one, two = pq.read_table(table).to_pandas(), pq.read_table(tmp_path / "b.parquet").to_pandas()
    both = one.merge(two[["id", "predicted_class"]], on="id", suffixes=("", "_2"))
    first, second = (both[name] == both["label"] for name in ("predicted_class", "predicted_class_2"))
    for key in ({"key": "id"}, {}):
        output = tmp_path / f"out{len(key)}"
        assert run(input=table, label="label", output=output, compare=tmp_path / "b.parquet", **key) == 0
        found = read(output)["compare"]
        assert (found["rows"], found["rows_only_first"], found["rows_only_second"]) == (1990, 10, 0)
        test = found["accuracy"]
        assert test["difference"] == pytest.approx(first.mean() - second.mean(), abs=1e-12)
        assert (test["only_first_right"], test["only_second_right"]) == (
            (first & ~second).sum(),
            (second & ~first).sum(),
        )
        assert test["p_value"] < 0.01
        assert found["metrics"]["accuracy"] == pytest.approx((two["label"] == two["predicted_class"]).mean(), abs=1e-12)


def test_scoring_on_the_way_is_scoring_before(poisoned: Table, model: Path, tmp_path: Path) -> None:
    rows = poisoned.table.slice(0, 5000)
    labels = np.array(LABELS)[np.random.default_rng(0).integers(0, 3, 5000)]
    pq.write_table(rows.append_column("truth", pa.array(labels)), tmp_path / "rows.parquet")
    scored = tmp_path / "scored"
    assert (
        score.main(
            [f"--input={tmp_path / 'rows.parquet'}", f"--model={model}", f"--output={scored}", "--probabilities"]
        )
        == 0
    )
    assert run(input=scored, label="truth", output=scored / "evaluation") == 0
    assert run(input=tmp_path / "rows.parquet", model=model, label="truth", output=tmp_path / "way") == 0
    before, way = read(scored / "evaluation"), read(tmp_path / "way")
    report = json.loads((scored / "report.json").read_text())
    assert way["rows_read"] == report["rows_read"] == way["rows"] + way["rows_dead"] + way["rows_dropped"]
    assert way["dead_by_error"] == before["dead_by_error"] == report["dead_by_error"]
    assert way["model"] == before["model"] == report["model"]
    for name in ("rows", "accuracy", "roc_auc", "log_loss", "brier", "confusion_matrix"):
        assert way[name] == (pytest.approx(before[name], abs=1e-6) if isinstance(before[name], float) else before[name])


def test_constant_label_is_a_warning(table: Path, tmp_path: Path) -> None:
    rows = pq.read_table(table)
    pq.write_table(rows.filter(pa.compute.equal(rows["label"], "no")), tmp_path / "rows.parquet")
    assert run(input=tmp_path / "rows.parquet", label="label", output=tmp_path / "out") == 0
    found = read(tmp_path / "out")
    assert found["roc_auc"] is None
    assert any("one class" in warning for warning in found["warnings"])


class TestRefusals:
    @pytest.fixture
    def refused(self, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
        def call(*arguments: str, rows: pa.Table | None = None, **replaced: object) -> str:
            if rows is not None:
                pq.write_table(rows, tmp_path / "rows.parquet")
                replaced["input"] = tmp_path / "rows.parquet"
            output = tmp_path / "out"
            assert run(*arguments, **({"input": table, "label": "label", "output": output} | replaced)) == 2
            captured = capsys.readouterr()
            (line,) = captured.err.splitlines()
            assert line.startswith("torchbeam evaluate: error: ")
            assert not output.exists() or not list(output.iterdir())
            return line

        return call

    def test_options(self, refused: Refused) -> None:
        assert 'no metric "acuracy"; did you mean "accuracy"' in refused("--fail_below=acuracy=0.9")
        assert "--fail_above=log_loss=1" in refused("--fail_below=log_loss=1")
        assert "accuracy=NUMBER" in refused("--fail_below=accuracy=high")
        assert "no metric of task classification" in refused("--fail_above=rmse=1")
        assert "--key is for --compare" in refused("--key=id")
        assert "unknown option --slice_buy; did you mean --slice_by?" in refused("--slice_buy=age")
        assert 'no class "maybe"; there are: no, yes' in refused("--positive_class=maybe")

    def test_columns(self, refused: Refused) -> None:
        assert 'no column "truth"; there are: id, x, age, country, label' in refused(label="truth")
        assert 'no column "town"' in refused("--slice_by=town")
        assert "more than 1000 values" in refused(
            "--slice_by=note",
            rows=pa.table(
                {"note": [f"n{i}" for i in range(1500)], "label": ["a"] * 1500, "predicted_class": ["a"] * 1500}
            ),
        )
        assert "no predictions" in refused(rows=pa.table({"label": ["a"]}))

    def test_labels(self, refused: Refused) -> None:
        answers = ["a", "b"]
        nothing = pa.array([None, None], pa.string())
        assert "is null" in refused(rows=pa.table({"label": nothing, "predicted_class": answers}))
        assert "holds string" in refused(rows=pa.table({"label": ["1", "n/a"], "prediction": [1.0, 2.0]}))
        assert "in common" in refused(rows=pa.table({"label": ["1", "0"], "predicted_class": answers}))
        assert "no rows" in refused(rows=pa.table({"label": ["a"], "predicted_class": ["a"]}).slice(0, 0))
        assert "usable prediction" in refused(rows=pa.table({"label": answers, "predicted_class": nothing}))

    def test_ten_thousand_classes(self, refused: Refused) -> None:
        names = [f"c{index}" for index in range(10_000)]
        assert "more than 1000 classes" in refused(rows=pa.table({"label": names, "predicted_class": names[::-1]}))

    def test_an_evaluation_that_is_there(self, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "metrics.json").write_text("mine")
        assert run(input=table, label="label", output=tmp_path) == 2
        assert "--overwrite" in capsys.readouterr().err
        assert (tmp_path / "metrics.json").read_text() == "mine"

    def test_other_runs(self, refused: Refused, tmp_path: Path) -> None:
        pq.write_table(pa.table({"label": [1.0], "prediction": [1.0]}), tmp_path / "other.parquet")
        assert "is of task regression" in refused(f"--compare={tmp_path / 'other.parquet'}")


def test_multilabel(tmp_path: Path) -> None:
    rows = pa.table(
        {
            "tags": [["a", "b"], [], ["c"], None],
            "predicted_labels": [["b", "a"], ["a"], ["c"], []],
            "probabilities": [[0.9, 0.9, 0.1], [0.6, 0.1, 0.1], [0.1, 0.2, 0.7], [0.1, 0.1, 0.1]],
        }
    )
    pq.write_table(rows, tmp_path / "rows.parquet")
    assert run(input=tmp_path / "rows.parquet", label="tags", output=tmp_path / "out") == 0
    found = read(tmp_path / "out")
    assert (found["task"], found["rows"], found["rows_without_label"]) == ("multilabel", 3, 1)
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["hamming_loss"] == pytest.approx(1 / 9)
    assert found["classes"]["a"] == {"precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3), "support": 1}


def test_forecast_by_step(tmp_path: Path) -> None:
    rows = pa.table(
        {
            "actual": [[1.0, 2.0], [3.0, 4.0], [5.0]],
            "forecast": [[1.0, 3.0], [3.0, 7.0], [5.0, 6.0]],
            "shop": ["a", "b", "b"],
        }
    )
    pq.write_table(rows, tmp_path / "rows.parquet")
    assert run(input=tmp_path / "rows.parquet", label="actual", output=tmp_path / "out", slice_by="shop") == 0
    found = read(tmp_path / "out")
    assert (found["rows"], found["rows_without_label"]) == (2, 1)  # one has fewer steps than the others
    assert [each["mae"] for each in found["outputs"]] == [0.0, 2.0]
    assert found["slices"]["shop"]["b"]["mae"] == 1.5
    assert "Error by output" in (tmp_path / "out" / "report.html").read_text()


def test_help_imports_neither_torch_nor_beam() -> None:
    code = (
        "import sys\nfrom pipelines import evaluate\n"
        "try: evaluate.main(['--help'])\nexcept SystemExit as e: assert e.code == 0\n"
        "heavy = {'torch', 'apache_beam', 'pyarrow', 'pandas'} & set(sys.modules)\nassert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--fail_below" in done.stdout


def test_console_script(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", "--input=x", "--output=y"]) == 2
    assert "--label" in capsys.readouterr().err


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of `small`, `small_v2` (whose name begins with the other), which answers half of them, and `size`, a regression."""
    folder = tmp_path_factory.mktemp("several")
    one, two = scored_table(2000), scored_table(2000, noise=3.0)
    every = one.select(["id", "x", "age", "country", "label"]).append_column("y", one["x"])
    outputs = ["predicted_class", "confidence", "probability_no", "probability_yes"]
    run_there = pa.array([row % 2 == 0 for row in range(2000)])
    for name, rows in (("small", one), ("small_v2", two)):
        for column in outputs:
            values = rows[column].combine_chunks()
            if name == "small_v2":
                values = pa.compute.if_else(run_there, values, None)
            every = every.append_column(f"{name}_{column}", values)
        every = every.append_column(f"{name}_model_version", pa.array([name] * 2000))
    every = every.append_column("small_error", pa.nulls(2000, pa.string()))
    (folder / "scored" / "predictions").mkdir(parents=True)
    pq.write_table(every, folder / "scored" / "predictions" / "part-0.parquet", row_group_size=700)
    models = {name: {"name": f"model of {name}", "version": name, "rows_in": 2000} for name in ("small", "small_v2")}
    report = {"rows_scored": 2000, "rows_dead": 0, "models": {**models, "vectors": {"name": "e", "version": "1"}}}
    (folder / "scored" / "report.json").write_text(json.dumps(report))
    pq.write_table(one, folder / "small.parquet")
    pq.write_table(two.filter(run_there), folder / "small_v2.parquet")
    return folder


class TestSeveralModels:
    """A run of several models, as `score` writes it: of each model what a run of its own would give."""

    def test_all_of_them(self, several: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        flags = {"label": "label", "slice_by": "country,age"}
        assert run("--fail_below=accuracy=0.6", input=several / "scored", output=tmp_path / "all", **flags) == 3
        shown = capsys.readouterr()
        assert "accuracy of small_v2 is 0." in shown.err
        assert "accuracy of small is" not in shown.err
        assert "small_v2: 1,000 rows are with a label, but without a usable prediction" in shown.err
        found = json.loads((tmp_path / "all" / "metrics.json").read_text())
        assert list(found["models"]) == ["small", "small_v2"]
        for name, rows in (("small", 2000), ("small_v2", 1000)):
            assert run(input=several / f"{name}.parquet", output=tmp_path / name, **flags) == 0
            alone, mine = read(tmp_path / name), read(tmp_path / "all" / name)
            assert mine == found["models"][name]
            assert (mine["rows"], mine["model"]) == (rows, {"name": f"model of {name}", "version": name})
            # Bins of ages are of all rows, also where a model answered some of them.
            for metric in ("accuracy", "roc_auc", "log_loss", "confusion_matrix", "classes", "intervals"):
                assert mine[metric] == alone[metric], metric
            assert mine["slices"]["country"] == alone["slices"]["country"]
            page = (tmp_path / "all" / name / "report.html").read_text()
            assert f"Evaluation of model of {name}" in page
            assert "small_v2_" not in page
        page = (tmp_path / "all" / "report.html").read_text()
        assert '<a href="small_v2/report.html">small_v2</a>' in page
        assert f"{found['models']['small']['accuracy']:.4g}" in page

    def test_one_of_them(self, several: Path, tmp_path: Path) -> None:
        """Its metrics are those of a run of one model; an evaluation of all that was there is replaced."""
        output, files = tmp_path / "out", several / "scored" / "predictions" / "*.parquet"
        assert run(input=files, label="label", output=output) == 0  # without a report
        assert run("--overwrite", input=files, label="label", output=output, model_name="small", compare=files) == 0
        assert not list((output / "small_v2").iterdir())
        (output / "small_v2").rmdir()
        (output / "small").rmdir()
        found = read(output)
        assert found["rows"] == 2000
        assert found["compare"]["accuracy"]["difference"] == 0
        assert (
            run(
                "--overwrite",
                input=several / "small.parquet",
                label="label",
                output=output,
                model_name="small_v2",
                compare=several / "scored",
            )
            == 0
        )
        assert read(output)["compare"]["rows"] == 1000

    def test_refusals(self, several: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        flags_of_all = {"input": several / "scored", "label": "label", "output": tmp_path / "out"}
        cases: list[tuple[list[str], dict[str, object], str]] = [
            (["--model_name=large"], {}, 'has no model "large" to evaluate; it has: small, small_v2'),
            ([f"--compare={several / 'small.parquet'}"], {}, "--compare takes one model"),
            (
                [f"--compare={several / 'scored'}"],
                {"input": several / "small.parquet"},
                "add --model_name: small, small_v2",
            ),
            (["--model_name=small"], {"input": several / "small.parquet"}, "is of one; leave it out"),
            (["--model_name=small", f"--model={several}"], {}, "--model_name is for an output of several models"),
            ([], {"label": "y"}, 'model "small": '),
        ]
        for flags, replaced, message in cases:
            assert run(*flags, **(flags_of_all | replaced)) == 2, message
            (line,) = capsys.readouterr().err.splitlines()
            assert message in line
            assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
