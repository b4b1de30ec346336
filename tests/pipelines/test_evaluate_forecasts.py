"""Forecasts against later rows of their series, run for real; expected numbers by loops in plain Python."""

from __future__ import annotations

import datetime as dt
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import evaluate

HORIZON, SEASON, DAYS = 4, 3, 40
START = dt.date(2026, 1, 1)


def run(*arguments: object, **named: object) -> int:
    return evaluate.main([*map(str, arguments), *(f"--{name}={value}" for name, value in named.items())])


def metrics(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / "metrics.json").read_text())
    return found


def series(seed: int = 0, shops: int = 6) -> dict[str, list[float]]:
    random = np.random.default_rng(seed)
    season = [5.0, 9.0, 1.0]
    return {
        f"shop {shop}": [season[day % SEASON] + shop + float(random.normal()) for day in range(DAYS)]
        for shop in range(shops)
    }


def forecast_of(values: list[float], day: int) -> list[float]:
    """A forecast of some skill: the mean of the last two seasons."""
    back = [day + 1 + step - SEASON * (step // SEASON + 1) for step in range(HORIZON)]
    return [(values[each] + values[each - SEASON]) / 2 for each in back]


def scored(found: dict[str, list[float]], first: int = 2 * SEASON) -> pa.Table:
    """What `score` writes of a forecast model: a row for each day from `first` on, shuffled."""
    rows = [
        {
            "shop": shop,
            "day": START + dt.timedelta(days=day),
            "sales": values[day],
            "region": "north" if shop < "shop 3" else "south",
            "forecast": forecast_of(values, day),
            "forecast_from": START + dt.timedelta(days=day + 1),
            "model_version": "1",
        }
        for shop, values in found.items()
        for day in range(first, DAYS)
    ]
    order = np.random.default_rng(1).permutation(len(rows))
    return pa.Table.from_pylist([rows[each] for each in order])


def by_hand(found: dict[str, list[float]], first: int = 2 * SEASON) -> dict[str, Any]:
    """Errors by step of the model and of the baselines, from loops."""
    errors: dict[str, list[list[float]]] = {
        "model": [],
        "last_value": [],
        "seasonal_naive": [],
        "model of seasonal": [],
    }
    for values in found.values():
        for day in range(first, DAYS - HORIZON):
            actual = values[day + 1 : day + 1 + HORIZON]
            mine = [abs(a - b) for a, b in zip(actual, forecast_of(values, day), strict=True)]
            errors["model"].append(mine)
            errors["last_value"].append([abs(a - values[day]) for a in actual])
            back = [day + 1 + step - SEASON * (step // SEASON + 1) for step in range(HORIZON)]
            if min(back) >= first:  # as far as the forecasts go back
                errors["seasonal_naive"].append([abs(a - values[b]) for a, b in zip(actual, back, strict=True)])
                errors["model of seasonal"].append(mine)
    return {name: np.mean(each, axis=0) for name, each in errors.items()} | {"rows": len(errors["model"])}


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("forecasts")
    pq.write_table(scored(series()), folder / "scored.parquet", row_group_size=50)
    flags = {"label": "sales", "by": "shop", "order_by": "day", "season": SEASON, "slice_by": "region"}
    assert run(input=folder / "scored.parquet", output=folder / "out", **flags) == 0
    return folder / "out"


def test_against_loops(output: Path) -> None:
    found, expected = metrics(output), by_hand(series())
    assert (found["label"], found["rows"]) == ("sales", expected["rows"])
    assert found["rows_read"] == found["rows"] + found["rows_without_label"]
    assert found["mae"] == pytest.approx(expected["model"].mean(), rel=1e-12)
    assert [each["mae"] for each in found["outputs"]] == pytest.approx(expected["model"].tolist(), rel=1e-12)
    last, seasonal = found["baselines"]["last_value"], found["baselines"]["seasonal_naive"]
    assert last["rows"] == found["rows"]
    assert [step["mae"] for step in last["steps"]] == pytest.approx(expected["last_value"].tolist(), rel=1e-12)
    assert found["skill_last_value"] == pytest.approx(
        1 - expected["model"].mean() / expected["last_value"].mean(), rel=1e-12
    )
    assert [step["mae"] for step in seasonal["steps"]] == pytest.approx(expected["seasonal_naive"].tolist(), rel=1e-12)
    assert seasonal["model_mae"] == pytest.approx(expected["model of seasonal"].mean(), rel=1e-12)
    assert 0 < seasonal["rows"] < last["rows"]
    assert sum(each["rows"] for each in found["slices"]["region"].values()) == found["rows"]


def test_report(output: Path) -> None:
    page = (output / "report.html").read_text()
    assert "Skill over last value" in page
    assert "Error by step" in page
    assert "seasonal naive" in page


@pytest.mark.parametrize("kind", [pa.timestamp("ms"), pa.timestamp("ns", "UTC"), pa.string(), pa.int32()], ids=str)
def test_kinds_of_time(kind: pa.DataType, tmp_path: Path, output: Path) -> None:
    rows = scored(series())
    for name in ("day", "forecast_from"):
        column = rows[name]
        if pa.types.is_integer(kind):
            column = column.cast(pa.int32())
        elif pa.types.is_string(kind):
            column = pa.chunked_array([[each.isoformat() for each in column.to_pylist()]])
        else:
            column = column.cast(kind)
        rows = rows.set_column(rows.schema.names.index(name), name, column)
    pq.write_table(rows, tmp_path / "scored.parquet")
    flags = {"label": "sales", "by": "shop", "order_by": "day", "season": SEASON}
    assert run(input=tmp_path / "scored.parquet", output=tmp_path / "out", **flags) == 0
    found, same = metrics(tmp_path / "out"), metrics(output)
    for name in ("rows", "mae", "skill_last_value", "skill_seasonal_naive"):
        assert found[name] == pytest.approx(same[name], rel=1e-12)


def test_actual_values_of_another_table(tmp_path: Path) -> None:
    """The last forecast of each shop, and the days that came after it."""
    values, day = series(), DAYS - HORIZON - 1
    rows = scored(values)
    keep = pa.array([each == START + dt.timedelta(days=day) for each in rows["day"].to_pylist()])
    pq.write_table(rows.filter(keep).drop_columns("sales"), tmp_path / "scored.parquet")
    actual = [
        {
            "shop": shop,
            "day": dt.datetime.combine(START, dt.time()) + dt.timedelta(days=index),
            "sales": value,
            "other": 1,
        }
        for shop, each in values.items()
        for index, value in enumerate(each)
    ]
    pq.write_table(pa.Table.from_pylist(actual), tmp_path / "actuals.parquet")
    flags = {
        "label": "sales",
        "by": "shop",
        "order_by": "day",
        "season": SEASON,
        "actuals": tmp_path / "actuals.parquet",
    }
    assert (
        run("--fail_below=skill_last_value=0.1", input=tmp_path / "scored.parquet", output=tmp_path / "out", **flags)
        == 0
    )
    found = metrics(tmp_path / "out")
    errors = [
        [abs(a - b) for a, b in zip(each[day + 1 :], forecast_of(each, day), strict=True)] for each in values.values()
    ]
    assert found["rows"] == len(values)
    assert found["mae"] == pytest.approx(np.mean(errors), rel=1e-12)
    back = [day + 1 + step - SEASON * (step // SEASON + 1) for step in range(HORIZON)]
    naive = [[abs(each[day + 1 + step] - each[b]) for step, b in enumerate(back)] for each in values.values()]
    assert found["baselines"]["seasonal_naive"]["mae"] == pytest.approx(np.mean(naive), rel=1e-12)


def test_one_series_with_gaps(tmp_path: Path) -> None:
    days = [0, 1, 2, 4, 5, 6, 7]  # without day 3
    rows = [{"t": day, "y": float(day), "forecast": [day + 2.0, day + 2.0], "forecast_from": day + 1} for day in days]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "scored.parquet")
    assert run(input=tmp_path / "scored.parquet", label="y", order_by="t", output=tmp_path / "out") == 0
    found = metrics(tmp_path / "out")
    assert found["rows"] == 3  # of days 0, 4 and 5: both next days are there
    assert found["mae"] == pytest.approx((1 + 0) / 2)
    assert found["baselines"]["last_value"]["mae"] == pytest.approx((1 + 2) / 2)
    assert found["skill_last_value"] == pytest.approx(1 - 0.5 / 1.5)


def test_compare(tmp_path: Path) -> None:
    good = scored(series())
    higher = pa.array([[each + 3 for each in row] for row in good["forecast"].to_pylist()])
    worse = good.set_column(good.schema.names.index("forecast"), "forecast", higher)
    pq.write_table(good, tmp_path / "good.parquet")
    pq.write_table(worse, tmp_path / "worse.parquet")
    flags = {"label": "sales", "by": "shop", "order_by": "day", "compare": tmp_path / "worse.parquet"}
    assert run(input=tmp_path / "good.parquet", output=tmp_path / "out", **flags) == 0
    compare = metrics(tmp_path / "out")["compare"]["mae"]
    assert compare["first"] < compare["second"]
    assert compare["p_value"] < 1e-6


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({}, "with --order_by"),
        ({"by": "shop"}, "--by is for forecasts; name the column of their time"),
        ({"order_by": "days", "by": "shop"}, '--order_by: .* has no column "days"'),
        ({"order_by": "day", "by": "store"}, '--by: .* has no column "store"'),
        ({"order_by": "sales"}, '--order_by: column "sales" holds double'),
        ({"order_by": "day", "label": "shop"}, '--label: column "shop" .* forecasts are of numbers'),
        ({"order_by": "day", "season": 0}, "season"),
        ({"order_by": "day", "by": "shop", "fail_below": "skill_seasonal_naive=0"}, "it needs --season"),
        ({"order_by": "forecast_from", "by": "shop"}, "no forecast has the actual values"),
    ],
)
def test_wrong_use(flags: dict[str, object], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pq.write_table(scored(series(shops=2)), tmp_path / "scored.parquet")
    named = {"input": tmp_path / "scored.parquet", "label": "sales", "output": tmp_path / "out"} | flags
    assert run(**named) == 2
    err = capsys.readouterr().err
    assert len(err.strip().splitlines()) == 1
    assert re.search(message, err), err
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_no_forecasts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pq.write_table(pa.table({"y": [1.0], "prediction": [1.0], "t": [1]}), tmp_path / "scored.parquet")
    assert run(input=tmp_path / "scored.parquet", label="y", order_by="t", output=tmp_path / "out") == 2
    assert "are for forecasts" in capsys.readouterr().err


@pytest.mark.parametrize("values", [[None, None], ["a", "b"], [1.0, 2.0], [["a"], ["b"]]], ids=str)
def test_what_is_no_forecast(values: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = pa.table({"t": [1, 2], "y": [1.0, 2.0], "forecast": values, "forecast_from": [2, 3]})
    pq.write_table(rows, tmp_path / "scored.parquet")
    assert run(input=tmp_path / "scored.parquet", label="y", order_by="t", output=tmp_path / "out") == 2
    assert "forecasts are lists of numbers" in capsys.readouterr().err
