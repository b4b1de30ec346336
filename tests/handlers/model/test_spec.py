"""Every mistake in a model.yaml is one line that names the field and the file."""

from typing import Any

import pytest
import yaml

from handlers.encode.specs import input_spec
from handlers.errors import UsageError
from handlers.model.spec import ModelSpec, parse_spec

GOOD: dict[str, Any] = {
    "name": "credit",
    "format": "safetensors",
    "weights": "weights.safetensors",
    "architecture": "credit.model:Net",
    "inputs": [{"name": "x", "columns": ["a", "f_*"]}],
}


def refusal(text: str) -> str:
    with pytest.raises(UsageError) as error:
        parse_spec(text, "models/credit/model.yaml")
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith("models/credit/model.yaml")
    return message


def refusal_of(**changes: Any) -> str:
    content = {key: value for key, value in {**GOOD, **changes}.items() if value is not ...}
    return refusal(yaml.safe_dump(content))


def refusal_of_input(**fields: Any) -> str:
    return refusal_of(inputs=[{"name": "x", **fields}])


def test_a_good_one() -> None:
    spec = parse_spec(yaml.safe_dump(GOOD), "model.yaml")
    assert spec.inputs[0].patterns == ("a", "f_*")
    assert spec.task == "raw"
    assert spec.threshold == 0.5


class TestFields:
    def test_unknown(self) -> None:
        assert 'unknown field "wieghts"' in refusal_of(wieghts="x")
        assert 'unknown field "inputs.0.colums"' in refusal_of_input(colums=["a"])

    def test_missing(self) -> None:
        assert 'field "name" is missing' in refusal_of(name=...)
        assert 'field "inputs.0.name" is missing' in refusal_of(inputs=[{"columns": ["a"]}])
        assert "format is missing" in refusal_of(format=...)
        assert "weights is missing" in refusal_of(weights=...)
        assert "architecture is missing; safetensors needs it" in refusal_of(architecture=...)
        assert "inputs is missing" in refusal_of(inputs=...)
        assert "labels is missing" in refusal_of(task="multilabel")

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("name", 3),
            ("name", ""),
            ("task", "classify"),
            ("format", "pickle"),
            ("weights", ["a"]),
            ("sha256", "abc"),
            ("architecture", "credit.model.Net"),
            ("arguments", [1]),
            ("features", ["a"]),
            ("inputs", "x"),
            ("labels", "good"),
            ("threshold", 1.5),
            ("env_vars", {"OMP_NUM_THREADS": 1}),
            ("env_vars", {"A=B": "1"}),
            ("env_vars", {"": "1"}),
            ("env_vars", {"A": "\0"}),
            ("preprocess", "clean"),
            ("postprocess", ["rows.clean"]),
        ],
    )
    def test_of_a_wrong_type(self, field: str, value: Any) -> None:
        assert f'field "{field}' in refusal_of(**{field: value})

    def test_labels_that_yaml_takes_for_flags(self) -> None:
        assert 'field "labels.0"' in refusal(yaml.safe_dump(GOOD | {"task": "classification"}) + "labels: [yes, no]\n")

    @pytest.mark.parametrize("weights", ["/etc/passwd", "../other/w.pt", "a/../../w.pt", ""])
    def test_weights_outside_of_the_directory(self, weights: str) -> None:
        assert "weights" in refusal_of(weights=weights)

    def test_ways_to_load_that_contradict_each_other(self) -> None:
        assert "format has no meaning together with loader" in refusal_of(loader="a:b")
        assert "architecture has no meaning together with loader" in refusal_of(loader="a:b", format=...)
        assert "architecture has no meaning for torch_export" in refusal_of(format="torch_export")

    def test_two_inputs_of_one_name(self) -> None:
        assert "two inputs have the same name" in refusal_of(inputs=[{"name": "x"}, {"name": "x"}])


class TestText:
    @pytest.mark.parametrize(
        "text", ["name: [", "a: b: c", "\t- x", "name: !!python/object:os.system x", "\x00", "[" * 2000]
    )
    def test_no_yaml(self, text: str) -> None:
        assert "is not YAML" in refusal(text)

    def test_where_it_is_no_yaml(self) -> None:
        assert refusal("name: credit\ntask: {").endswith(
            "model.yaml is not YAML: line 2, column 8: expected the node content, but found '<stream end>'"
        )

    @pytest.mark.parametrize("text", ["", "just words", "- a\n- b", "3"])
    def test_no_mapping(self, text: str) -> None:
        assert "must be a mapping of fields" in refusal(text)

    def test_names_that_are_no_text(self) -> None:
        assert 'field "1": Keys should be strings' in refusal(yaml.safe_dump(GOOD) + "1: x\n")


class TestInputs:
    def test_options_of_the_other_encoder(self) -> None:
        assert "categories is an option of the categorical encoder" in refusal_of_input(categories=["a"])
        assert "unknown is an option of the categorical encoder" in refusal_of_input(unknown=0)
        categorical = {"encoder": "categorical", "num_categories": 3}
        assert "timestamp is an option of the numeric encoder" in refusal_of_input(**categorical, timestamp="s")
        assert "allow_nonfinite is an option of the numeric" in refusal_of_input(**categorical, allow_nonfinite=True)

    def test_categories(self) -> None:
        assert "needs either categories or num_categories" in refusal_of_input(encoder="categorical")
        both = {"encoder": "categorical", "num_categories": 3, "categories": ["a"]}
        assert "needs either categories or num_categories" in refusal_of_input(**both)
        assert "categories is empty" in refusal_of_input(encoder="categorical", categories=[])
        assert "categories contains a value twice" in refusal_of_input(encoder="categorical", categories=["a", "a"])
        assert "inputs.0.categories" in refusal_of_input(encoder="categorical", categories=["a", 1])
        assert "num_categories" in refusal_of_input(encoder="categorical", num_categories=0)

    def test_categories_keep_their_kind(self) -> None:
        for values in (("a", "1"), (1, 0), (True, False)):
            found = input_spec(name="x", encoder="categorical", categories=values).categories
            assert found == values
            assert [type(value) for value in found or ()] == [type(value) for value in values]

    def test_fill(self) -> None:
        assert "fill of a numeric input must be a number" in refusal_of_input(fill="zero")
        assert "fill must be one of the categories" in refusal_of_input(
            encoder="categorical", categories=["a"], fill="b"
        )
        assert "fill must be a code in 0 … 2" in refusal_of_input(encoder="categorical", num_categories=3, fill=3)
        assert input_spec(name="x", fill=-1).fill == -1

    def test_shape_and_dtype(self) -> None:
        assert 'field "inputs.0.shape.0"' in refusal_of_input(shape=[0])
        assert 'field "inputs.0.dtype"' in refusal_of_input(dtype="float")
        assert input_spec(name="x", shape=[]).shape == ()


def test_a_loader_needs_no_weights() -> None:
    spec = ModelSpec(name="m", loader="a.b:load", inputs=(input_spec(name="x"),))
    assert spec.weights is None
