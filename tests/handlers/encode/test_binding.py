"""Which columns feed which input, and what is refused on the driver."""

from typing import Any

import pyarrow as pa
import pytest
import torch

from handlers.encode.binding import bind_inputs
from handlers.encode.columns import match_columns, matching
from handlers.encode.matrix import BoundMatrix
from handlers.encode.specs import input_spec
from handlers.errors import UsageError
from handlers.tensors import TensorInfo

ROW = pa.record_batch({"a": [1.0], "f_1": [1.0], "f_2": [2], "s": ["x"], "l": [[1.0, 2.0, 3.0]], "a*": [0.0]})


def bind(batch: pa.RecordBatch = ROW, infos: tuple[TensorInfo, ...] = (), **fields: Any) -> BoundMatrix:
    (bound,) = bind_inputs([input_spec(**{"name": "x", **fields})], infos, batch)
    assert isinstance(bound, BoundMatrix)
    return bound


def refusal(batch: pa.RecordBatch = ROW, infos: tuple[TensorInfo, ...] = (), **fields: Any) -> str:
    with pytest.raises(UsageError) as error:
        bind(batch, infos, **fields)
    assert "\n" not in str(error.value)
    return str(error.value)


class TestColumns:
    def test_patterns_in_order_and_once(self) -> None:
        assert bind(columns=["f_*", "a", "f_1"]).columns == ("f_1", "f_2", "a")

    def test_a_name_that_looks_like_a_pattern_is_itself(self) -> None:
        assert bind(columns=["a*"]).columns == ("a*",)
        assert match_columns("[x]", ["[x]", "x"]) == ["[x]"]
        assert match_columns("[x]", ["x", "y"]) == ["x"]
        assert matching(["[x]", "y*"], ["[x]", "x", "y1", "z"]) == {"[x]", "y1"}

    def test_the_name_of_the_input_where_there_are_no_columns(self) -> None:
        assert bind(name="a").columns == ("a",)

    def test_a_missing_column(self) -> None:
        assert 'column "b" is missing; the model input "x" needs it. There are: a, f_1' in refusal(columns=["a", "b"])
        assert 'column "g_*" is missing' in refusal(columns=["g_*"])

    @pytest.mark.parametrize(
        "kind",
        [
            pa.struct({"a": pa.int8()}),
            pa.binary(),
            pa.map_(pa.string(), pa.int8()),
            pa.time32("s"),
            pa.list_(pa.binary()),
        ],
        ids=str,
    )
    def test_types_without_a_meaning(self, kind: pa.DataType) -> None:
        batch = pa.RecordBatch.from_arrays([pa.nulls(1, kind)], names=["x"])
        assert "has no meaning in the model input" in refusal(batch)

    @pytest.mark.parametrize(
        "kind", [pa.date32(), pa.timestamp("us"), pa.duration("s"), pa.list_(pa.date32())], ids=str
    )
    def test_times_need_a_unit(self, kind: pa.DataType) -> None:
        batch = pa.RecordBatch.from_arrays([pa.nulls(1, kind)], names=["x"])
        assert "timestamp: s" in refusal(batch)


class TestShapes:
    def test_the_number_of_values(self) -> None:
        found = bind(columns=["a", "l"])
        assert found.widths == (1, 3)
        assert found.shape == (4,)
        assert found.zeros(2)["x"].shape == (2, 4)

    def test_a_wrong_total(self) -> None:
        assert "takes 3 values a row, but its columns give 2 (f_1, f_2)" in refusal(columns=["f_*"], shape=[3])
        assert "takes 1 values a row, but its columns give 2" in refusal(columns=["f_*"], shape=[])

    def test_the_only_list_takes_the_rest_of_the_shape(self) -> None:
        assert bind(columns=["a", "l"], shape=[8]).widths == (1, 7)
        assert "takes 1 values a row" in refusal(columns=["a", "l"], shape=[1])

    def test_the_length_that_most_lists_have(self) -> None:
        batch = pa.record_batch({"x": [[], [1], [1, 2], None, [3, 4]]})
        assert bind(batch).widths == (2,)

    def test_a_length_that_nobody_knows(self) -> None:
        batch = pa.RecordBatch.from_arrays([pa.nulls(1, pa.list_(pa.int8()))], names=["x"])
        assert 'give the shape of the model input "x"' in refusal(batch)
        fixed = pa.RecordBatch.from_arrays([pa.nulls(0, pa.list_(pa.list_(pa.int8(), 2), 3))], names=["x"])
        assert bind(fixed).widths == (6,)

    def test_lists_of_lists_need_a_shape(self) -> None:
        assert "holds lists of lists; give the shape" in refusal(pa.record_batch({"x": [[[1], [2]]]}))


class TestDtypes:
    def test_defaults(self) -> None:
        assert bind(columns=["a"]).dtype == torch.float32
        assert bind(columns=["s"], encoder="categorical", categories=["x"]).dtype == torch.int64
        assert bind(columns=["a"], dtype="bfloat16").dtype == torch.bfloat16

    @pytest.mark.parametrize(("fill", "dtype"), [(0.5, "int64"), (300, "int8"), (2, "bool"), (float("nan"), "int64")])
    def test_a_fill_that_the_dtype_cannot_hold(self, fill: float, dtype: str) -> None:
        assert f"fill {fill}" in refusal(columns=["a"], fill=fill, dtype=dtype)

    def test_more_categories_than_the_dtype_has_numbers(self) -> None:
        fields = {"columns": ["f_2"], "encoder": "categorical", "dtype": "int8"}
        assert bind(**fields, num_categories=128).dtype == torch.int8
        assert "more categories than int8 can hold" in refusal(**fields, num_categories=129)
        assert "more categories than int8 can hold" in refusal(**fields, num_categories=5, unknown=128)

    def test_words_that_yaml_takes_for_flags(self) -> None:
        batch = pa.record_batch({"x": ["yes", "no", None]})
        assert 'quote words that YAML reads as booleans, as "yes"' in refusal(
            batch, encoder="categorical", categories=[True, False]
        )


EXPORTED = (TensorInfo("x", torch.float64, (2,)),)


class TestExportedSignature:
    def test_it_is_taken(self) -> None:
        found = bind(infos=EXPORTED, columns=["f_*"])
        assert found.dtype == torch.float64
        assert found.shape == (2,)
        assert bind(infos=EXPORTED, name="other", columns=["f_*"]).dtype == torch.float64

    def test_what_contradicts_it(self) -> None:
        assert "takes 2 values a row, but its columns give 1" in refusal(infos=EXPORTED, columns=["a"])
        assert "has dtype float32 in model.yaml, but the model was exported with float64" in refusal(
            infos=EXPORTED, columns=["f_*"], dtype="float32"
        )
        assert "has shape [2, 1] in model.yaml, but the model was exported with [2]" in refusal(
            infos=EXPORTED, columns=["f_*"], shape=[2, 1]
        )

    def test_names(self) -> None:
        infos = (TensorInfo("p"), TensorInfo("q"))
        with pytest.raises(UsageError, match='the model has no input "x"; its inputs are p, q'):
            bind_inputs([input_spec(name="p", columns=("a",)), input_spec(name="x", columns=("a",))], infos, ROW)
        three = (*infos, TensorInfo("r"))
        with pytest.raises(UsageError, match=r'the model input "r" is not among the inputs of model.yaml'):
            bind_inputs([input_spec(name=name, columns=("a",)) for name in "pq"], three, ROW)

    def test_without_a_model_yaml(self) -> None:
        numbers = pa.record_batch({"a": [1.0], "s": ["x"], "b": [2]})
        assert bind_inputs([], EXPORTED, numbers)[0].columns == ("a", "b")
        assert bind_inputs([], (TensorInfo("s"),), numbers)[0].columns == ("s",)
        two = (TensorInfo("a"), TensorInfo("b"))
        assert [found.columns for found in bind_inputs([], two, numbers)] == [("a",), ("b",)]
        with pytest.raises(UsageError, match="takes 2 values a row, but the input has 3 columns of numbers"):
            bind_inputs([], EXPORTED, numbers.append_column("c", pa.array([1])))
        with pytest.raises(UsageError, match='no column is named "z"'):
            bind_inputs([], (TensorInfo("a"), TensorInfo("z")), numbers)
        with pytest.raises(UsageError, match="does not declare its inputs"):
            bind_inputs([], (), numbers)
