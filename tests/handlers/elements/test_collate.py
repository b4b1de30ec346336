"""Examples on their way to tensors: what a batch may hold, and that no example's answer depends on its neighbours."""

import datetime
from collections import Counter, defaultdict
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_handler import Encoder

from handlers import FailedPrediction, ModelDir, StateDict, TorchModelHandler
from handlers.elements.collate import Collator
from handlers.elements.rows import RowTable
from handlers.encode.base import BoundInput
from handlers.errors import TorchbeamError, UsageError

FIRST = [{"a": 0.5, "b": 1.5}]


SPECS: list[dict[str, Any]] = [
    {},
    {"fill": 7.0},
    {"allow_nonfinite": True},
    {"allow_nonfinite": True, "fill": 7.0},
    *({"dtype": dtype, "allow_nonfinite": True} for dtype in ("float16", "bfloat16", "float32", "float64")),
]
ODD = [
    *(None, "12", "1_000", "１２", b"12", "", "nan"),
    *(True, 2**53 + 1, 2**60 + 2**36 + 1, 2**63, 10**400, 10**5000, -(10**5000)),
    *(np.float32(1.1), np.float64(1.1), np.int8(3), np.bool_(True), np.longdouble(1.1)),
    *(np.datetime64("2020-01-01"), np.timedelta64(5, "s")),
    *(Decimal("1.5"), 1 + 0j, torch.tensor(3.0), np.array([3.0]), [3.0]),
    *(float("nan"), float("inf"), 1e39, 65520.0, 1e-320),
]

NUMBERS = st.one_of(
    st.floats(width=64),
    st.floats(-70000, 70000, width=64),
    st.integers(),
    st.integers(-(2**54), 2**54),
    st.booleans(),
    st.sampled_from([odd for odd in ODD if not isinstance(odd, torch.Tensor | np.ndarray | list)]),
)


class Echo(torch.nn.Module):
    """Gives what it is given."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, x):
        return x * 1


class Three(torch.nn.Module):
    """The sum of three numbers; it takes no other number of them, and only floats."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)
        torch.nn.init.ones_(self.layer.weight)
        torch.nn.init.zeros_(self.layer.bias)

    def forward(self, x):
        return self.layer(x)


class InPlace(torch.nn.Module):
    """Writes into its first input."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, a, b):
        return torch.cat([a.mul_(2), b], 1)


@pytest.fixture
def model(save):
    def write(module=None, **spec):
        return save(module or Echo(), inputs=[{"name": "x", "columns": ["a", "b"], **spec}])

    return write


@pytest.fixture
def weights(tmp_path):
    torch.save(Three().state_dict(), tmp_path / "weights.pt")
    return StateDict(str(tmp_path / "weights.pt"), Three)


def answers(handler, *batches):
    """What each batch gives, one after the other: numbers, or the type of the error."""
    handler = handler if isinstance(handler, TorchModelHandler) else TorchModelHandler(handler)
    scorer = handler.load_model()
    return [[_told(result.inference) for result in handler.run_inference(batch, scorer)] for batch in batches]


def _told(answer):
    if isinstance(answer, FailedPrediction):
        assert "\n" not in answer.message
        return f"{answer.stage} {answer.error_type}"
    return answer.tolist()


class TestPlainNumbers:
    """Rows of plain numbers take a shorter way, which must give the same result."""

    @pytest.mark.parametrize("spec", SPECS, ids=str)
    def test_a_value_is_the_same_first_and_later(self, model, spec):
        source = model(**spec)
        for odd in ODD:
            row = {"a": odd, "b": 1.5}
            ((alone,),) = answers(source, [row])
            _, (later,), (beside, _) = answers(source, FIRST, [row], [row, *FIRST])
            failed = [isinstance(found, str) for found in (alone, later, beside)]
            assert failed in ([True] * 3, [False] * 3), (type(odd), alone, later, beside)
            if not failed[0]:
                np.testing.assert_array_equal(alone, later)

    def test_other_mappings_than_dicts(self, model):
        counter, default = Counter(b=1), defaultdict(float, b=1.0)
        found = answers(model(), FIRST, [counter], [default])
        assert found[1:] == [["encode NullValue"], ["encode NullValue"]]
        assert dict(default) == {"b": 1.0}

    def test_bools_beside_other_numbers(self, model):
        found = answers(model(), [{"a": True, "b": 1}, {"a": 2, "b": 1}], [{"a": True, "b": 1}, {"a": 2, "b": None}])
        assert found == [[[1, 1], [2, 1]], [[1, 1], "encode NullValue"]]

    def test_an_integer_without_end_is_a_failure_of_its_own(self, model):
        huge = {"a": 10**5000, "b": 1.0}
        found = answers(model(), [huge, *FIRST], [huge, *FIRST])
        assert found == [["encode OutOfRange", [0.5, 1.5]]] * 2
        assert answers(model(), [{"a": [10**5000], "b": 1.0}, *FIRST])[0][1] == [0.5, 1.5]

    def test_inputs_of_the_same_columns_have_memory_of_their_own(self, save):
        inputs = [{"name": name, "columns": ["c", "d"], "dtype": "float64"} for name in "ab"]
        row = {"c": 1.0, "d": 2.0}
        assert answers(save(InPlace(), inputs=inputs), [row], [row]) == [[[2, 4, 1, 2]]] * 2

    def test_columns_in_another_order_than_the_keys(self, save):
        inputs = [{"name": "a", "columns": ["d", "c"]}, {"name": "b", "columns": ["c"], "shape": [1]}]
        row = {"c": 1.0, "d": 2.0}
        assert answers(save(InPlace(), inputs=inputs), [row], [row]) == [[[4, 2, 1]]] * 2

    @settings(deadline=None)
    @given(
        st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=5),
        st.sampled_from(["float16", "bfloat16", "float32", "float64"]),
        st.booleans(),
        st.sampled_from([None, 7.0]),
    )
    def test_the_short_way_gives_what_the_columns_give(self, tmp_path_factory, values, dtype, nonfinite, fill):
        spec = {"name": "x", "columns": ["a", "b"], "dtype": dtype, "allow_nonfinite": nonfinite, "fill": fill}
        folder = tmp_path_factory.getbasetemp() / f"{dtype}{nonfinite}{fill}"
        source = ModelDir(folder) if folder.exists() else ModelDir.save(Echo(), folder, inputs=[spec])
        table = RowTable(source, source.load())
        table.keep(table.encode(FIRST).binding)
        rows = [{"a": a, "b": b} for a, b in values]
        tensors = table.plain(rows)
        encoded = table.encode(rows)
        if tensors is None:
            plain = all(type(value) in (float, bool) for value in sum(values, ()))
            assert not plain or encoded.failures  # it steps aside for a reason
            return
        assert not encoded.failures
        wanted = encoded.tensors["x"]
        assert tensors["x"].dtype == wanted.dtype == getattr(torch, dtype)
        assert tensors["x"].is_contiguous()
        torch.testing.assert_close(tensors["x"], wanted, rtol=0, atol=0, equal_nan=True)


class TestValuesThatADtypeCannotHold:
    @pytest.mark.parametrize(
        ("dtype", "good", "bad", "error"),
        [
            ("int64", [1.0, 2.0], [1.5, 2.0], "NotAnInteger"),
            ("int64", [1.0, 2.0], [1.0, float("nan")], "NotFinite"),
            ("int64", [1.0, 2.0], [1.0, 1e30], "OutOfRange"),
            ("int8", [127, -128], [300, 1], "OutOfRange"),
            ("bool", [1, 0], [2, 0], "OutOfRange"),
            ("float16", [1.0, 2.0], [1e6, 2.0], "NotFinite"),
        ],
    )
    def test_numeric(self, model, dtype, good, bad, error):
        source = model(dtype=dtype)
        for kind in (torch.tensor, np.array, list):
            assert answers(source, [kind(good), kind(bad), kind(good)]) == [[good, f"encode {error}", good]]
        assert answers(source, [{"x": np.array(good)}, {"x": np.array(bad)}]) == [[good, f"encode {error}"]]

    @pytest.mark.parametrize("codes", [{"categories": ["u", "v"]}, {"num_categories": 2}])
    def test_categorical(self, save, codes):
        spec = {"name": "x", "encoder": "categorical", "shape": [], **codes}
        examples = [torch.tensor(1), torch.tensor(2), torch.tensor(-1), torch.tensor(0)]
        outside = "encode OutOfRange"
        assert answers(save(Echo(), inputs=[spec]), examples, [1, 2]) == [[1, outside, outside, 0], [1, outside]]
        assert answers(save(Echo(), inputs=[spec | {"unknown": 2}]), examples) == [[1, 2, 2, 0]]

    def test_rows_of_unequal_length(self, save):
        specs = [{"name": "input_ids", "encoder": "categorical", "num_categories": 9}]
        source = save(Encoder(), inputs=[*specs, {"name": "attention_mask", "dtype": "int64"}])
        scorer = (handler := TorchModelHandler(source)).load_model()
        examples = [{"input_ids": torch.tensor(ids)} for ids in ([1, 2, 3], [4, 9], [5], [-1, 1])]
        found = [result.inference for result in handler.run_inference(examples, scorer)]
        assert [isinstance(answer, FailedPrediction) for answer in found] == [False, True, False, True]
        assert found[0][0].tolist() == [2, 3, 4]
        assert found[2][0].tolist() == [6]

    def test_an_exported_model_is_told_of_what_is_not_finite(self, tmp_path):
        source = ModelDir.save(Three(), tmp_path / "m", format="torch_export", example=(torch.zeros(2, 3),))
        large = torch.tensor([1e39, 1.0, 1.0], dtype=torch.float64)
        nan = torch.tensor([float("nan"), 1.0, 1.0])
        good = torch.ones(3, dtype=torch.float64)
        for handler in (source, str(tmp_path / "m" / source.spec.weights)):
            assert answers(handler, [large, nan, good]) == [["encode NotFinite", "encode NotFinite", [3.0]]]

    def test_the_only_input_goes_by_any_name(self, save):
        source = save(Echo(), inputs=[{"name": "features", "columns": ["a"]}])
        nan = torch.tensor([float("nan")])
        found = answers(source, [{"features": nan}, nan, {"x": nan}], [{"x": torch.tensor([3])}])
        assert found == [["encode NotFinite"] * 3, [[3.0]]]

    def test_a_signature_that_the_model_contradicts(self, tmp_path):
        inputs = [{"name": "x", "columns": ["a"], "dtype": "float64"}]
        example = (torch.zeros(2, 3),)
        source = ModelDir.save(Three(), tmp_path / "m", format="torch_export", example=example, inputs=inputs)
        with pytest.raises(UsageError, match="was exported with float32"):
            answers(source, [torch.ones(3)])

    def test_without_a_signature_values_go_in_as_they_are(self, weights):
        nan, large = torch.tensor([float("nan"), 1.0, 1.0]), torch.tensor([1e39, 1.0, 1.0], dtype=torch.float64)
        (found,) = answers(weights, [nan, large])
        assert str(found) == "[[nan], [inf]]"


class TestNeighbours:
    """An answer does not depend on which examples share the batch."""

    def test_whole_numbers_beside_floats(self, weights, model, save):
        whole, floats = [1, 2, 3], [0.5, 1.5, 2.5]
        (alone,), (beside, other) = answers(weights, [whole], [whole, floats])
        assert alone == beside == "forward RuntimeError"  # as in Beam's stock handlers
        assert other == [4.5]
        source = save(Three(), inputs=[{"name": "x", "columns": ["a", "b", "c"]}])
        assert answers(source, [whole], [whole, floats]) == [[[6.0]], [[6.0], [4.5]]]
        tensors = [torch.tensor(whole), torch.tensor(floats)]
        assert answers(source, tensors[:1], tensors) == [[[6.0]], [[6.0], [4.5]]]

    def test_token_ids_stay_whole(self, tmp_path, save):
        class Tokens(torch.nn.Embedding):
            def __init__(self):
                super().__init__(5, 1)
                torch.nn.init.ones_(self.weight)

        torch.save(Tokens().state_dict(), tmp_path / "tokens.pt")
        ids = torch.tensor([1, 2])
        assert answers(StateDict(str(tmp_path / "tokens.pt"), Tokens), [ids]) == [[[[1.0], [1.0]]]]

    def test_dtypes_do_not_meet(self, tmp_path):
        torch.save(Echo().state_dict(), tmp_path / "echo.pt")
        handler = TorchModelHandler(StateDict(str(tmp_path / "echo.pt"), Echo))
        examples = [torch.tensor([2**24 + 1]), torch.tensor([0.5]), np.array([2**24 + 1]), np.array([0.5])]
        found = [result.inference for result in handler.run_inference(examples, handler.load_model())]
        assert [answer.dtype for answer in found] == [torch.int64, torch.float32] * 2
        assert found[0].item() == found[2].item() == 2**24 + 1

    def test_mappings_of_tensors_beside_rows(self, model):
        tensors, row = {"x": torch.ones(2)}, {"a": 1.0, "b": 2.0}
        expected = [[1, 1], [1, 2]]
        assert answers(model(), [tensors, row], [row, tensors]) == [expected, expected[::-1]]

    def test_examples_that_bring_their_mask(self, tmp_path):
        torch.save(Encoder().state_dict(), tmp_path / "encoder.pt")
        handler = TorchModelHandler(StateDict(str(tmp_path / "encoder.pt"), Encoder))
        ids = torch.tensor([1, 2])
        examples = [{"input_ids": ids, "attention_mask": torch.tensor([1, 0])}, {"input_ids": ids}]
        for order in (examples, examples[::-1]):
            found = {len(each.example): each.inference for each in handler.run_inference(order, handler.load_model())}
            assert {size: answer[1].item() for size, answer in found.items()} == {1: 3, 2: 1}


class TestWhatTheFirstBatchSettles:
    """Columns and widths are settled by rows that the model has answered."""

    def test_a_first_row_that_lacks_a_column(self, save):
        source = save(Three(), inputs=[{"name": "x", "columns": ["f_*"]}])
        good = {"f_1": 1.0, "f_2": 2.0, "f_3": 3.0}
        lacks = {"f_1": 1.0, "f_2": 2.0}
        found = answers(source, [lacks], [good], [lacks, good], [{**good, "f_4": 1.0}])
        assert found == [["forward RuntimeError"], [[6.0]], ["encode NullValue", [6.0]], [[6.0]]]

    def test_a_first_list_of_the_wrong_length(self, save):
        source = save(Three(), inputs=[{"name": "x", "columns": ["v"]}])
        short, good = {"v": [1.0, 2.0]}, {"v": [1.0, 2.0, 3.0]}
        found = answers(source, [short], [good], [short, good])
        assert found == [["forward RuntimeError"], [[6.0]], ["encode WrongLength", [6.0]]]


class TestColumnsWithoutACommonType:
    def test_words_and_flags_of_a_categorical_input(self, save):
        spec = {"name": "x", "columns": ["a"], "encoder": "categorical", "categories": [False, True]}
        rows = [{"a": value} for value in (True, "false", "1", "TRUE", "perhaps")]
        (found,) = answers(save(Echo(), inputs=[spec]), rows)
        assert found == [[1], [0], [1], [1], "encode UnknownCategory"]

    def test_numbers_among_times_are_no_times(self, save):
        spec = {"name": "x", "columns": ["a"], "timestamp": "s"}
        rows = [{"a": datetime.date(1970, 1, 2)}, {"a": 1}]
        assert answers(save(Echo(), inputs=[spec]), rows) == [["encode NotANumber", [1.0]]]

    def test_text_in_lists(self, save):
        source = save(Three(), inputs=[{"name": "x", "columns": ["v"]}])
        rows = [{"v": [1.0, 2.0, 3.0]}, {"v": ["1", 2, True]}, {"v": ["one", 2, 3]}, {"v": 4.0}, {"v": None}]
        errors = ["encode NotANumber", "encode WrongLength", "encode NullValue"]
        assert answers(source, rows) == [[[6.0], [4.0], *errors]]

    def test_lists_of_another_depth(self, save):
        source = save(Echo(), inputs=[{"name": "x", "columns": ["v"], "shape": [2, 2]}])
        rows = [
            {"v": value} for value in ([[1, 2], [3, 4]], [[1, "2"], [True, 4.5]], ["12", "34"], [[1, 2], 3], "1234")
        ]
        wrong = ["encode WrongType"] * 3
        assert answers(source, rows) == [[[[1, 2], [3, 4]], [[1, 2], [1, 4.5]], *wrong]]
        flat = [{"v": value} for value in ([1, 2, 3, 4], [1, 2, 3, "4"], [[1, 2], [3, "4"]])]
        assert answers(source, flat) == [[[[1, 2], [3, 4]], [[1, 2], [3, 4]], "encode WrongType"]]


class TestWhatIsNoExample:
    def test_keys_that_are_no_text(self, save, weights):
        source = save(Echo(), inputs=[{"name": "x", "columns": ["1", "2"]}])
        bad, good = {1: 1.0, 2: 2.0}, {"1": 1.0, "2": 2.0}
        for batch in ([bad, good], [{**good, 3: 1.0}, good]):
            assert answers(source, batch, batch) == [["encode WrongType", [1, 2]]] * 2
        assert answers(weights, [{0: torch.ones(3)}, {"x": torch.ones(3)}]) == [["encode WrongType", [3]]]

    def test_an_empty_mapping(self, weights, model):
        assert answers(weights, [{}], [{}, {"x": torch.ones(3)}]) == [["encode WrongType"], ["encode WrongType", [3]]]
        assert answers(model(), [{}, *FIRST], [{}, *FIRST]) == [["encode WrongType", [0.5, 1.5]]] * 2

    def test_a_collate_that_gives_nothing(self, weights):
        handler = TorchModelHandler(weights, collate=lambda examples: {})
        with pytest.raises(TorchbeamError, match="collate gave no tensors"):
            answers(handler, [[1.0, 2.0, 3.0]])


def test_plain_rows_do_not_go_through_columns(model, monkeypatch):
    source = model()
    collator = Collator(source.load(), source)
    groups, _ = collator(FIRST)
    collator.answered(groups[0])  # as after a prediction
    monkeypatch.setattr(BoundInput, "encode", None)
    groups, failures = collator([{"b": 1, "a": 2.0, "other": "x"}, {"a": True, "b": 4.5}])
    assert not failures
    assert groups[0].inputs["x"].tolist() == [[2, 1], [1, 4.5]]
