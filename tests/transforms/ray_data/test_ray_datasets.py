"""`torchbeam.ray.score` on a real Ray: what `torchbeam.score` gives on the same rows."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from small_models import Touchy

import torchbeam
from handlers.errors import UsageError
from handlers.model.directory import ModelDir

ROWS = 2_000
BAD = {3: None, 5: 13.0, 1500: 14.0}  # null, the model raises, the model gives NaN


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    found = pytest.importorskip("ray.data", reason="there is no Ray here: pip install 'torchbeam[ray]'")
    import ray as engine

    with pytest.MonkeyPatch.context() as patch:
        # Ray's workers find the functions and models of the tests.
        patch.setenv("PYTHONPATH", ":".join(sys.path))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_raylet_start_wait_time_s", "300")
        engine.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=200 << 20)
        yield found
        engine.shutdown()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelDir:
    folder = tmp_path_factory.mktemp("ray") / "model"
    inputs = [{"name": "x", "columns": ["a", "b"]}]
    return ModelDir.save(Touchy(), folder, task="classification", labels=["no", "yes"], inputs=inputs)


@pytest.fixture(scope="module")
def rows() -> pa.Table:
    """Rows, three of them bad."""
    a = [BAD.get(number, value) for number, value in enumerate(np.linspace(-2, 2, ROWS).tolist())]
    return pa.table(
        {
            "id": range(ROWS),
            "a": a,
            "b": np.linspace(0, 1, ROWS).astype(np.float32),
            "kind": pa.array([f"k{number % 3}" for number in range(ROWS)]).dictionary_encode(),
            "at": pa.array(range(ROWS), pa.timestamp("s", "UTC")),
            "tags": [["x"] * (number % 3) for number in range(ROWS)],
        }
    )


def records(found: Any) -> list[dict[str, Any]]:
    """The rows of a dataset or table by id."""
    tables = (
        [found] if isinstance(found, pa.Table) else list(found.iter_batches(batch_format="pyarrow", batch_size=None))
    )
    return sorted((row for table in tables for row in table.to_pylist()), key=lambda row: row["id"])


def unlike(letter: dict[str, Any]) -> dict[str, Any]:
    """A dead letter without where the row was read."""
    return {name: value for name, value in letter.items() if name not in ("source", "row")}


@pytest.mark.slow(60)
@pytest.mark.parametrize(("materialize", "ship_model"), [(False, None), (True, True)])
def test_it_gives_what_score_gives(
    ray: Any, model: ModelDir, rows: pa.Table, materialize: bool, ship_model: bool | None
) -> None:
    expected = torchbeam.score(model, rows, probabilities=True)
    ds = ray.from_arrow([rows.slice(start, 500) for start in range(0, ROWS, 500)])
    found = torchbeam.ray.score(
        ds, model.path, probabilities=True, materialize=materialize, ship_model=ship_model, concurrency=1
    )
    assert found.predictions.columns() == expected.predictions.schema.names
    predictions = records(found.predictions)
    assert len(predictions) == ROWS - len(BAD)
    for one, other in zip(predictions, records(expected.predictions), strict=True):
        for name, value in other.items():
            assert one[name] == pytest.approx(value, abs=1e-6) if isinstance(value, float) else one[name] == value, name
    letters, dead = records(found.dead_letters), records(expected.dead_letters)
    assert [row["id"] for row in letters] == list(BAD)
    assert [unlike(row.pop("dead_letter")) for row in letters] == [unlike(row.pop("dead_letter")) for row in dead]
    assert letters == dead


def with_actor(row: dict[str, Any]) -> dict[str, Any] | None:
    """A row of an even id, with the process that scored it, and the models in that process; drops the others."""
    from handlers.predict.predictor import Predictor

    if row["id"] % 2:
        return None
    held = sorted(id(each) for each in gc.get_objects() if isinstance(each, Predictor)) if row["id"] % 100 == 0 else []
    return {**row, "process": os.getpid(), "held": str(held)}


@pytest.mark.slow(60)
def test_functions_and_a_model_for_each_actor(ray: Any, model: ModelDir, rows: pa.Table) -> None:
    ds = ray.from_arrow([rows.slice(start, 100) for start in range(0, ROWS, 100)])
    found = torchbeam.ray.score(
        ds, model, columns=["id"], postprocess=["test_ray_datasets:with_actor"], concurrency=1, batch_size=64
    )
    scored = records(found.predictions)
    assert [row["id"] for row in scored] == [number for number in range(0, ROWS, 2) if number not in BAD]
    assert len({row["process"] for row in scored}) == 1
    (held,) = {row["held"] for row in scored} - {"[]"}
    assert "," not in held  # the same one for all batches
    assert os.getpid() not in {row["process"] for row in scored}


@pytest.mark.slow(60)
def test_tensors_values_that_do_not_fit_and_no_rows(ray: Any, tmp_path: Path) -> None:
    inputs = [{"name": "x", "columns": ["v"]}]
    made = ModelDir.save(Touchy(), tmp_path / "model", task="classification", labels=["no", "yes"], inputs=inputs)
    vectors = np.arange(40, dtype=np.float32).reshape(20, 2) / 100
    found = torchbeam.ray.score(ray.from_numpy(vectors).rename_columns({"data": "v"}), made, concurrency=1)
    expected = torchbeam.score(made, [{"v": row.tolist()} for row in vectors]).predictions
    got = sorted(found.predictions.take_all(), key=lambda row: list(row["v"]))
    assert [list(row["v"]) for row in got] == vectors.tolist()
    assert [row["predicted_class"] for row in got] == [row["predicted_class"] for row in expected]
    none = torchbeam.ray.score(ray.from_arrow(pa.table({"v": pa.array([], pa.list_(pa.float32(), 2))})), made)
    assert none.predictions.count() == none.dead_letters.count() == 0
    with pytest.raises(UsageError, match="neither rows nor columns"):
        torchbeam.ray.score(ray.from_items([]), made)


@pytest.mark.slow(60)
def test_wrong_use_is_one_line(ray: Any, model: ModelDir, rows: pa.Table, tmp_path: Path) -> None:
    ds = ray.from_arrow(rows)
    cases: list[tuple[Any, Any, dict[str, Any], str]] = [
        (rows, model, {}, "ds must be a Dataset of Ray, not a Table"),
        (ds, tmp_path / "none", {}, "does not exist"),
        (ds, model, {"device": "gpu"}, "is not one of auto"),
        (ds, model, {"concurrency": 0}, "concurrency must be 1 or more"),
        (ds, model, {"concurrency": (2, 1)}, "concurrency must be 1 or more"),
        (ds, model, {"num_gpus": -1}, "num_gpus must be 0 or more"),
        (ds, model, {"columns": ["nothing"]}, "nothing"),
        (ds.select_columns(["id", "a"]), model, {}, '"b"'),
    ]
    for given, given_model, options, message in cases:
        with pytest.raises(UsageError, match=message) as caught:
            torchbeam.ray.score(given, given_model, **options)
        assert "\n" not in str(caught.value)


def test_without_ray(model: ModelDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "ray.data", None)
    with pytest.raises(UsageError, match=r"needs Ray; pip install 'torchbeam\[ray\]'"):
        torchbeam.ray.score([], model)
