"""Chunks whose model is exchanged between two batches: what is taken, what is refused, and what it scores."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from small_models import GIVES_NAN, RAISES, Linear, Touchy

from handlers.columnar.chunks import with_provenance, with_refusals
from handlers.columnar.handler import ColumnarModelHandler
from handlers.columnar.plan import Chain
from handlers.columnar.planning import make_plan
from handlers.columnar.refreshing import ScorerRefresher
from handlers.columnar.scorer import Scored
from handlers.errors import UsageError
from handlers.failures import RowFailure
from handlers.model.directory import ModelDir
from handlers.predict.predictor import Predictor
from handlers.refresh.watch import ModelWatch, Refresh

CLASSIFIER = {"task": "classification", "labels": ["no", "yes"]}
INPUTS = [{"name": "x", "columns": ["a", "b"]}]
Write = Callable[..., ModelDir]


def chunk(**columns: Any) -> pa.RecordBatch:
    return with_provenance(pa.record_batch(columns), "in.csv", 0)


ROWS = chunk(id=[7, 8, 9], a=[0.0, 1.0, -2.0], b=[1.0, 2.0, 3.0])


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(version: int, slope: float = 1.0, module: torch.nn.Module | None = None, **fields: Any) -> ModelDir:
        module = module or Linear(2)
        with torch.no_grad():
            module.layer.weight.mul_(slope)  # type: ignore[union-attr,operator]
        return ModelDir.save(module, tmp_path / f"models/{version}", **{"inputs": INPUTS, **CLASSIFIER, **fields})

    return write


def begin(
    first: ModelDir, sample: pa.RecordBatch = ROWS, columns: tuple[str, ...] = ("id",), **chain: Any
) -> tuple[ColumnarModelHandler, ScorerRefresher]:
    plan = make_plan(first, Predictor(first.load()), sample, Chain.of(first.spec, **chain), columns, probabilities=True)
    refresh = Refresh(ModelWatch(f"{Path(first.path).parent}/*"), 86_400)
    handler = ColumnarModelHandler(first, plan, refresh=refresh, sample=sample)
    refresher = handler.load_model()
    assert isinstance(refresher, ScorerRefresher)
    return handler, refresher


def look_twice(refresher: ScorerRefresher) -> None:
    refresher.look()
    refresher.look()


def score(handler: ColumnarModelHandler, refresher: ScorerRefresher, rows: pa.RecordBatch = ROWS) -> Scored:
    (scored,) = handler.run_inference([rows], refresher)
    return scored


def versions(scored: Scored) -> set[str]:
    return set(scored.predictions.column("model_version").to_pylist())


def expected(slope: float) -> np.ndarray:
    """The probability of yes: the weights are (0, 1) and (1, 1), times the slope."""
    a, b = torch.tensor([0.0, 1.0, -2.0]), torch.tensor([1.0, 2.0, 3.0])
    logits = torch.stack([slope * b, slope * (a + b)], 1)
    return torch.softmax(logits, 1)[:, 1].numpy()


def test_every_row_names_the_version_that_scored_it(write: Write) -> None:
    first = write(1)
    handler, refresher = begin(first)
    before = score(handler, refresher)
    second = write(2, 3.0)
    refresher.look()
    assert versions(score(handler, refresher)) == {first.version}
    refresher.look()
    after = score(handler, refresher)
    assert (versions(before), versions(after)) == ({first.version}, {second.version})
    assert np.allclose(before.predictions.column("probability_yes"), expected(1.0), atol=1e-6)
    assert np.allclose(after.predictions.column("probability_yes"), expected(3.0), atol=1e-6)
    assert before.predictions.schema == after.predictions.schema == handler.plan.output


def test_a_batch_is_scored_by_one_model(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one of chunks whose schemas have no common type, which are scored one after the other."""
    first = write(1)
    handler, refresher = begin(first)
    write(2, 3.0)
    refresher.look()
    own = ColumnarModelHandler._score

    def look_after(self: ColumnarModelHandler, *arguments: Any) -> Scored:
        scored = own(self, *arguments)
        refresher.look()  # in the middle of the batch
        return scored

    monkeypatch.setattr(ColumnarModelHandler, "_score", look_after)
    other = chunk(id=[1], a=pa.array(["2.0"]), b=[1.0])
    parts = list(handler.run_inference([ROWS, other], refresher))
    assert len(parts) == 2
    assert versions(parts[0]) == {first.version}
    assert {each["model_version"] for part in parts for each in part.dead_letters["dead_letter"].to_pylist()} <= {
        first.version
    }
    assert refresher.version != first.version


def test_the_chain_of_the_new_model_runs(write: Write) -> None:
    first = write(1, features={"c": "a + 1"}, inputs=[{"name": "x", "columns": ["c", "b"]}])
    handler, refresher = begin(first, postprocess=("row_functions:confident",))
    write(2, features={"d": "b * 2"}, inputs=[{"name": "x", "columns": ["a", "d"]}])
    look_twice(refresher)
    rows = chunk(id=[7, 8, 9], a=[0.0, 0.1, -2.0], b=[1.0, 2.0, 3.0])
    scored = score(handler, refresher, rows)
    yes = torch.sigmoid(torch.tensor([0.0, 0.1, -2.0])).numpy()  # logits 2b + 0.5 and a + 2b + 0.5
    confident = [max(each, 1 - each) for each in yes if max(each, 1 - each) > 0.6]
    assert np.allclose(scored.predictions.column("confidence"), confident, atol=1e-6)
    assert scored.dropped == 2


REFUSED = {
    "another task": ({"task": "regression", "labels": None}, 'no "predicted_class"'),
    "other labels": ({"labels": ["no", "maybe"]}, 'no "probability_yes", a new "probability_maybe"'),
    "their order": ({"labels": ["yes", "no"]}, "their order is id, predicted_class"),
    "no such column": ({"inputs": [{"name": "x", "columns": ["a", "zip"]}]}, 'column "zip" is missing'),
    "other variables": ({"env_vars": {"OMP_NUM_THREADS": "7"}}, "it has other env_vars than"),
    "a function of its own": ({"preprocess": ["nowhere:f"]}, '"nowhere:f" cannot be imported'),
    "a wrong feature": ({"features": {"c": "a +"}}, "c"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_model_that_does_not_fit_the_run_is_refused(
    write: Write, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    fields, message = REFUSED[kind]
    first = write(1)
    handler, refresher = begin(first)
    write(2, 3.0, **fields)
    look_twice(refresher)
    look_twice(refresher)
    (line,) = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert message in line
    assert "\n" not in line
    assert versions(score(handler, refresher)) == {first.version}


@pytest.mark.parametrize("given", ["a sample", "rows that were scored"])
@pytest.mark.parametrize("value", [RAISES, GIVES_NAN])
def test_a_model_that_fails_on_the_warm_up_rows_is_refused(
    write: Write, caplog: pytest.LogCaptureFixture, given: str, value: float
) -> None:
    rows = chunk(id=[1, 2, 3], a=[0.0, value, 1.0], b=[1.0, 2.0, 3.0])
    first = write(1)
    handler, refresher = begin(first, rows if given == "a sample" else rows.slice(0, 0))
    if given == "rows that were scored":
        score(handler, refresher, with_refusals(rows, {0: RowFailure("read", "BadJson", "no JSON")}))
    write(2, module=Touchy(), architecture="small_models:Touchy")
    look_twice(refresher)
    (line,) = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    count, row = (3, 1) if given == "a sample" else (2, 0)
    assert f"it fails on 1 of {count} warm-up rows that the running model scores, first on row {row}: " in line
    assert versions(score(handler, refresher)) == {first.version}


def test_rows_that_both_refuse_do_not_count(write: Write) -> None:
    rows = chunk(id=[1, 2, 3], a=[0.0, RAISES, None], b=[1.0, 2.0, 3.0])
    handler, refresher = begin(write(1, module=Touchy()), rows)
    second = write(2, 3.0, module=Touchy())
    look_twice(refresher)
    scored = score(handler, refresher, rows)
    assert versions(scored) == {second.version}
    assert scored.dead_by_error == {"forward/RuntimeError": 1, "encode/NullValue": 1}
    assert {each["model_version"] for each in scored.dead_letters["dead_letter"].to_pylist()} == {second.version}


def test_without_any_row_zeros_are_tried(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    handler, refresher = begin(write(1), ROWS.slice(0, 0))
    second = write(2, 3.0)
    look_twice(refresher)
    assert versions(score(handler, refresher)) == {second.version}
    handler, refresher = begin(second, ROWS.slice(0, 0))
    write(3, module=Touchy(), labels=["a", "b"], architecture="small_models:Touchy")
    look_twice(refresher)
    assert "probability_a" in caplog.text


def test_a_model_with_a_placement_is_refused(write: Write) -> None:
    first = write(1)
    placed = first.placed("auto")
    plan = make_plan(first, Predictor(first.load()), ROWS, Chain.of(first.spec))
    with pytest.raises(UsageError, match="has a placement, so it cannot be refreshed"):
        ColumnarModelHandler(placed, plan, refresh=Refresh(ModelWatch(first.path)))


def test_refreshes_are_counted(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    handler, refresher = begin(write(1))
    counted: dict[str, int] = {}

    def count(self: Any, name: str, number: int) -> None:
        counted[name] = counted.get(name, 0) + number

    monkeypatch.setattr("handlers.metrics.InferenceMetrics._count", count)
    write(2, 3.0)
    look_twice(refresher)
    (Path(write(3, 4.0).path) / "weights.safetensors").unlink()
    look_twice(refresher)
    score(handler, refresher)
    score(handler, refresher)
    assert counted["models_refreshed"] == counted["models_refused"] == 1
    assert counted["rows_scored"] == 6
