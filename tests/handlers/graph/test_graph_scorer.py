"""Which rows each of several models gets, and what becomes of a row; expected answers by hand.

`Linear(2)` answers "yes" where a > 0, with a confidence of sigmoid(|a|). `Touchy` fails where a value is 13.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from graphs import chunk_of, run
from small_models import GIVES_NAN, RAISES, Linear, Save, Touchy

from handlers.batching import ResourceHints
from handlers.columnar.chunks import with_refusals
from handlers.errors import BrokenModelError, UsageError
from handlers.failures import RowFailure
from handlers.graph.plan import GraphPlan, ModelSettings
from handlers.graph.planning import plan_graph
from handlers.graph.spec import ModelSplit
from handlers.model.directory import ModelDir

RANDOM = np.random.default_rng(3)
A, B = RANDOM.normal(size=500) * 2, RANDOM.normal(size=500)
ELSEWHERE = ResourceHints(min_ram="1GB")


@pytest.fixture
def small(save: Save) -> ModelDir:
    return save(Linear(2), task="classification", labels=["no", "yes"])


@pytest.fixture
def large(save: Save) -> ModelDir:
    return save(Touchy(3), task="classification", arguments={"classes": 3}, labels=["no", "yes", "so"])


def confidence(module: torch.nn.Module, a: Any, b: Any) -> np.ndarray:
    with torch.no_grad():
        logits = module(torch.tensor(np.stack([a, b], 1), dtype=torch.float32))
    found: np.ndarray = logits.softmax(1).max(1).values.numpy()
    return found


def column(batch: pa.RecordBatch, name: str) -> np.ndarray:
    found: np.ndarray = batch.column(name).to_numpy(zero_copy_only=False)
    return found


def plan_of(*models: ModelSettings, sample: pa.RecordBatch | None = None, **settings: Any) -> GraphPlan:
    return plan_graph(models, chunk_of(A, B) if sample is None else sample, **settings)


class TestTwoModels:
    @pytest.mark.parametrize("hints", [ResourceHints(), ELSEWHERE])
    def test_answers_of_both(self, small: ModelDir, large: ModelDir, hints: ResourceHints) -> None:
        plan = plan_of(ModelSettings("small", small), ModelSettings("large", large, hints=hints))
        assert len(plan.stages) == (1 if hints == ResourceHints() else 2)
        found = run(plan, chunk_of(A, B))
        assert found.rows.schema.equals(plan.output)
        assert found.rows.schema.names == [
            *("id", "a", "b"),
            *("small_predicted_class", "small_confidence", "small_model_version"),
            *("large_predicted_class", "large_confidence", "large_model_version"),
        ]
        assert found.counts("small") == found.counts("large") == (500, 500, 0, 0, 0)
        assert np.abs(column(found.rows, "small_confidence") - confidence(Linear(2), A, B)).max() <= 1e-6
        assert np.abs(column(found.rows, "large_confidence") - confidence(Linear(3), A, B)).max() <= 1e-6
        assert set(found.rows.column("large_model_version").to_pylist()) == {large.version}

    def test_one_model_keeps_its_names(self, small: ModelDir) -> None:
        plan = plan_of(ModelSettings("small", small, when="a > 0"))
        found = run(plan, chunk_of(A, B))
        assert found.rows.schema.names == ["id", "a", "b", "predicted_class", "confidence", "model_version"]
        assert found.counts("small") == (500, (A > 0).sum(), 0, 0, (A <= 0).sum())
        assert found.dropped == (A <= 0).sum()  # no model was to answer them

    def test_columns(self, small: ModelDir, large: ModelDir) -> None:
        plan = plan_of(
            ModelSettings("small", small), ModelSettings("large", large), columns=("id",), probabilities=True
        )
        names = run(plan, chunk_of(A, B)).rows.schema.names
        assert names[:3] == ["id", "small_predicted_class", "small_confidence"]
        assert {"small_probability_no", "large_probability_so"} < set(names)

    def test_no_rows(self, small: ModelDir, large: ModelDir) -> None:
        models = ModelSettings("small", small), ModelSettings("large", large, "small_confidence < 0.8", hints=ELSEWHERE)
        plan = plan_of(*models, sample=chunk_of([], []))
        assert plan.output.equals(plan_of(*models).output)
        assert run(plan, chunk_of([], [])).rows.num_rows == 0
        assert run(plan, chunk_of(A, B)).rows.num_rows == 500


class TestCascade:
    @pytest.mark.parametrize("hints", [ResourceHints(), ELSEWHERE])
    def test_equals_running_both_and_choosing(self, small: ModelDir, large: ModelDir, hints: ResourceHints) -> None:
        plan = plan_of(
            ModelSettings("small", small), ModelSettings("large", large, "small_confidence < 0.8", hints=hints)
        )
        found = run(plan, chunk_of(A, B))
        first, second = confidence(Linear(2), A, B), confidence(Linear(3), A, B)
        unsure = first < 0.8
        assert 50 < unsure.sum() < 450
        assert np.abs(column(found.rows, "small_confidence") - first).max() <= 1e-6
        answered = column(found.rows, "large_confidence")
        assert (np.isnan(answered) == ~unsure).all()
        assert np.abs(answered[unsure] - second[unsure]).max() <= 1e-6
        assert found.counts("large") == (500, unsure.sum(), 0, 0, (~unsure).sum())
        assert found.rows.column("large_model_version").null_count == (~unsure).sum()
        assert column(found.rows, "id").tolist() == list(range(500))

    def test_null_is_not_true(self, small: ModelDir, large: ModelDir) -> None:
        code = pa.array([None, 1, 2, None], pa.int64())
        models = ModelSettings("small", small), ModelSettings("large", large, "code > 1")
        sample = chunk_of([1.0] * 4, [1.0] * 4, code=code)
        found = run(plan_of(*models, sample=sample), sample)
        assert found.rows.column("large_confidence").is_valid().to_pylist() == [False, False, True, False]

    def test_rows_on_which_when_fails(self, small: ModelDir, large: ModelDir) -> None:
        text = pa.array(["1", "x", "3", "0"])
        models = ModelSettings("small", small), ModelSettings("large", large, "cast(text as int) > 0")
        sample = chunk_of([1.0] * 4, [1.0] * 4, text=text)
        found = run(plan_of(*models, sample=sample), sample)
        assert column(found.rows, "id").tolist() == [0, 2, 3]
        assert found.counts("large") == (4, 2, 0, 1, 1)
        (dead,) = found.dead
        assert (dead["dead_letter"]["stage"], dead["dead_letter"]["model"], dead["id"]) == ("when", "large", 1)
        assert 'when of model "large"' in dead["dead_letter"]["message"]

    @pytest.mark.parametrize(
        ("when", "expected"),
        [
            ("small_confidence <", "is not an SQL expression"),
            ("small_confidense < 0.8", 'there is no column "small_confidense"'),
            ("large_confidence < 0.8", 'there is no column "large_confidence"'),
            ("avg(small_confidence) < 0.8", "depends on other rows"),
            ("a > (select 1)", "depends on other rows"),
            ("small_confidence", "gives float, not true or false"),
            ("cast(small_predicted_class as int) > 0", "fails on each of the first 500 rows"),
        ],
    )
    def test_refused(self, small: ModelDir, large: ModelDir, when: str, expected: str) -> None:
        with pytest.raises(UsageError) as caught:
            plan_of(ModelSettings("small", small), ModelSettings("large", large, when))
        assert expected in str(caught.value)
        assert str(caught.value).startswith('when of model "large"')


class TestFailures:
    BAD = (3, 250, 499)

    @pytest.fixture
    def chunk(self) -> pa.RecordBatch:
        b = B.copy()
        b[list(self.BAD)] = RAISES, GIVES_NAN, RAISES
        return chunk_of(A, b)

    @pytest.mark.parametrize("hints", [ResourceHints(), ELSEWHERE])
    @pytest.mark.parametrize("large_first", [True, False])
    def test_dead_letter(
        self, small: ModelDir, large: ModelDir, chunk: pa.RecordBatch, hints: ResourceHints, large_first: bool
    ) -> None:
        models = [ModelSettings("small", small), ModelSettings("large", large, hints=hints)]
        found = run(plan_of(*(reversed(models) if large_first else models)), chunk)
        good = [row for row in range(500) if row not in self.BAD]
        assert column(found.rows, "id").tolist() == good
        assert np.abs(column(found.rows, "small_confidence") - confidence(Linear(2), A, B)[good]).max() <= 1e-6
        assert np.abs(column(found.rows, "large_confidence") - confidence(Linear(3), A, B)[good]).max() <= 1e-6
        assert sorted(row["id"] for row in found.dead) == list(self.BAD)
        for row in found.dead:
            assert (row["a"], row["b"]) == (A[row["id"]], chunk.column("b")[row["id"]].as_py())
            letter = row["dead_letter"]
            assert (letter["model"], letter["model_version"]) == ("large", large.version)
            assert (letter["source"], letter["row"]) == ("table", row["id"])
        assert found.by_error == {"forward/RuntimeError": 2, "head/NotANumber": 1}
        assert found.counts("large") == (500, 497, 0, 3, 0)
        # A row that is a dead letter already goes to no further model.
        assert found.counts("small") == ((497, 497, 0, 0, 0) if large_first else (500, 500, 0, 0, 0))

    @pytest.mark.parametrize("hints", [ResourceHints(), ELSEWHERE])
    def test_continue(self, small: ModelDir, large: ModelDir, chunk: pa.RecordBatch, hints: ResourceHints) -> None:
        large_node = ModelSettings("large", large, continues=True)
        found = run(plan_of(large_node, ModelSettings("small", small, hints=hints)), chunk)
        assert found.dead == []
        assert column(found.rows, "id").tolist() == list(range(500))
        failed = ~found.rows.column("large_model_version").is_valid().to_numpy(zero_copy_only=False)
        assert np.flatnonzero(failed).tolist() == list(self.BAD)
        errors = found.rows.column("large_error").to_pylist()
        assert [row for row, error in enumerate(errors) if error] == list(self.BAD)
        assert errors[3] == f"forward/RuntimeError: cannot take {RAISES}"
        expected = confidence(Linear(2), A, column(chunk, "b"))
        assert np.abs(column(found.rows, "small_confidence") - expected).max() <= 1e-6
        assert found.counts("large") == (500, 497, 0, 3, 0)
        assert found.models["large"].dead_by_error == {"forward/RuntimeError": 2, "head/NotANumber": 1}

    @pytest.mark.parametrize("hints", [ResourceHints(), ELSEWHERE])
    def test_no_answer_at_all(
        self, small: ModelDir, large: ModelDir, chunk: pa.RecordBatch, hints: ResourceHints
    ) -> None:
        """A row on which one model failed and that no other answered is a dead letter, also with `continue`."""
        models = (
            ModelSettings("large", large, continues=True),
            ModelSettings("small", small, "id > 100", hints=hints),
        )
        found = run(plan_of(*models), chunk)
        assert [row["id"] for row in found.dead] == [3]
        assert found.dead[0]["dead_letter"]["model"] == "large"
        assert found.dead[0]["dead_letter"]["message"] == f"cannot take {RAISES}"
        assert found.rows.num_rows == 499

    def test_refused_at_read(self, small: ModelDir, large: ModelDir) -> None:
        plan = plan_of(ModelSettings("small", small), ModelSettings("large", large, hints=ELSEWHERE))
        chunk = with_refusals(chunk_of(A, B), {7: RowFailure("read", "BadValue", "no number", '{"a": "x"}')})
        found = run(plan, chunk)
        assert found.counts("small") == found.counts("large") == (499, 499, 0, 0, 0)
        (dead,) = found.dead
        assert (dead["dead_letter"]["model"], dead["dead_letter"]["raw"]) == (None, '{"a": "x"}')

    def test_broken_model_is_named(self, small: ModelDir, save: Save) -> None:
        broken = save(Touchy(2), task="classification", labels=["only"])
        with pytest.raises(BrokenModelError, match='model "large": the model gave 2 classes'):
            plan_of(ModelSettings("small", small), ModelSettings("large", broken))


class TestInputsFrom:
    @pytest.mark.parametrize("hints", [ResourceHints(), ELSEWHERE])
    @pytest.mark.parametrize("names", ["embedding", "emb_embedding"])
    def test_embedding_to_classifier(self, save: Save, hints: ResourceHints, names: str) -> None:
        emb = save(Touchy(2), task="embedding")
        inputs = [{"name": "x", "columns": [names]}]
        clf = save(Linear(2), task="classification", labels=["no", "yes"], inputs=inputs)
        b = B.copy()
        b[9] = RAISES
        models = (
            ModelSettings("emb", emb, "id < 300", continues=True),
            ModelSettings("clf", clf, None, ("emb",), hints=hints),
        )
        plan = plan_of(*models)
        assert plan.needed == {"a", "b", "id"}
        found = run(plan, chunk_of(A, b))
        kept = [row for row in range(300) if row != 9]
        assert column(found.rows, "id").tolist() == kept
        assert found.counts("clf") == (500, 299, 0, 0, 201)
        first, second = B[kept] + 0.5, A[kept] + B[kept] + 0.5  # the embedding
        assert np.abs(column(found.rows, "clf_confidence") - confidence(Linear(2), first, second)).max() <= 1e-5
        assert [row["id"] for row in found.dead] == [9]
        assert found.dropped == 200
        assert "embedding" not in found.rows.schema.names

    def test_name_of_an_input_column(self, save: Save) -> None:
        emb = save(Linear(2), task="embedding")
        clf = save(Linear(2), inputs=[{"name": "x", "columns": ["embedding"]}])
        sample = chunk_of(A, B, embedding=A)
        with pytest.raises(UsageError, match='the input has a column "embedding", and so have the outputs of "emb"'):
            plan_of(ModelSettings("emb", emb), ModelSettings("clf", clf, inputs_from=("emb",)), sample=sample)

    def test_missing_column_is_named(self, save: Save) -> None:
        clf = save(Linear(2), inputs=[{"name": "x", "columns": ["embedding"]}])
        with pytest.raises(UsageError, match='model "clf": column "embedding" is missing'):
            plan_of(ModelSettings("emb", save(Linear(2), task="embedding")), ModelSettings("clf", clf))


class TestSplit:
    @pytest.mark.parametrize("hints", [ResourceHints(), ELSEWHERE])
    def test_each_row_by_one(self, small: ModelDir, large: ModelDir, hints: ResourceHints) -> None:
        split = ModelSplit("id", (("small", 0.7), ("large", 0.3)))
        plan = plan_of(ModelSettings("small", small), ModelSettings("large", large, hints=hints), split=split)
        found = run(plan, chunk_of(A, B))
        chosen = np.array(found.rows.column("model").to_pylist())
        assert 120 < (chosen == "large").sum() < 180
        for name, module in (("small", Linear(2)), ("large", Linear(3))):
            mine = chosen == name
            answered = column(found.rows, f"{name}_confidence")
            assert (np.isnan(answered) == ~mine).all()
            assert np.abs(answered[mine] - confidence(module, A, B)[mine]).max() <= 1e-6
            assert found.counts(name) == (500, mine.sum(), 0, 0, (~mine).sum())
        again = run(plan, chunk_of(A, B).slice(100, 50)).rows.column("model").to_pylist()
        assert again == chosen[100:150].tolist()

    def test_refused(self, small: ModelDir, large: ModelDir) -> None:
        models = ModelSettings("small", small), ModelSettings("large", large)
        with pytest.raises(UsageError, match='split by "nobody": the input has no such column'):
            plan_of(*models, split=ModelSplit("nobody", (("small", 0.7), ("large", 0.3))))
        split = ModelSplit("id", (("small", 0.7), ("large", 0.3)))
        with pytest.raises(UsageError, match='split makes a column "model", and so does the input'):
            plan_of(*models, split=split, sample=chunk_of(A, B, model=A))


class TestFunctions:
    def test_dropped_rows(self, small: ModelDir, save: Save) -> None:
        """A row that a function of one model leaves out keeps the answers of the others; it is dropped where no one has any."""
        picky = save(Linear(2), task="classification", postprocess=["row_functions:batch_evens"])
        models = ModelSettings("picky", picky), ModelSettings("small", small, "id < 100")
        found = run(plan_of(*models), chunk_of(A, B))
        assert found.counts("picky") == (500, 250, 250, 0, 0)
        assert found.counts("small") == (500, 100, 0, 0, 400)
        expected = [row for row in range(500) if row < 100 or row % 2 == 0]
        assert column(found.rows, "id").tolist() == expected
        assert found.dropped == 200


class TestPlan:
    def test_settings(self, small: ModelDir) -> None:
        for settings, expected in (
            ([], "no models"),
            ([ModelSettings("a b", small)], '"a b" is no name'),
            ([ModelSettings("a", small), ModelSettings("a", small)], "two models have the name"),
            ([ModelSettings("a", small, inputs_from=("b",)), ModelSettings("b", small)], "no model before it"),
        ):
            with pytest.raises(UsageError, match=expected):
                plan_of(*settings)

    def test_stages(self, small: ModelDir, large: ModelDir) -> None:
        """Models with the same hints share a stage, as early as what they use allows."""
        models = (
            ModelSettings("one", small),
            ModelSettings("two", large, hints=ELSEWHERE),
            ModelSettings("three", small),
            ModelSettings("four", small, "two_confidence > 0"),
            ModelSettings("five", large, hints=ELSEWHERE),
        )
        plan = plan_of(*models)
        assert [[node.name for node in stage] for stage in plan.stages] == [["one", "three"], ["two", "five"], ["four"]]
        names = [name for name in plan.output.names if name.endswith("_model_version")]
        assert names == [f"{each.name}_model_version" for each in models]
        found = run(plan, chunk_of(A, B))
        assert all(found.counts(each.name) == (500, 500, 0, 0, 0) for each in models)

    def test_windows(self, small: ModelDir, save: Save) -> None:
        sequences = {"by": ["id"], "order_by": "a", "columns": ["b"], "length": 3}
        inputs = [{"name": "x", "columns": ["b"], "encoder": "sequence", "max_length": 3}]
        windows = save(Linear(2), sequences=sequences, inputs=inputs)
        with pytest.raises(UsageError, match='models "small" and "windows" have other sequences'):
            plan_of(ModelSettings("small", small), ModelSettings("windows", windows))

    def test_environment_variables(self, save: Save) -> None:
        one, two = (save(Linear(2), env_vars={"OMP_NUM_THREADS": threads}) for threads in ("1", "2"))
        with pytest.raises(UsageError, match='env_vars of models "one" and "two" set OMP_NUM_THREADS to "1" and "2"'):
            plan_of(ModelSettings("one", one), ModelSettings("two", two))

    def test_two_columns_of_one_name(self, small: ModelDir, save: Save) -> None:
        sample = chunk_of(A, B, small_confidence=A)
        with pytest.raises(UsageError, match='model "small" makes a column "small_confidence", and so does the input'):
            plan_of(ModelSettings("small", small), ModelSettings("large", small), sample=sample, columns=("id",))
