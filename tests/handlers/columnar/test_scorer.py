"""Whole chunks through the whole chain: predictions against plain torch, and every row accounted for."""

import datetime
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
import small_models
import torch
from apache_beam.ml.inference.base import RunInference
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import Save

from handlers.columnar.chunks import with_provenance
from handlers.columnar.handler import ColumnarModelHandler
from handlers.columnar.plan import Chain, Plan
from handlers.columnar.planning import make_plan
from handlers.columnar.scorer import Scored, Scorer
from handlers.errors import BrokenModelError, UsageError
from handlers.model.directory import ModelDir
from handlers.predict.predictor import Predictor

POISON = 666
RAISES, GIVES_NAN = small_models.RAISES, small_models.GIVES_NAN


def chunk(**columns: Any) -> pa.RecordBatch:
    return with_provenance(pa.record_batch(columns), "in.csv", 0)


def settle(
    model: ModelDir, sample: pa.RecordBatch, columns: tuple[str, ...] = ("*",), **chain: Any
) -> tuple[Plan, Scorer]:
    predictor = Predictor(model.load())
    plan = make_plan(model, predictor, sample, Chain.of(model.spec, **chain), columns)
    return plan, Scorer(model, plan, predictor)


def letters(scored: Scored) -> dict[int, str]:
    """Stage and type of the dead letters by the number of the row that was read."""
    found = scored.dead_letters.column("dead_letter").to_pylist()
    return {each["row"]: f"{each['stage']}/{each['type']}" for each in found}


def total(scored: Scored) -> int:
    return scored.predictions.num_rows + scored.dropped + scored.dead_letters.num_rows


CLASSIFIER = {"task": "classification", "labels": ["no", "yes"]}
GOOD = chunk(
    a=[0.0, 1.0, -2.0],
    b=[1.0, 2.0, 3.0],
    when=[datetime.datetime(2024, 1, day, tzinfo=datetime.UTC) for day in (1, 2, 3)],
)


class TestScore:
    def test_predictions_stand_beside_the_input(self, save: Save) -> None:
        model = save(**CLASSIFIER)
        plan, scorer = settle(model, GOOD)
        scored = scorer.score(GOOD)
        logits = small_models.Linear()(torch.tensor([[0.0, 1.0], [1.0, 2.0], [-2.0, 3.0]]))
        expected = torch.softmax(logits, 1).max(1)
        assert scored.predictions.schema == plan.output
        assert scored.predictions.schema.names == ["a", "b", "when", "predicted_class", "confidence", "model_version"]
        assert scored.predictions.column("when").equals(GOOD.column("when"))
        assert scored.predictions.column("predicted_class").to_pylist() == [
            ["no", "yes"][code] for code in expected.indices.tolist()
        ]
        assert np.allclose(
            scored.predictions.column("confidence").to_numpy(), expected.values.detach().numpy(), atol=1e-6
        )
        assert set(scored.predictions.column("model_version").to_pylist()) == {model.version}
        assert total(scored) == 3
        assert not scored.dead_letters.num_rows

    def test_failures_of_every_stage(self, save: Save) -> None:
        model = save(small_models.Touchy(), **CLASSIFIER, features={"f": "cast(s as double)"})
        sample = chunk(a=[0.0], b=[1.0], s=["1"])
        _, scorer = settle(
            model, sample, preprocess=("row_functions:row_poisoned",), postprocess=("row_functions:confident",)
        )
        rows = chunk(
            a=[0.0, float(POISON), None, RAISES, GIVES_NAN, 3.0, float("inf"), 0.1],
            b=[1.0] * 8,
            s=["1", "1", "1", "1", "1", "x", "1", "1"],
        )
        scored = scorer.score(rows)
        assert letters(scored) == {
            1: "preprocess/KeyError",
            2: "preprocess/TypeError",
            3: "forward/RuntimeError",
            4: "head/NotANumber",
            5: "features/InvalidOperationError",
            6: "encode/NotFinite",
        }
        # Rows 0 and 7 have logits that differ by 0 and 0.1: both are below the 0.6 that postprocess asks for.
        assert scored.dropped == 2
        assert total(scored) == 8
        assert scored.dead_by_error["forward/RuntimeError"] == 1
        assert sum(scored.dead_by_error.values()) == 6

    def test_dead_letters_are_the_rows_as_they_were_read(self, save: Save) -> None:
        model = save(small_models.Touchy(), preprocess=["row_functions:frame_clipped"])
        sample = chunk(a=[0.5], b=[1.0])
        _, scorer = settle(model, sample)
        rows = with_provenance(pa.record_batch({"a": [9.0, 0.0, 8.0], "b": [RAISES, 1.0, GIVES_NAN]}), "in.csv", 40)
        found = scorer.score(rows).dead_letters.to_pylist()
        assert [(each["a"], each["b"]) for each in found] == [(9.0, RAISES)]
        reason = found[0]["dead_letter"]
        assert reason["source"] == "in.csv"
        assert reason["row"] == 40
        assert reason["model_version"] == model.version
        assert reason["message"] == "cannot take 13.0"

    def test_rows_that_change_places_keep_their_own_values(self, save: Save) -> None:
        model = save(
            task="regression", inputs=[{"name": "x", "columns": ["a", "b"]}], preprocess=["row_functions:frame_sorted"]
        )
        rows = chunk(a=[1.0, 3.0, 2.0], b=[0.0] * 3, id=["one", "three", "two"])
        _, scorer = settle(model, rows)
        predictions = scorer.score(rows).predictions.to_pydict()
        assert predictions["id"] == ["three", "two", "one"]
        assert predictions["a"] == [3.0, 2.0, 1.0]
        assert predictions["prediction"] == [[0.5, 3.5], [0.5, 2.5], [0.5, 1.5]]

    def test_no_rows(self, save: Save) -> None:
        plan, scorer = settle(save(**CLASSIFIER), GOOD)
        scored = scorer.score(GOOD.slice(0, 0))
        assert total(scored) == 0
        assert scored.predictions.schema == plan.output

    def test_no_rows_that_can_be_scored(self, save: Save) -> None:
        plan, scorer = settle(save(**CLASSIFIER), GOOD, postprocess=("row_functions:confident",))
        scored = scorer.score(chunk(a=[None, None], b=[1.0, 1.0], when=GOOD.column("when").slice(0, 2)))
        assert letters(scored) == {0: "encode/NullValue", 1: "encode/NullValue"}
        assert scored.predictions.schema == plan.output

    def test_a_chunk_that_lacks_a_column(self, save: Save) -> None:
        _, scorer = settle(save(), chunk(a=[1.0], b=[1.0]), columns=("b",))
        assert letters(scorer.score(chunk(b=[1.0, 2.0]))) == dict.fromkeys([0, 1], "encode/MissingColumn")

    def test_several_inputs(self, save: Save) -> None:
        model = save(
            small_models.TwoInputs(),
            task="regression",
            inputs=[{"name": "b", "columns": ["q"]}, {"name": "a", "columns": ["p"]}],
        )
        rows = chunk(p=[1.0, 2.0, None], q=[10.0, None, 3.0])
        scored = settle(model, rows.slice(0, 1))[1].score(rows)
        assert scored.predictions.column("prediction").to_pylist() == [-19.0]
        assert letters(scored) == {1: "encode/NullValue", 2: "encode/NullValue"}

    def test_a_feature_in_the_place_of_a_column_leaves_the_carried_one(self, save: Save) -> None:
        model = save(task="regression", features={"a": "a * 10"})
        rows = chunk(a=[1.0], b=[0.0])
        plan, scorer = settle(model, rows)
        assert plan.needed == {"a", "b"}
        assert scorer.score(rows).predictions.to_pydict() | {"model_version": []} == {
            "a": [1.0],
            "b": [0.0],
            "prediction": [[0.5, 10.5]],
            "model_version": [],
        }


class TestPlan:
    def test_columns_to_carry(self, save: Save) -> None:
        rows = chunk(a=[1.0], b=[1.0], id=[7], name=["x"])
        assert settle(save(), rows, columns=("id", "n*"))[0].carried == ("id", "name")
        with pytest.raises(UsageError, match='--columns: there is no column "z'):
            settle(save(), rows, columns=("z*",))

    def test_a_column_that_the_predictions_have_too(self, save: Save) -> None:
        rows = chunk(a=[1.0], b=[1.0], confidence=[0.5])
        with pytest.raises(UsageError, match=r'has a column "confidence" and so have the predictions; .*--columns=a,b'):
            settle(save(**CLASSIFIER), rows, postprocess=("row_functions:confident",))
        assert "confidence" in settle(save(**CLASSIFIER), rows, columns=("a",))[0].output.names

    def test_preprocess_makes_the_columns_of_the_model(self, save: Save) -> None:
        model = save(inputs=[{"name": "x", "columns": ["a", "double"]}], task="regression")
        rows = chunk(a=[1.0, 2.0])
        plan, scorer = settle(model, rows, preprocess=("row_functions:frame_doubled",))
        assert plan.needed == {"a"}
        assert scorer.score(rows).predictions.column("prediction").to_pylist() == [[2.5, 3.5], [4.5, 6.5]]

    @pytest.mark.parametrize("kind", ["batch", "frame", "row"])
    def test_an_empty_sample(self, save: Save, kind: str) -> None:
        """An empty input is a run of no rows, whatever its functions make of it."""
        model = save(inputs=[{"name": "x", "columns": ["a", "double"]}], **CLASSIFIER, features={"f": "a + 1"})
        empty = chunk(a=pa.array([], pa.float64()), b=pa.array([], pa.string()))
        plan, scorer = settle(model, empty, preprocess=(f"row_functions:{kind}_doubled",))
        assert plan.output is not None
        assert plan.output.names == ["a", "b", "predicted_class", "confidence", "model_version"]
        scored = scorer.score(chunk(a=[1.0, 2.0], b=["x", "y"]))
        assert total(scored) == 2
        if kind == "row":  # nobody could know the column that it makes
            assert letters(scored) == dict.fromkeys([0, 1], "encode/NotPlanned")
        else:
            assert scored.predictions.num_rows == 2

    def test_an_empty_sample_of_lists(self, save: Save) -> None:
        """How long they are is not known, and need not be."""
        model = save(**CLASSIFIER)
        empty = chunk(a=pa.array([], pa.list_(pa.float64())), b=pa.array([], pa.float64()))
        plan, scorer = settle(model, empty, postprocess=("row_functions:without_confidence",))
        assert plan.output.names == ["a", "b", "predicted_class", "model_version"]
        assert scorer.score(empty).predictions.schema == plan.output
        assert letters(scorer.score(chunk(a=[[1.0]], b=[1.0]))) == {0: "encode/NotPlanned"}

    def test_no_columns_at_all(self, save: Save) -> None:
        nothing = with_provenance(pa.RecordBatch.from_pylist([], schema=pa.schema([])), "in.csv", 0)
        assert settle(save(), nothing)[0].output.names == ["model_version"]

    def test_a_sample_in_which_no_row_can_be_scored(self, save: Save) -> None:
        rows = chunk(a=pa.nulls(3, pa.float64()), b=[1.0, 2.0, 3.0])
        plan, scorer = settle(save(**CLASSIFIER), rows, postprocess=("row_functions:confident",))
        assert plan.output.names == ["a", "b", "predicted_class", "confidence", "model_version"]
        assert scorer.score(chunk(a=[5.0], b=[1.0])).predictions.schema == plan.output

    def test_a_model_that_fails_on_everything(self, save: Save) -> None:
        with pytest.raises(BrokenModelError, match=r"fails on the first 1 rows and on zeros.*no kernel"):
            settle(save(small_models.NeverWorks()), chunk(a=[1.0], b=[1.0]))

    @pytest.mark.parametrize("where", ["preprocess", "postprocess"])
    def test_a_function_that_fails_on_the_whole_sample(self, save: Save, where: str) -> None:
        with pytest.raises(UsageError, match=f"{where} fails on each of the first 2 rows: .*never works"):
            settle(save(), chunk(a=[1.0, 2.0], b=[1.0, 2.0]), **{where: ("row_functions:always_failing",)})

    def test_a_function_that_breaks_its_contract(self, save: Save) -> None:
        rows = chunk(a=[1.0, -1.0], b=[1.0, 2.0])
        with pytest.raises(
            UsageError, match="preprocess row_functions:batch_filtered_without_ids: took 1 rows and gave 0"
        ):
            settle(save(), rows, preprocess=("row_functions:batch_filtered_without_ids",))

    def test_a_missing_column(self, save: Save) -> None:
        with pytest.raises(UsageError, match=r'column "b" is missing; the model input "x" needs it. There are: a, c'):
            settle(save(), chunk(a=[1.0], c=[1.0]))

    def test_labels_that_do_not_fit_the_model(self, save: Save) -> None:
        with pytest.raises(BrokenModelError, match=r"gave 2 classes, but model.yaml has 3 labels"):
            settle(save(task="classification", labels=["a", "b", "c"]), chunk(a=[1.0], b=[1.0]))


class TestOutputSchema:
    """What a function gives later must fit what it gave for the sample, without loss; else it is a dead letter."""

    def scored(self, save: Save, function: str, **rows: Any) -> Scored:
        _, scorer = settle(
            save(**CLASSIFIER), chunk(a=[1.0, 2.0], b=[1.0, 1.0]), postprocess=(f"row_functions:{function}",)
        )
        return scorer.score(chunk(**rows))

    def test_a_column_that_the_sample_had_not(self, save: Save) -> None:
        scored = self.scored(save, "extra_column_when_poisoned", a=[1.0, float(POISON), 2.0], b=[1.0] * 3)
        assert letters(scored) == dict.fromkeys(range(3), "postprocess/ValueError")
        assert 'column "surprise" is new' in scored.dead_letters.column("dead_letter")[0].as_py()["message"]
        scored = self.scored(save, "extra_key_when_poisoned", a=[1.0, float(POISON), 2.0], b=[1.0] * 3)
        assert letters(scored) == {1: "postprocess/ValueError"}
        assert scored.predictions.column("a").to_pylist() == [1.0, 2.0]

    def test_a_value_that_does_not_fit(self, save: Save) -> None:
        scored = self.scored(save, "wide_when_poisoned", a=[1.0, float(POISON), 2.0], b=[1.0] * 3)
        assert scored.predictions.column("score") == pa.array([1, 1])
        assert letters(scored) == {1: "postprocess/ValueError"}
        assert 'column "score" does not fit' in scored.dead_letters.column("dead_letter")[0].as_py()["message"]

    def test_a_column_that_was_taken_off(self, save: Save) -> None:
        scored = self.scored(save, "without_confidence", a=[1.0], b=[1.0])
        assert scored.predictions.schema.names == ["a", "b", "predicted_class", "model_version"]

    def test_frames_keep_the_types_of_the_output(self, save: Save) -> None:
        scored = self.scored(save, "confident", a=[5.0], b=[1.0])
        schema = scored.predictions.schema
        assert schema.field("confidence").type == pa.float32()
        assert schema.field("predicted_class").type == pa.string()
        assert schema.field("model_version").type == pa.dictionary(pa.int32(), pa.string())


@pytest.fixture(scope="module")
def touchy(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelDir, Scorer]:
    folder: Path = tmp_path_factory.mktemp("models") / "touchy"
    model = ModelDir.save(
        small_models.Touchy(), folder, inputs=[{"name": "x", "columns": ["a", "b"]}], task="classification"
    )
    functions = {"preprocess": ("row_functions:frame_poisoned",), "postprocess": ("row_functions:confident",)}
    return model, settle(model, chunk(a=[0.0, 1.0], b=[1.0, 1.0]), **functions)[1]


KINDS = {"good": 1.0, "dropped": 0.0, "preprocess": float(POISON), "encode": None, "forward": RAISES, "head": GIVES_NAN}


@settings(max_examples=60, deadline=None)
@given(kinds=st.lists(st.sampled_from(list(KINDS)), max_size=40))
def test_every_row_comes_out_once(touchy: tuple[ModelDir, Scorer], kinds: list[str]) -> None:
    _, scorer = touchy
    count = len(kinds)
    rows = chunk(a=pa.array([KINDS[kind] for kind in kinds], pa.float64()), b=pa.array([1.0] * count, pa.float64()))
    scored = scorer.score(rows)
    assert total(scored) == count
    assert {row: stage.split("/")[0] for row, stage in letters(scored).items()} == {
        row: kind for row, kind in enumerate(kinds) if kind not in ("good", "dropped")
    }
    assert scored.dropped == kinds.count("dropped")
    # logits 1.5 and 2.5: softmax of the second is 1 / (1 + exp(-1))
    assert np.allclose(scored.predictions.column("confidence").to_numpy(), [0.7310586] * kinds.count("good"), atol=1e-6)


def test_a_refresh_is_refused(save: Save) -> None:
    """It would load the same model again, without a word."""
    model = save()
    handler = ColumnarModelHandler(model, Plan(Chain({}), (), (), frozenset()))
    handler.update_model_path(None)
    handler.update_model_path(model.path)
    with pytest.raises(UsageError, match=r"cannot change from .* to /models/new .*; start a new run, or use Torch"):
        handler.update_model_path("/models/new")


@pytest.mark.parametrize("as_side_input", [False, True])
def test_inference_args_are_refused(save: Save, as_side_input: bool) -> None:
    model = save(**CLASSIFIER)
    plan, _ = settle(model, GOOD)
    chunks = beam.Pipeline() | beam.Create([GOOD], reshuffle=False)
    arguments = beam.pvalue.AsDict(chunks | beam.Map(lambda _: ("add", 1))) if as_side_input else {"add": 1}
    with pytest.raises(UsageError, match="ColumnarModelHandler takes no inference_args"):
        _ = chunks | RunInference(ColumnarModelHandler(model, plan), inference_args=arguments)
