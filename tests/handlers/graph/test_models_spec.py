"""`models.yaml`: what it may say, and the one line for everything else."""

from __future__ import annotations

import pytest

from handlers.errors import UsageError
from handlers.graph.spec import ModelSplit, named_models, parse_models

TWO = "models:\n  - {name: a, model: m/a}\n  - {name: b, model: m/b"


def test_all_fields() -> None:
    spec = parse_models(
        TWO + ", when: a_confidence < 0.8, inputs_from: a, on_failure: continue, device: cuda:1, batch_size: auto,"
        " hints: {accelerator: 'type:nvidia-l4;count:1', min_ram: 16GB}}\n"
        "  - {name: c, by_key: {column: country, models: 'models/{country}', default: m/world, memory: 1.5GB}}\n"
        "compare: [a, b]",
        "models.yaml",
    )
    first, second, third = spec.models
    assert (first.when, first.inputs_from, first.on_failure, first.hints) == (None, (), "dead_letter", None)
    assert (second.when, second.inputs_from, second.on_failure) == ("a_confidence < 0.8", ("a",), "continue")
    assert second.hints is not None
    assert second.hints.hints.as_dict() == {"accelerator": "type:nvidia-l4;count:1", "min_ram": "16GB"}
    assert third.by_key is not None
    assert (third.by_key.folder, third.by_key.memory_bytes) == ("models", 1_500_000_000)
    assert spec.compare == ("a", "b")
    assert spec.single is None


def test_split() -> None:
    spec = parse_models(TWO + "}\nsplit: {by: customer_id, a: 0.9, b: 0.1}", "models.yaml")
    assert spec.shares == ModelSplit("customer_id", (("a", 0.9), ("b", 0.1)))


@pytest.mark.parametrize(("text", "single"), [("}", True), (", when: x > 1}", False), (", device: cpu}", True)])
def test_one_model_on_all_rows_is_a_run_of_one_model(text: str, single: bool) -> None:
    spec = parse_models("models:\n  - {name: a, model: m/a" + text, "models.yaml")
    assert (spec.single is not None) is single


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "must be a mapping with models"),
        ("a: [b", "is not YAML"),
        (TWO + "} #" + "x" * 1_000_000, "a models.yaml may have 1,000,000"),
        ("models: []", 'field "models": must not be empty'),
        ("models: {}", 'field "models": must be a list'),
        ("models: [x]", 'field "models.0": must be a mapping'),
        ("models: [{model: x}]", 'field "models.0.name" is missing'),
        ("models: [{name: 3x, model: x}]", 'field "name" of model "3x": must be a name'),
        ("models: [{name: x}]", 'model "x": give either model'),
        ("models: [{name: x, model: y, by_key: {column: c, models: 'm/{c}'}}]", 'model "x": give either model'),
        (TWO + ", wen: x}", 'unknown field "wen" of model "b"'),
        (TWO + "}\nfoo: 1", 'unknown field "foo"'),
        (TWO + ", version: 12}", 'field "version" of model "b"'),
        ("models: [{name: x, version: 0123456789ab, by_key: {column: c, models: 'm/{c}'}}]", "version is of one model"),
        (TWO + ", batch_size: 0}", 'field "batch_size" of model "b"'),
        (TWO + ", device: tpu}", 'field "device" of model "b"'),
        (TWO + ", hints: {min_ram: '4'}}", "has no unit"),
        (TWO + ", hints: {accelerator: l4}}", "names no type"),
        (TWO + ", inputs_from: c}", 'inputs_from "c", which is no model before it'),
        (TWO + ", inputs_from: b}", 'inputs_from "b", which is no model before it'),
        (TWO + ", on_failure: ignore}", "'dead_letter' or 'continue', not 'ignore'"),
        (TWO + "}\n  - {name: a, model: x}", 'two models have the name "a"'),
        (TWO + "}\nsplit: {by: c, a: 0.5, b: 0.6}", "must be 1 together, not 1.1"),
        (TWO + "}\nsplit: {a: 0.5, b: 0.5}", "split needs by"),
        (TWO + "}\nsplit: {by: c, a: 1}", "two or more models"),
        (TWO + "}\nsplit: {by: c, a: 0.5, x: 0.5}", 'split names "x"'),
        (TWO + "}\nsplit: {by: c, a: -0.5, b: 1.5}", 'the share of "a"'),
        (TWO + ", when: x > 1}\nsplit: {by: c, a: 0.5, b: 0.5}", 'model "b" has when and a share'),
        (TWO + ", inputs_from: a}\nsplit: {by: c, a: 0.5, b: 0.5}", "never runs with it"),
        (TWO + "}\ncompare: [a]", "compare takes the names of two models"),
        (TWO + "}\ncompare: [a, c]", 'compare names "c"'),
        ("models: [{name: k, by_key: {column: c, models: x/c}}]", 'as "models/{c}"'),
        ("models: [{name: k, by_key: {column: c, models: 'x/{c}/y'}}]", 'as "models/{c}"'),
        ("models: [{name: k, by_key: {column: c, models: 'x/{c}', memory: '4'}}]", "has no unit"),
    ],
)
def test_refused(text: str, expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_models(text, "models.yaml")
    message = str(caught.value)
    assert expected in message
    assert message.startswith("models.yaml")
    assert "\n" not in message


def test_named_models() -> None:
    spec = named_models([("a", "m/a"), ("b", "gs://m/b")])
    assert [(entry.name, entry.model) for entry in spec.models] == [("a", "m/a"), ("b", "gs://m/b")]
    with pytest.raises(UsageError, match='--model: two models have the name "a"'):
        named_models([("a", "x"), ("a", "y")])
