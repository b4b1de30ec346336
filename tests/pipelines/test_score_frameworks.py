"""The commands with models of other frameworks: the same columns, dead letters and checks as for PyTorch's own."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pyarrow.dataset as ds
import pytest
import xgboost
from onnx import TensorProto, helper
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from handlers.model.directory import ModelDir
from pipelines import cli

pytestmark = pytest.mark.slow(8)

DRAW = np.random.default_rng(5)
TABLE = pd.DataFrame(
    {
        "id": range(3000),
        "age": DRAW.integers(18, 90, 3000),
        "income": DRAW.normal(30, 9, 3000),
        "country": DRAW.choice(["AT", "CH", "DE"], 3000),
    }
)
GOOD = np.where(TABLE["age"] + 20 * (TABLE["country"] == "CH") > 60, "good", "bad")
NUMBERS = ["age", "income"]


def parquet(folder: str, out: Path) -> pd.DataFrame:
    return ds.dataset(sorted((out / folder).glob("part-*.parquet"))).to_table().to_pandas().sort_values("id")


def score(model: Path | str, source: Path, out: Path, *options: str) -> int:
    return cli.main(["score", f"--model={model}", f"--input={source}", f"--output={out}", *options])


@pytest.mark.parametrize("form", ["parquet", "csv"])
def test_a_pipeline_over_named_columns(tmp_path: Path, form: str) -> None:
    parts = ColumnTransformer([("n", StandardScaler(), NUMBERS), ("c", OneHotEncoder(), ["country"])])
    pipeline = make_pipeline(parts, RandomForestClassifier(5, max_depth=4, random_state=0)).fit(TABLE, GOOD)
    ModelDir.save(pipeline, tmp_path / "m")
    table = TABLE.copy()
    table.loc[[7, 2500], "country"] = "XX"
    table.loc[9, "income"] = np.nan
    if form == "csv":
        table.to_csv(tmp_path / "t.csv", index=False)
    else:
        table.to_parquet(tmp_path / "t.parquet")
    assert score(tmp_path / "m", tmp_path / f"t.{form}", tmp_path / "out", "--probabilities") == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [report[f"rows_{each}"] for each in ("read", "scored", "dropped", "dead")] == [3000, 2998, 0, 2]
    dead = parquet("dead_letters", tmp_path / "out")
    assert dead["id"].tolist() == [7, 2500]
    assert {(each["stage"], each["type"]) for each in dead["dead_letter"]} == {("forward", "ValueError")}
    found = parquet("predictions", tmp_path / "out")
    expected = pipeline.predict_proba(table.drop(index=[7, 2500]))
    assert found["predicted_class"].tolist() == pipeline.classes_[expected.argmax(axis=1)].tolist()
    assert np.allclose(found[["probability_bad", "probability_good"]], expected, atol=1e-6)


def test_xgboost_with_missing_values(tmp_path: Path) -> None:
    estimator = xgboost.XGBClassifier(n_estimators=6).fit(TABLE[NUMBERS], GOOD == "good")
    ModelDir.save(estimator, tmp_path / "m", labels=["bad", "good"])
    table = TABLE.astype({"age": "Int64"})
    table.loc[5, "age"] = pd.NA
    table.loc[6, "income"] = np.inf
    table.to_parquet(tmp_path / "t.parquet")
    assert score(tmp_path / "m", tmp_path / "t.parquet", tmp_path / "out") == 0
    assert parquet("dead_letters", tmp_path / "out")["id"].tolist() == [6]
    found = parquet("predictions", tmp_path / "out")
    expected = estimator.predict_proba(table.drop(index=6)[NUMBERS].astype("float64"))
    assert np.allclose(found["confidence"], expected.max(axis=1), atol=1e-6)
    assert found["predicted_class"].tolist() == np.where(expected[:, 1] > 0.5, "good", "bad").tolist()


def graph() -> onnx.ModelProto:
    """y = age + 2·income, of (rows, 2)."""
    weights = helper.make_tensor("w", TensorProto.FLOAT, [2, 1], [1.0, 2.0])
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 1])
    made = helper.make_model(
        helper.make_graph([node], "g", [x], [y], [weights]), opset_imports=[helper.make_opsetid("", 17)]
    )
    made.ir_version = 8
    return made


def run(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    capsys.readouterr()
    code = cli.main([str(each) for each in arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_onnx_from_a_file_to_predictions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(graph(), tmp_path / "line.onnx")
    target = tmp_path / "models" / "line"
    code, out, _ = run(capsys, "init", f"--from={tmp_path / 'line.onnx'}", f"--output={target}", "--task=regression")
    assert code == 0
    assert "line, task regression" in out
    code, out, _ = run(capsys, "describe", f"--model={target}")
    assert code == 0
    assert "ONNX Runtime" in out
    assert "float32 of (rows, 1)" in out
    TABLE[NUMBERS].assign(id=[str(each) for each in TABLE["id"]]).to_parquet(tmp_path / "t.parquet")
    code, out, _ = run(capsys, "doctor", f"--model={target}", f"--input={tmp_path / 't.parquet'}")
    assert code == 0, out
    assert "ONNX graph of" in out
    assert score(target, tmp_path / "t.parquet", tmp_path / "out") == 0
    table = ds.dataset(tmp_path / "out" / "predictions").to_table().to_pandas()
    assert np.allclose(table["prediction"], table["age"] + 2 * table["income"], rtol=1e-6)


def test_wrong_use_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(graph(), tmp_path / "line.onnx")
    target = tmp_path / "line"
    assert run(capsys, "init", f"--from={tmp_path / 'line.onnx'}", f"--output={target}")[0] == 0
    TABLE.to_parquet(tmp_path / "t.parquet")
    (tmp_path / "m.pkl").write_bytes(b"")
    (tmp_path / "m.skops").write_bytes(b"")
    given = ["score", f"--model={target}", f"--input={tmp_path / 't.parquet'}", f"--output={tmp_path / 'out'}"]
    for arguments, message in [
        ([*given, "--compile"], "--compile has no meaning for a model of format onnx"),
        ([*given, "--precision=float16"], "--precision=float16 has no meaning"),
        ([*given, "--device=cuda"], "--device=cuda cannot be used: the installed onnxruntime has no CUDA provider"),
        (given, 'the model input "x" takes 2 values a row, but the input has 3 columns of numbers'),
        (["init", f"--from={tmp_path / 'line.onnx'}", f"--output={target}"], "exists already"),
        (["init", f"--from={tmp_path / 'm.pkl'}", f"--output={tmp_path / 'n'}"], "may hold a pickle"),
        (
            ["init", f"--from={tmp_path / 'm.skops'}", f"--output={tmp_path / 'n'}"],
            f"error: {tmp_path / 'm.skops'} cannot be loaded as sklearn",
        ),
        (["init", f"--from={tmp_path / 't.parquet'}", f"--output={tmp_path / 'n'}"], "is no file of a model"),
    ]:
        code, _, err = run(capsys, *arguments)
        assert code == 2, (arguments, err)
        assert message in err
        assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "n").exists()
    assert not (tmp_path / "out" / "report.json").exists()
