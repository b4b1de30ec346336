"""Several models in a bucket: `models.yaml`, its models beside it, a folder of models by key, the comparison."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
from cloud_runs import DEAD, ROWS, as_parquet, expected, one_line, put_model, read, run
from fake_stores import Store

pytestmark = pytest.mark.slow(10)


def test_several_models(ready: Store, model: Path, table: pa.Table, capsys: pytest.CaptureFixture[str]) -> None:
    keys = [("one", "nowhere", "../linear")[row % 3] for row in range(ROWS)]
    ready.put("keyed/x.parquet", as_parquet(table.append_column("key", pa.array(keys))))
    put_model(ready, model, "models/by_key/one")
    put_model(ready, model, "models/by_key/_draft")
    entries = [
        {"name": "all", "model": "linear", "on_failure": "continue"},
        {"name": "local", "by_key": {"column": "key", "models": "by_key/{key}"}, "on_failure": "continue"},
    ]
    # JSON is YAML, too.
    ready.put("models/models.yaml", json.dumps({"models": entries, "compare": ["all", "local"]}).encode())
    assert run(ready, input="keyed", models="models/models.yaml", output="out") == 0
    answers = expected(model, table)
    found = read(ready, "out/predictions/")
    by_id = dict(zip(found["id"].to_pylist(), found["all_prediction"].to_pylist(), strict=True))
    assert by_id == pytest.approx(answers, abs=1e-6)
    local = dict(zip(found["id"].to_pylist(), found["local_prediction"].to_pylist(), strict=True))
    mine = {row: answer for row, answer in answers.items() if keys[row] == "one"}
    assert {row: answer for row, answer in local.items() if answer is not None} == pytest.approx(mine, abs=1e-6)
    assert sorted(read(ready, "out/dead_letters/")["id"].to_pylist()) == DEAD
    comparison = json.loads(ready.get("out/comparison.json"))
    assert (comparison["rows"], comparison["rows_equal"]) == (len(mine), len(mine))
    assert {"out/comparison.html", "out/report.json"} < set(ready.names("out"))

    # A run that replaces it and compares nothing takes the comparison away.
    ready.put("models/models.yaml", json.dumps({"models": entries}).encode())
    assert run(ready, "--overwrite", input="keyed", models="models/models.yaml", output="out") == 0
    assert not [name for name in ready.names("out") if "comparison" in name]

    capsys.readouterr()
    assert run(ready, input="keyed", models="models/nowhere.yaml", output="out2") == 2
    assert "nowhere.yaml cannot be read" in one_line(capsys)
    entries[1]["by_key"] = {"column": "key", "models": "nothing/{key}"}
    ready.put("models/models.yaml", json.dumps({"models": entries}).encode())
    assert run(ready, input="keyed", models="models/models.yaml", output="out2") == 2
    assert "has no folders of models" in one_line(capsys)
