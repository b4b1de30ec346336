"""1,000 examples, 7 of them bad: 993 results and 7 dead letters, whatever the batch size."""

from threading import Lock

import apache_beam as beam
import pytest
import torch
from apache_beam.coders.typecoders import registry
from apache_beam.ml.inference.base import (
    KeyedModelHandler,
    KeyModelMapping,
    MaybeKeyedModelHandler,
    ModelMetadata,
    RunInference,
)
from apache_beam.ml.inference.pytorch_inference import PytorchModelHandlerTensor
from apache_beam.testing.util import assert_that

from handlers import ResourceHints, StateDict, TorchModelHandler
from handlers.errors import BrokenModelError, UsageError
from transforms import RunTorchInference, SplitFailures

BAD = {0: "forward", 1: "forward", 99: "forward", 500: "forward", 501: "forward", 777: "preprocess", 999: "postprocess"}


class Double(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.by = torch.nn.Parameter(torch.tensor(2.0))

    def forward(self, x, add=0):
        if (x >= 1e6).any():
            raise ValueError("poison")
        return x * self.by + add


@pytest.fixture
def source(tmp_path):
    torch.save(Double().state_dict(), tmp_path / "w.pt")
    return StateDict(str(tmp_path / "w.pt"), Double)


def check(expected):
    def matcher(got):
        assert sorted(got) == sorted(expected), got

    return matcher


def preprocess(element):
    key, value = element
    if value == 777.0:
        raise KeyError("no such field")
    return key, torch.tensor([value + (1e6 if BAD.get(key) == "forward" else 0)])


def postprocess(element):
    key, result = element
    if key == 999:
        raise RuntimeError("not today")
    return key, result.inference.item()


def letter(dead):
    return dead.key, dead.example, dead.stage


@pytest.mark.parametrize("size", [1, 7, 256, 5000, None])
@pytest.mark.parametrize("keyed", [False, True])
def test_seven_bad_examples_in_a_thousand(source, size, keyed):
    options = {} if size is None else {"min_batch_size": size, "max_batch_size": size}
    handler = TorchModelHandler(source, **options)
    handler = KeyedModelHandler(handler) if keyed else handler
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        examples = pipeline | beam.Create([(key, float(key)) for key in range(1000)])
        done = examples | RunTorchInference(handler.with_preprocess_fn(preprocess).with_postprocess_fn(postprocess))
        assert_that(done.predictions, check([(key, key * 2.0) for key in range(1000) if key not in BAD]), "good")
        assert_that(done.dead_letters | beam.Map(letter), check([(key, float(key), BAD[key]) for key in BAD]), "dead")


def test_a_dead_letter_says_all_there_is_to_know(source):
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        done = (
            pipeline
            | beam.Create([torch.tensor([1e6]), torch.tensor([1.0])])
            | RunTorchInference(TorchModelHandler(source))
        )
        assert_that(done.predictions | beam.Map(lambda result: result.inference.item()), check([2.0]), "good")

        def matcher(got):
            (dead,) = got
            assert (dead.key, dead.example.item(), dead.stage, dead.error_type) == (None, 1e6, "forward", "ValueError")
            assert dead.message == "poison"
            assert 'raise ValueError("poison")' in dead.traceback
            assert dead.model_id == source.path

        assert_that(done.dead_letters, matcher, "dead")


@pytest.mark.parametrize("keyed", [False, True])
def test_split_failures_of_plain_run_inference(source, keyed):
    examples = [torch.tensor([value]) for value in (1.0, 2e6, 3.0)]
    handler = TorchModelHandler(source)
    if keyed:
        examples, handler = [(f"k{index}", x) for index, x in enumerate(examples)], KeyedModelHandler(handler)
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        done = pipeline | beam.Create(examples) | RunInference(handler) | SplitFailures()
        values = done.predictions | beam.Map(lambda result: (result[1] if keyed else result).inference.item())
        assert_that(values, check([2.0, 6.0]), "good")
        dead = done.dead_letters | beam.Map(lambda dead: (dead.key, dead.example.item(), dead.error_type))
        assert_that(dead, check([("k1" if keyed else None, 2e6, "ValueError")]), "dead")


def test_a_model_for_each_key(source):
    handler = KeyedModelHandler(
        [KeyModelMapping(["a"], TorchModelHandler(source)), KeyModelMapping(["b", "c"], TorchModelHandler(source))]
    )
    examples = [("a", 1.0), ("b", 2.0), ("c", 3e6), ("a", 4.0), ("d", 5.0), ("b", 6.0)]
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        chain = handler.with_preprocess_fn(lambda pair: (pair[0], torch.tensor([pair[1]]))).with_postprocess_fn(
            lambda pair: (pair[0], pair[1].inference.item())
        )
        done = pipeline | beam.Create(examples) | RunTorchInference(chain)
        assert_that(done.predictions, check([("a", 2.0), ("b", 4.0), ("a", 8.0), ("b", 12.0)]), "good")
        dead = done.dead_letters | beam.Map(lambda dead: (dead.key, dead.example, dead.error_type))
        assert_that(dead, check([("c", 3e6, "ValueError"), ("d", 5.0, "KeyError")]), "dead")


def test_inference_args_and_a_refreshed_model(source, tmp_path):
    other = Double()
    torch.nn.init.constant_(other.by, 5.0)
    path = str(tmp_path / "other.pt")
    torch.save(other.state_dict(), path)
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        metadata = pipeline | "model" >> beam.Create([ModelMetadata(path, "other")])
        done = (
            pipeline
            | beam.Create([("k", torch.tensor([2.0]))])
            | RunTorchInference(TorchModelHandler(source), {"add": 1}, options={"model_metadata_pcoll": metadata})
        )
        found = done.predictions | beam.Map(lambda pair: (pair[0], pair[1].inference.item(), pair[1].model_id))
        assert_that(found, check([("k", 11.0, path)]))


@pytest.mark.parametrize("transform", [RunInference, RunTorchInference])
@pytest.mark.parametrize("keyed", [False, True])
def test_inference_args_as_a_side_input(source, transform, keyed):
    handler = KeyedModelHandler(TorchModelHandler(source)) if keyed else TorchModelHandler(source)
    values = [torch.tensor([value]) for value in (2.0, 3.0)]
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        arguments = beam.pvalue.AsDict(pipeline | "arguments" >> beam.Create([("add", 10)]))
        examples = pipeline | beam.Create([(str(value), value) for value in values] if keyed else values)
        found = examples | transform(handler, inference_args=arguments)
        predictions = found if transform is RunInference else found.predictions
        numbers = predictions | beam.Map(lambda result: (result[1] if keyed else result).inference.item())
        assert_that(numbers, check([14.0, 16.0]))


@pytest.mark.parametrize("arguments", [[("add", 1)], {1: 2}, 5])
def test_inference_args_that_are_none(source, arguments):
    with pytest.raises(UsageError, match="must be keyword arguments"):
        _ = beam.Pipeline() | beam.Create([1]) | RunTorchInference(TorchModelHandler(source), arguments)


def test_batches_of_the_users_own_are_refused(source):
    with pytest.raises(UsageError, match="remove with_no_batching"):
        _ = beam.Pipeline() | beam.Create([1]) | RunTorchInference(TorchModelHandler(source).with_no_batching())


def test_a_broken_model_ends_the_job(source):
    def short(batch, model, device, inference_args, model_id):
        return [1 for _ in batch[1:]]

    pipeline = beam.Pipeline(runner="FnApiRunner")
    examples = pipeline | beam.Create([torch.ones(1)] * 3, reshuffle=False)
    _ = examples | RunTorchInference(TorchModelHandler(source, inference_fn=short, min_batch_size=3))
    with pytest.raises(BrokenModelError, match="inference_fn gave 2 results for 3 examples"):
        pipeline.run()


def test_examples_with_and_without_a_key(source):
    elements = [("a", torch.ones(1)), torch.zeros(1), ("b", torch.ones(1)), ("not", "a", "pair")]
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        found = pipeline | beam.Create([elements]) | beam.FlatMap(list) | RunTorchInference(TorchModelHandler(source))

        def shown(element):
            is_keyed = not hasattr(element, "inference")
            return (element[0], element[1].inference.item()) if is_keyed else (None, element.inference.item())

        assert_that(
            found.predictions | beam.Map(shown) | beam.Map(str), check(["('a', 2.0)", "('b', 2.0)", "(None, 0.0)"])
        )
        letters = found.dead_letters | beam.Map(lambda dead: (dead.key, dead.example, dead.error_type))
        assert_that(letters, check([(None, ("not", "a", "pair"), "WrongType")]), label="dead")


def test_batches_of_which_the_first_is_empty(source):
    """As Beam makes them where a single element weighs more than a batch may."""
    handler = TorchModelHandler(source, min_batch_size=5, max_batch_size=10, element_size_fn=lambda _: 20)
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        found = pipeline | beam.Create([torch.ones(1), torch.zeros(1)]) | RunTorchInference(handler)
        assert_that(found.predictions | beam.Map(lambda result: result.inference.item()), check([0.0, 2.0]))


class Held:
    """Can be encoded by the coder of its own only."""

    def __init__(self, value):
        self.value, self.lock = value, Lock()


class HeldCoder(beam.coders.Coder):
    def encode(self, value):
        return str(value.value).encode()

    def decode(self, encoded):
        return Held(float(encoded))

    def is_deterministic(self):
        return True


class Costly:
    """An example that counts how often it is pickled."""

    pickled = 0

    def __reduce__(self):
        Costly.pickled += 1
        return Costly, ()


def test_batches_are_measured_by_their_first_element(source):
    """Beam measures a share of all batches; by default it would pickle all elements in them."""
    Costly.pickled = 0
    handler = TorchModelHandler(
        source, collate=lambda examples: {"x": torch.ones(len(examples), 1)}, min_batch_size=200, max_batch_size=200
    )
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        examples = pipeline | beam.Create([4000]) | beam.FlatMap(lambda count: [Costly() for _ in range(count)])
        found = examples | RunTorchInference(handler)
        assert_that(found.predictions | beam.combiners.Count.Globally(), check([4000]))
    assert 0 < Costly.pickled < 1000


@pytest.mark.parametrize("option", ["runtime_type_check", "performance_runtime_type_check"])
def test_under_the_type_checks_of_beam(source, option):
    options = beam.options.pipeline_options.PipelineOptions(**{option: True})
    with beam.Pipeline(runner="FnApiRunner", options=options) as pipeline:
        elements = pipeline | beam.Create([("a", torch.ones(1)), ("b", torch.tensor([1e6]))])
        found = elements | RunTorchInference(TorchModelHandler(source))
        assert_that(found.predictions | beam.Map(lambda pair: pair[1].inference.item()), check([2.0]), "good")
        assert_that(found.dead_letters | beam.Map(lambda dead: dead.key), check(["b"]), "dead")


@pytest.mark.parametrize("hinted", [False, True])  # hints set the step apart, and then batches are encoded
@pytest.mark.parametrize("keyed", [False, True])
def test_elements_that_only_their_own_coder_can_encode(source, hinted, keyed):
    registry.register_coder(Held, HeldCoder)
    hints = ResourceHints(min_ram="1GB") if hinted else None
    handler = TorchModelHandler(source, hints=hints, keep_example=False)
    handler = handler.with_preprocess_fn(lambda held: torch.tensor([held.value]))
    elements = [1.0, 2.0]
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        held = pipeline | beam.Create(elements) | beam.Map(Held).with_output_types(Held)
        if keyed:
            held = held | beam.Map(lambda each: (str(each.value), each)).with_output_types(tuple[str, Held])
            handler = TorchModelHandler(source, hints=hints, keep_example=False).with_preprocess_fn(
                lambda pair: (pair[0], torch.tensor([pair[1].value]))
            )
        found = held | RunTorchInference(handler)
        values = found.predictions | beam.Map(lambda each: (each[1] if keyed else each).inference.item())
        assert_that(values, check([2.0, 4.0]))


def test_the_pipeline_can_be_made_again_from_its_proto(source):
    pipeline = beam.Pipeline(runner="FnApiRunner")
    _ = pipeline | beam.Create([("k", torch.ones(1))]) | RunTorchInference(TorchModelHandler(source))
    again = beam.Pipeline.from_runner_api(pipeline.to_runner_api(), pipeline.runner, pipeline._options)
    assert again.run().wait_until_finish() == "DONE"


class Scaled(TorchModelHandler):
    """A handler of the user's, made of ours."""

    def run_inference(self, batch, model, inference_args=None):
        found = super().run_inference(batch, model, inference_args)
        return [result._replace(inference=result.inference * 100) for result in found]


@pytest.mark.parametrize("wrap", [lambda handler: handler, KeyedModelHandler, MaybeKeyedModelHandler])
def test_a_handler_that_overrides_run_inference(source, wrap):
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        found = pipeline | beam.Create([("k", torch.ones(1))]) | RunTorchInference(wrap(Scaled(source)))
        assert_that(
            found.predictions | beam.Map(lambda pair: (pair[0], pair[1].inference.item())), check([("k", 200.0)])
        )


def test_a_handler_of_beams_own(source):
    handler = KeyedModelHandler(PytorchModelHandlerTensor(source.path, Double))
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        found = pipeline | beam.Create([("k", torch.ones(1)), ("l", torch.zeros(1))]) | RunTorchInference(handler)
        values = found.predictions | beam.Map(lambda pair: (pair[0], pair[1].inference.item()))
        assert_that(values, check([("k", 2.0), ("l", 0.0)]))


@pytest.mark.parametrize("by_key", [False, True])
def test_an_element_without_a_key_where_there_must_be_one(source, by_key):
    handler = TorchModelHandler(source)
    elements = [("a", torch.ones(1)), torch.zeros(1), "xyz", ("b", torch.ones(1))]
    keyed = KeyedModelHandler([KeyModelMapping(["a", "b"], handler)] if by_key else handler)
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        found = pipeline | beam.Create([elements]) | beam.FlatMap(list) | RunTorchInference(keyed)
        values = found.predictions | beam.Map(lambda pair: (pair[0], pair[1].inference.item()))
        assert_that(values, check([("a", 2.0), ("b", 2.0)]), "good")
        dead = found.dead_letters | beam.Map(lambda dead: (dead.key, dead.error_type, dead.message))
        message = "KeyedModelHandler takes (key, example) pairs, not {}"
        expected = [(None, "WrongType", message.format(kind)) for kind in ("Tensor", "str")]
        assert_that(dead, check(expected), "dead")


def test_a_sparse_tensor_is_a_dead_letter(source):
    """It has no nbytes, so that weighing it must not fail either."""
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        examples = (
            pipeline | beam.Create([2]) | beam.FlatMap(lambda size: [torch.eye(size).to_sparse(), torch.eye(size)])
        )
        found = examples | RunTorchInference(TorchModelHandler(source))
        values = found.predictions | beam.Map(lambda result: result.inference.tolist())
        assert_that(values, check([[[2.0, 0.0], [0.0, 2.0]]]), "good")
        dead = found.dead_letters | beam.Map(lambda dead: (dead.stage, dead.error_type, dead.message.split(";")[0]))
        assert_that(dead, check([("encode", "TypeError", "the example is a sparse_coo tensor")]), "dead")
