"""Windows by key through the command, against a loop of pandas and torch; every row is accounted for."""

from __future__ import annotations

import datetime as dt
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from handlers import ModelDir
from pipelines import doctor, evaluate, score

HANDLERS = Path(__file__).parents[1] / "handlers"
sys.path.append(str(HANDLERS))
import sequence_models  # noqa: E402

LENGTH, HORIZON = 8, 3
FIELDS: dict[str, Any] = {"by": ["shop"], "order_by": "day", "columns": ["sales"], "length": LENGTH, "horizon": HORIZON}
SEQUENCE = {"name": "x", "columns": ["sales"], "encoder": "sequence"}


def save(path: Path, *, inputs: dict[str, Any] | None = None, features: int = 1, **fields: Any) -> Path:
    ModelDir.save(
        sequence_models.Forecaster(HORIZON, features),
        path,
        task="forecast",
        inputs=[inputs or SEQUENCE],
        architecture="sequence_models:Forecaster",
        arguments={"horizon": HORIZON, "features": features},
        code=[HANDLERS / "sequence_models.py"],
        sequences={**FIELDS, **fields},
    )
    return path


def frame(keys: int, steps: int, seed: int = 0) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    found = pd.DataFrame(
        {
            "shop": np.repeat([f"shop {key}" for key in range(keys)], steps),
            "day": np.tile(pd.date_range("2026-01-01", periods=steps).date, keys),
            "sales": random.normal(size=keys * steps),
            "price": random.normal(size=keys * steps),
        }
    )
    return found.sample(frac=1, random_state=seed).reset_index(drop=True)


def write(rows: pd.DataFrame, folder: Path, parts: int = 3) -> Path:
    folder.mkdir(parents=True)
    for part in range(parts):
        pq.write_table(pa.Table.from_pandas(rows.iloc[part::parts], preserve_index=False), folder / f"{part}.parquet")
    return folder


def run(rows: Path, model: Path, output: Path, *more: str) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    assert score.main([f"--input={rows}", f"--model={model}", f"--output={output}", *more]) == 0
    report = json.loads((output / "report.json").read_text())
    assert report["rows_read"] == report["rows_scored"] + report["rows_dropped"] + report["rows_dead"]
    predictions, dead = (pq.read_table(output / name).to_pandas() for name in ("predictions", "dead_letters"))
    assert (len(predictions), len(dead)) == (report["rows_scored"], report["rows_dead"])
    return predictions, dead, report


def by_hand(rows: pd.DataFrame, length: int = LENGTH, stride: int = 1) -> dict[tuple[str, dt.date], np.ndarray]:
    """The forecast of each anchor, all windows in one call."""
    anchors: list[tuple[str, dt.date]] = []
    windows: list[torch.Tensor] = []
    for shop, mine in rows.sort_values("day").groupby("shop"):
        values = torch.tensor(mine["sales"].to_numpy(), dtype=torch.float32)
        windows.append(values.unfold(0, length, stride))
        anchors += ((shop, day) for day in mine["day"].to_list()[length - 1 :: stride])
    with torch.inference_mode():
        answers = sequence_models.Forecaster(HORIZON).eval()(torch.cat(windows)[..., None]).numpy()
    return dict(zip(anchors, answers, strict=True))


def check(predictions: pd.DataFrame, expected: dict[tuple[str, dt.date], np.ndarray]) -> None:
    assert len(predictions) == len(expected)
    answers = np.stack(predictions["forecast"].to_numpy())
    wanted = np.stack([expected[key] for key in zip(predictions["shop"], predictions["day"], strict=True)])
    np.testing.assert_allclose(answers, wanted, atol=1e-6, rtol=0)


def test_against_a_loop(tmp_path: Path) -> None:
    rows = frame(300, 40)
    predictions, dead, report = run(write(rows, tmp_path / "rows"), save(tmp_path / "model"), tmp_path / "out")
    check(predictions, by_hand(rows))
    assert dead.empty
    assert report["rows_dropped"] == 300 * (LENGTH - 1)
    assert report["noted"] == {"rows_context": 300 * (LENGTH - 1), "sequence_keys": 300}
    assert (predictions["forecast_from"] == predictions["day"] + dt.timedelta(days=1)).all()
    merged = predictions.merge(rows, on=["shop", "day"])  # the carried columns are those of the anchor
    assert (merged["sales_x"] == merged["sales_y"]).all()
    assert list(predictions.columns) == ["shop", "day", "sales", "price", "forecast", "forecast_from", "model_version"]


@pytest.mark.slow(20)
def test_ten_thousand_keys(tmp_path: Path) -> None:
    rows = frame(10_000, 20)
    predictions, _, _ = run(write(rows, tmp_path / "rows"), save(tmp_path / "model"), tmp_path / "out")
    check(predictions, by_hand(rows))


def test_shuffled_rows_and_other_chunks_give_the_same(tmp_path: Path) -> None:
    rows, model = frame(20, 30), save(tmp_path / "model")
    first, _, _ = run(write(rows, tmp_path / "a"), model, tmp_path / "out-a")
    shuffled = rows.sample(frac=1, random_state=9)
    second, _, _ = run(write(shuffled, tmp_path / "b", parts=7), model, tmp_path / "out-b", "--chunk_bytes=1MB")
    one, two = (each.sort_values(["shop", "day"]).reset_index(drop=True) for each in (first, second))
    assert (one["day"] == two["day"]).all()
    np.testing.assert_allclose(np.stack(one["forecast"]), np.stack(two["forecast"]), atol=1e-6, rtol=0)


def test_only_the_last_window(tmp_path: Path) -> None:
    rows = frame(10, 20)
    predictions, _, report = run(
        write(rows, tmp_path / "rows"), save(tmp_path / "model", windows="last"), tmp_path / "out"
    )
    expected = {key: value for key, value in by_hand(rows).items() if key[1] == dt.date(2026, 1, 20)}
    check(predictions, expected)
    assert report["rows_dropped"] == 10 * 19


def test_bad_rows_and_short_keys(tmp_path: Path) -> None:
    rows = frame(6, 20).sort_values(["shop", "day"]).reset_index(drop=True)
    rows = rows[~((rows["shop"] == "shop 5") & (rows["day"] > dt.date(2026, 1, 3)))]  # three rows are left
    rows.loc[rows["shop"].eq("shop 0") & rows["day"].eq(dt.date(2026, 1, 20)), "shop"] = None
    rows.loc[rows["shop"].eq("shop 1") & rows["day"].eq(dt.date(2026, 1, 20)), "day"] = None
    rows.loc[rows["shop"].eq("shop 2") & rows["day"].eq(dt.date(2026, 1, 13)), "sales"] = None
    predictions, dead, report = run(write(rows, tmp_path / "rows"), save(tmp_path / "model"), tmp_path / "out")
    assert report["dead_by_error"] == {
        "encode/NullValue": LENGTH,  # the windows that the null is in
        "sequences/TooShort": 3,
        "sequences/NullKey": 1,
        "sequences/NullTime": 1,
    }
    good = rows[rows["shop"].isin(["shop 0", "shop 1", "shop 3", "shop 4"]) & rows["day"].notna()]
    check(predictions[predictions["shop"] != "shop 2"], by_hand(good))
    assert set(dead["dead_letter"].map(lambda each: each["message"])) >= {
        f"the key has 3 steps; a window needs {LENGTH}",
        'column "shop" of the key holds null',
        'column "day" holds null',
    }
    # Dead letters are rows as they were read.
    assert list(dead.columns) == ["shop", "day", "sales", "price", "dead_letter"]
    assert (predictions["shop"] == "shop 2").sum() == 20 - (LENGTH - 1) - LENGTH


@pytest.mark.parametrize(("rule", "used"), [("last", 2.0), ("first", 1.0)])
def test_duplicates(rule: str, used: float, tmp_path: Path) -> None:
    days = list(pd.date_range("2026-01-01", periods=LENGTH).date)
    rows = pd.DataFrame(
        {"shop": "a", "day": [*days, days[-1]], "sales": [0.0] * (LENGTH - 1) + [1.0, 2.0], "price": 0.0}
    )
    model = save(tmp_path / "model", duplicates=rule)
    predictions, _, report = run(write(rows, tmp_path / "rows", parts=1), model, tmp_path / "out")
    assert report["noted"]["rows_duplicate"] == 1
    values = torch.tensor([0.0] * (LENGTH - 1) + [used])[None, :, None]
    with torch.inference_mode():
        expected = sequence_models.Forecaster(HORIZON).eval()(values).numpy()
    np.testing.assert_allclose(np.stack(predictions["forecast"]), expected, atol=1e-6)
    assert predictions["sales"].tolist() == [used]


def test_duplicates_that_are_errors(tmp_path: Path) -> None:
    rows = frame(2, 20)
    rows = pd.concat([rows, rows[rows["shop"].eq("shop 0") & rows["day"].eq(dt.date(2026, 1, 20))]])
    model = save(tmp_path / "model", duplicates="error")
    predictions, _, report = run(write(rows, tmp_path / "rows"), model, tmp_path / "out")
    assert report["dead_by_error"] == {"sequences/DuplicateTime": 2}
    assert len(predictions) == 2 * 13 - 1


def test_stride_lags_rolling_and_aggregates(tmp_path: Path) -> None:
    """All computed columns as features of a step, against pandas."""
    columns = ["sales", "sales_lag_1", "price_mean_3", "price_key_max"]
    model = save(
        tmp_path / "model",
        inputs={"name": "x", "columns": columns, "encoder": "sequence"},
        features=4,
        columns=columns,
        length=5,
        stride=2,
        lags={"sales": 1},
        rolling=[{"columns": "price", "steps": 3, "functions": "mean"}],
        aggregates={"price": "max"},
    )
    rows = frame(4, 20)
    predictions, _, _ = run(write(rows, tmp_path / "rows"), model, tmp_path / "out")
    module, expected = sequence_models.Forecaster(HORIZON, 4).eval(), {}
    for shop, mine in rows.groupby("shop"):
        ordered = mine.sort_values("day")
        features = pd.DataFrame(
            {
                "sales": ordered["sales"],
                "sales_lag_1": ordered["sales"].shift(1),
                "price_mean_3": ordered["price"].rolling(3).mean(),
                "price_key_max": ordered["price"].cummax(),
            }
        ).to_numpy(np.float32)
        for anchor in range(6, 20, 2):  # 5 steps, and 2 that the rolling mean looks back on
            with torch.inference_mode():
                window = torch.from_numpy(features[anchor - 4 : anchor + 1])[None]
                expected[(shop, ordered["day"].iloc[anchor])] = module(window)[0].numpy()
    check(predictions, expected)


def test_shorter_windows(tmp_path: Path) -> None:
    inputs = {**SEQUENCE, "mask": "lengths"}
    model = save(tmp_path / "model", inputs=inputs, min_length=2)
    rows = frame(5, 12)
    predictions, _, report = run(write(rows, tmp_path / "rows"), model, tmp_path / "out")
    assert report["rows_scored"] == 5 * 11
    module, expected = sequence_models.Forecaster(HORIZON).eval(), {}
    for shop, mine in rows.groupby("shop"):
        ordered = mine.sort_values("day")
        values = torch.tensor(ordered["sales"].to_numpy(), dtype=torch.float32)
        for anchor in range(1, 12):
            with torch.inference_mode():
                expected[(shop, ordered["day"].iloc[anchor])] = module(
                    values[max(0, anchor - LENGTH + 1) : anchor + 1][None, :, None]
                )[0].numpy()
    check(predictions, expected)


def test_text_formats(tmp_path: Path) -> None:
    """Times as text of CSV, and no rows at all."""
    rows = frame(5, 20)
    rows.to_csv(tmp_path / "rows.csv", index=False)
    model = save(tmp_path / "model")
    predictions, _, _ = run(tmp_path / "rows.csv", model, tmp_path / "out")
    predictions["day"] = pd.to_datetime(predictions["day"]).dt.date
    check(predictions, by_hand(rows))
    assert set(predictions["forecast_from"].astype(str).str.len()) == {10}
    rows.iloc[:0].to_csv(tmp_path / "none.csv", index=False)
    assert score.main([f"--input={tmp_path / 'none.csv'}", f"--model={model}", f"--output={tmp_path / 'none'}"]) in (
        0,
        2,
    )


def test_evaluate_with_the_model(tmp_path: Path) -> None:
    rows = write(frame(5, 30), tmp_path / "rows")
    arguments = [f"--input={rows}", f"--model={save(tmp_path / 'model')}", "--label=sales", "--season=7"]
    assert evaluate.main([*arguments, f"--output={tmp_path / 'out'}"]) == 0
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert found["rows"] == 5 * (30 - LENGTH + 1 - HORIZON)
    assert found["baselines"]["last_value"]["rows"] == found["rows"]


def test_doctor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = write(frame(5, 30), tmp_path / "rows")
    assert doctor.main([f"--input={rows}", f"--model={save(tmp_path / 'model')}", f"--output={tmp_path / 'out'}"]) == 0
    assert "windows of the first rows" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"by": ["store"]}, 'sequences.by names column "store", which the input does not have'),
        ({"order_by": "date"}, 'sequences.order_by names column "date"'),
        ({"columns": ["sale"]}, 'sequences.columns names column "sale"'),
        ({"rolling": [{"columns": "shop", "steps": 2, "functions": "mean"}]}, 'sequences.rolling: column "shop" holds'),
        ({"step": 3}, "sequences.step: .*must be a time, as 1d, not 3"),
    ],
)
def test_columns_that_do_not_fit(
    fields: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, model = write(frame(2, 10), tmp_path / "rows"), save(tmp_path / "model", **fields)
    assert score.main([f"--input={rows}", f"--model={model}", f"--output={tmp_path / 'out'}"]) == 2
    err = capsys.readouterr().err.strip()
    assert len(err.splitlines()) == 1
    assert re.search(message, err), err


def test_several_models_of_the_same_windows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Windows are cut once; each model answers as in a run of its own."""
    rows = frame(7, 20)
    rows.loc[3, "sales"] = np.nan  # a dead letter of the windows
    data, one = write(rows, tmp_path / "in"), save(tmp_path / "one")
    alone, _, report = run(data, one, tmp_path / "alone")
    models = f"""
models:
  - {{name: one, model: {one}}}
  - {{name: two, model: {one}, when: "shop <> 'shop 1'"}}
  - {{name: apart, model: {one}, hints: {{min_ram: 1GB}}, inputs_from: two}}
"""
    (tmp_path / "models.yaml").write_text(models)
    flags = [f"--input={data}", f"--models={tmp_path / 'models.yaml'}", f"--output={tmp_path / 'out'}"]
    assert score.main(flags) == 0
    found = pq.read_table(tmp_path / "out" / "predictions").to_pandas()
    both = json.loads((tmp_path / "out" / "report.json").read_text())
    for name in ("rows_read", "rows_scored", "rows_dropped", "rows_dead", "dead_by_error", "noted"):
        assert both[name] == report[name], name
    merged = found.merge(alone, on=["shop", "day"], how="outer", indicator=True)
    assert (merged["_merge"] == "both").all()
    for name in ("one", "two", "apart"):
        mine = merged if name == "one" else merged[merged["shop"] != "shop 1"]
        np.testing.assert_allclose(np.stack(mine[f"{name}_forecast"]), np.stack(mine["forecast"]), atol=1e-6)
        assert (mine[f"{name}_forecast_from"] == mine["forecast_from"]).all()
    assert merged[merged["shop"] == "shop 1"]["two_forecast"].isna().all()
    assert both["models"]["two"]["rows_skipped"] == (found["shop"] == "shop 1").sum()
    assert doctor.main([*flags[:2], f"--output={tmp_path / 'checked'}"]) == 0

    other = save(tmp_path / "other", stride=2)
    capsys.readouterr()
    named = [f"--model=one={one}", f"--model=other={other}"]
    assert score.main([f"--input={data}", *named, f"--output={tmp_path / 'none'}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert 'models "one" and "other" have other sequences in their model.yaml' in line
