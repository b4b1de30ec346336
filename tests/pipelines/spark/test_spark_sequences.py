"""Windows by key on Spark: the same forecasts as in process."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from spark_cluster import Run

from pipelines import score

sys.path.append(str(Path(__file__).parents[2] / "handlers"))
import forecast_models

pytestmark = pytest.mark.slow(30)


def test_same_forecasts(run: Callable[..., Run], job_server: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    forecast_models.save(model)
    table = forecast_models.table_of(forecast_models.sales(60, 40))
    (tmp_path / "data").mkdir()
    for index in range(3):
        pq.write_table(table.slice(index * 801, 801), tmp_path / "data" / f"{index}.parquet")
    code, _, err = run(
        "--spark_master_url=local[2]", input=tmp_path / "data", model=model, output=tmp_path / "spark"
    ).finish()
    assert code == 0, err
    assert score.main([f"--input={tmp_path / 'data'}", f"--model={model}", f"--output={tmp_path / 'here'}"]) == 0
    found = []
    for output in ("spark", "here"):
        report = json.loads((tmp_path / output / "report.json").read_text())
        assert report["noted"] == {"sequence_keys": 60, "rows_context": 1740}
        assert (report["rows_scored"], report["rows_dropped"], report["rows_dead"]) == (660, 1740, 0)
        found.append(
            pq.read_table(tmp_path / output / "predictions").sort_by([("product", "ascending"), ("day", "ascending")])
        )
    assert found[0].drop(["forecast"]).equals(found[1].drop(["forecast"]))
    forecasts = [np.array(each["forecast"].to_pylist()) for each in found]
    np.testing.assert_allclose(forecasts[0], forecasts[1], atol=1e-6, rtol=0)
