"""`TorchModelHandler` in Beam's own RunInference, in every wrapper that Beam has for handlers."""

import apache_beam as beam
import numpy as np
import pytest
import torch
from apache_beam.ml.inference.base import (
    KeyedModelHandler,
    KeyModelMapping,
    MaybeKeyedModelHandler,
    ModelMetadata,
    PredictionResult,
    RunInference,
)
from apache_beam.ml.inference.pytorch_inference import make_tensor_model_fn
from apache_beam.testing.util import assert_that
from small_models import Linear, Touchy

from handlers import (
    FailedPrediction,
    Padding,
    Placement,
    ResourceHints,
    StateDict,
    TorchModelHandler,
    skip_failures,
)
from handlers.errors import UsageError


class Line(torch.nn.Module):
    """slope · x + 0.5, as Beam's own tests have it."""

    def __init__(self, slope=2.0):
        super().__init__()
        self.linear = torch.nn.Linear(1, 1)
        with torch.no_grad():
            self.linear.weight.fill_(slope)
            self.linear.bias.fill_(0.5)

    def forward(self, x, add=0):
        return self.linear(x) + add

    def generate(self, x):
        return x * 100


class TwoInputs(torch.nn.Module):
    def forward(self, k1, k2):
        return {"sum": k1 + k2, "product": k1 * k2}


class Short(torch.nn.Module):
    def forward(self, x):
        return x[:-1]


class Encoder(torch.nn.Module):
    """One value a token and one a row; only real tokens count."""

    def forward(self, input_ids, attention_mask):
        return input_ids + 1, (input_ids * attention_mask).sum(1)


@pytest.fixture
def weights(tmp_path):
    def write(module, name="weights.pt"):
        torch.save(module.state_dict(), tmp_path / name)
        return str(tmp_path / name)

    return write


@pytest.fixture
def line(weights):
    return StateDict(weights(Line()), Line)


def run(examples, handler, **options):
    """The results of RunInference on FnApiRunner, through a check that runs inside the pipeline."""
    pipeline = beam.Pipeline(runner="FnApiRunner")
    results = pipeline | beam.Create(examples, reshuffle=False) | RunInference(handler, **options)
    assert_that(results, _keep)
    _kept.clear()
    pipeline.run().wait_until_finish()
    return list(_kept)


_kept: list[object] = []


def _keep(results):
    import test_handler  # the function is pickled; the module is the one of this process

    test_handler._kept.extend(results)


def tensors(*values):
    return [torch.tensor([float(value)]) for value in values]


def test_tensors(line):
    results = run(tensors(1, 2, 3), TorchModelHandler(line))
    assert {result.example.item(): result.inference.item() for result in results} == {1: 2.5, 2: 4.5, 3: 6.5}
    assert {result.model_id for result in results} == {line.path}
    assert all(isinstance(result, PredictionResult) for result in results)
    assert results[0].inference.untyped_storage().nbytes() == 4  # not a view of the whole batch


def test_inference_args_and_no_example(line):
    results = run(tensors(1, 2), TorchModelHandler(line, keep_example=False), inference_args={"add": 10})
    assert sorted(result.inference.item() for result in results) == [12.5, 14.5]
    assert {result.example for result in results} == {None}
    with pytest.raises(UsageError, match="keyword arguments"):
        run(tensors(1), TorchModelHandler(line), inference_args={1: 2})


def test_dictionaries_of_tensors(weights):
    handler = TorchModelHandler(StateDict(weights(TwoInputs()), TwoInputs))
    (result,) = run([{"k2": torch.tensor(3.0), "k1": torch.tensor(2.0)}], handler)
    assert {name: value.item() for name, value in result.inference.items()} == {"sum": 5, "product": 6}


def test_arrays_numbers_and_float64(line):
    examples = [np.array([1.0]), np.array([2.0], np.float32), [3.0], torch.tensor([4.0], dtype=torch.float64)]
    results = run(examples, TorchModelHandler(line))
    assert sorted(result.inference.item() for result in results) == [2.5, 4.5, 6.5, 8.5]


def test_plain_dictionaries_are_wired_by_the_signature(save):
    model = save(Linear(), task="classification", labels=["no", "yes"])
    rows = [
        {"b": 1.0, "a": 2.0, "other": "x"},
        {"a": 1, "b": "2.5"},
        {"a": None, "b": 1.0},
        {"a": 1.0},
        {"a": "?", "b": 1},
    ]
    results = run(rows, TorchModelHandler(model))
    by_row = {str(result.example): result.inference for result in results}
    torch.testing.assert_close(by_row[str(rows[0])], torch.tensor([1.5, 3.5]))
    torch.testing.assert_close(by_row[str(rows[1])], torch.tensor([3.0, 4.0]))
    errors = [by_row[str(row)].error_type for row in rows[2:]]
    assert errors == ["NullValue", "NullValue", "NotANumber"]
    assert 'column "a" holds "?"' in by_row[str(rows[4])].message
    (decoded,) = run(rows[:1], TorchModelHandler(model, head=True))
    assert decoded.inference["predicted_class"] == "yes"
    assert decoded.inference["confidence"] == pytest.approx(torch.tensor([1.5, 3.5]).softmax(0)[1].item())


def test_one_bad_example_does_not_take_the_batch_along(save):
    handler = TorchModelHandler(save(Touchy()), min_batch_size=100, max_batch_size=100)
    examples = [(key, torch.tensor([float(key), 1.0])) for key in range(50)]
    examples[20] = (20, torch.tensor([float("nan"), 1.0]))
    examples[21] = (21, torch.ones(3))
    results = dict(run(examples, KeyedModelHandler(handler)))
    failed = {
        key: result.inference for key, result in results.items() if isinstance(result.inference, FailedPrediction)
    }
    assert {key: (failure.stage, failure.error_type) for key, failure in failed.items()} == {
        13: ("forward", "RuntimeError"),
        20: ("encode", "NotFinite"),
        21: ("forward", "RuntimeError"),
    }
    assert "cannot take 13.0" in failed[13].traceback
    for key in set(range(50)) - set(failed):
        torch.testing.assert_close(
            results[key].inference,
            torch.tensor([1.5, key + 1.5]) if key != 14 else torch.full((2,), torch.nan),
            equal_nan=True,
        )


def test_unequal_lengths_without_a_mask_never_meet(weights):
    class Sum(torch.nn.Module):
        def forward(self, x):
            return x.sum(1)

    handler = TorchModelHandler(StateDict(weights(Sum()), Sum))
    results = run([torch.ones(length) for length in (1, 5, 3, 5, 2)], handler)
    assert all(result.inference.item() == len(result.example) for result in results)


@pytest.mark.parametrize("padding", [None, Padding(value=9, mask="attention_mask", max_tokens=6)])
def test_unequal_lengths_with_a_mask_are_padded_and_cut_back(weights, padding):
    handler = TorchModelHandler(StateDict(weights(Encoder()), Encoder), padding=padding)
    results = run([{"input_ids": torch.arange(length) + 1} for length in (4, 1, 3, 2, 3)], handler)
    for result in results:
        ids = result.example["input_ids"]
        tokens, total = result.inference
        assert torch.equal(tokens, ids + 1)
        assert total.item() == ids.sum().item()


def test_a_collate_function(line):
    def collate(examples):
        return {"x": torch.tensor([[float(text)] for text in examples])}

    results = run(["1", "two", "3"], TorchModelHandler(line, collate=collate))
    found = {result.example: result.inference for result in results}
    assert found["1"].item() == 2.5
    assert found["3"].item() == 6.5
    assert (found["two"].stage, found["two"].error_type) == ("encode", "ValueError")


def test_an_inference_fn_as_beam_takes_it(line):
    handler = TorchModelHandler(line, inference_fn=make_tensor_model_fn("generate"))
    results = run([*tensors(1, 2), torch.ones(2)], handler)
    assert sorted(result.inference.tolist() for result in results) == [[100.0], [100.0, 100.0], [200.0]]
    assert {result.model_id for result in results} == {line.path}


@pytest.mark.parametrize("wrapper", [KeyedModelHandler, MaybeKeyedModelHandler])
def test_keys(line, wrapper):
    results = run([("a", torch.tensor([1.0])), ("b", torch.tensor([2.0]))], wrapper(TorchModelHandler(line)))
    assert {key: result.inference.item() for key, result in results} == {"a": 2.5, "b": 4.5}


def test_maybe_keyed_without_keys(line):
    (result,) = run(tensors(1), MaybeKeyedModelHandler(TorchModelHandler(line)))
    assert result.inference.item() == 2.5


def test_a_model_for_each_key(line, weights):
    steep = StateDict(weights(Line(10.0), "steep.pt"), Line, {"slope": 1.0})
    handler = KeyedModelHandler(
        [KeyModelMapping(["a", "b"], TorchModelHandler(line)), KeyModelMapping(["c"], TorchModelHandler(steep))]
    )
    examples = [(key, torch.tensor([1.0])) for key in "abc"] + [("c", torch.ones(3))]
    results = run(examples, handler)
    found = {(key, len(result.example)): result.inference for key, result in results}
    assert [found[key, 1].item() for key in "abc"] == [2.5, 2.5, 10.5]
    assert isinstance(found["c", 3], FailedPrediction)


def test_functions_run_in_beams_order(line):
    handler = (
        TorchModelHandler(line)
        .with_preprocess_fn(lambda x: torch.tensor([x * 10]))
        .with_preprocess_fn(lambda text: float(text) + 1)
        .with_postprocess_fn(skip_failures(lambda result: result.inference.item()))
        .with_postprocess_fn(skip_failures(str))
    )
    assert sorted(run(["1", "2"], handler)) == ["40.5", "60.5"]


def test_batches_of_the_users_own(line):
    results = run([tensors(1, 2), tensors(3)], TorchModelHandler(line).with_no_batching())
    assert sorted(result.inference.item() for result in results) == [2.5, 4.5, 6.5]


def test_batches_are_as_large_as_asked(line):
    def spy(batch, model, device, inference_args, model_id):
        assert len(batch) <= 4, "too many"
        return [len(batch) for _ in batch]

    results = run(tensors(*range(20)), TorchModelHandler(line, inference_fn=spy, min_batch_size=4, max_batch_size=4))
    assert {result.inference for result in results} == {4}


def test_exception_handling_gives_the_lists_of_beam(line, weights):
    def fail_on(value):
        def function(x):
            number = x.inference.item() if isinstance(x, PredictionResult) else x
            if number == value:
                raise ValueError("no")
            return x

        return function

    handler = (
        TorchModelHandler(line)
        .with_preprocess_fn(lambda x: torch.tensor([x]))
        .with_preprocess_fn(fail_on(1.0))
        .with_postprocess_fn(fail_on(4.5))
    )
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        good, bad = pipeline | beam.Create([1.0, 2.0, 3.0]) | RunInference(handler).with_exception_handling()
        assert_that(good | beam.Map(lambda result: result.inference.item()), _equals([6.5]), "good")
        assert_that(bad.failed_preprocessing[0] | beam.Map(lambda pair: pair[0]), _equals([1.0]), "pre")
        assert_that(
            bad.failed_postprocessing[0] | beam.Map(lambda pair: pair[0].inference.item()), _equals([4.5]), "post"
        )
        assert_that(bad.failed_inferences | beam.Map(str), _equals([]), "inference")
        broken = TorchModelHandler(StateDict(weights(Short(), "short.pt"), Short))
        _, bad = (
            pipeline | "x" >> beam.Create(tensors(1, 2)) | "broken" >> RunInference(broken).with_exception_handling()
        )
        messages = bad.failed_inferences | "type" >> beam.Map(lambda pair: (len(pair[0]), pair[1][0].__name__))
        assert_that(messages, _equals([(2, "BrokenModelError")]), "broken inference")


def _equals(expected):
    def check(got):
        assert sorted(got) == expected, got

    return check


def test_one_output_too_few_is_an_error_that_says_so(weights):
    handler = TorchModelHandler(StateDict(weights(Short()), Short))
    with pytest.raises(Exception, match='the model gave 15 rows of "output" for 16; it must give one a row'):
        run([(key, torch.tensor([1.0])) for key in range(16)], KeyedModelHandler(handler))


def test_a_model_that_cannot_be_loaded_ends_the_job_with_its_cause(weights):
    handler = TorchModelHandler(StateDict(weights(Line()), TwoInputs))
    with pytest.raises(UsageError, match=r"weights.pt does not fit TwoInputs: Error\(s\) in loading state_dict"):
        run(tensors(1), handler)
    with pytest.raises(UsageError, match="does not exist; it must be a model directory"):
        TorchModelHandler("nowhere")


def test_the_model_is_refreshed_by_a_side_input(line, weights):
    steep = weights(Line(10.0), "steep.pt")
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        metadata = pipeline | "model" >> beam.Create([ModelMetadata(steep, "steep")])
        results = (
            pipeline
            | beam.Create(tensors(1, 2))
            | RunInference(TorchModelHandler(line), model_metadata_pcoll=metadata)
            | beam.Map(lambda result: (result.inference.item(), result.model_id))
        )
        assert_that(results, _equals([(10.5, steep), (20.5, steep)]))


def test_update_of_the_path(save):
    first, second = save(), save(Linear(3), arguments={"classes": 3})
    handler = TorchModelHandler(first)
    handler.update_model_path(None)
    handler.update_model_path(second.path)
    model = handler.load_model()
    (result,) = handler.run_inference([{"a": 1.0, "b": 1.0}], model)
    assert len(result.inference) == 3
    assert result.model_id == second.path


@pytest.mark.parametrize("options", [{"large_model": True}, {"model_copies": 2}])
def test_a_model_shared_by_processes(line, options):
    handler = TorchModelHandler(line, min_batch_size=4, max_batch_size=4, **options)
    assert handler.share_model_across_processes()
    results = dict(
        run([(key, x) for key, x in enumerate([*tensors(*range(20)), torch.ones(3)])], KeyedModelHandler(handler))
    )
    assert [results[key].inference.item() for key in range(20)] == [2 * key + 0.5 for key in range(20)]
    assert isinstance(results[20].inference, FailedPrediction)


def test_options(line, save, monkeypatch):
    handler = TorchModelHandler(
        line, hints=ResourceHints("type:nvidia-l4;count:1", "16GiB"), env_vars={"TORCHBEAM_TEST": "1"}, max_batch_size=7
    )
    keyed = KeyedModelHandler(handler)
    assert keyed.get_resource_hints() == {"accelerator": "type:nvidia-l4;count:1", "min_ram": "16GiB"}
    assert keyed.batch_elements_kwargs() == {"max_batch_size": 7}
    assert keyed._env_vars == {"TORCHBEAM_TEST": "1"}
    of_model = save(env_vars={"OMP_NUM_THREADS": "2"})
    assert TorchModelHandler(of_model, env_vars={"B": "y"})._env_vars == {"OMP_NUM_THREADS": "2", "B": "y"}
    assert handler.get_num_bytes([torch.ones(10)] * 3) == 120
    with pytest.raises(UsageError, match='has no option "max_batchsize"'):
        TorchModelHandler(line, max_batchsize=3)
    with pytest.raises(UsageError, match="sees no GPU"):
        TorchModelHandler(line, placement=Placement("cuda")).load_model()


@pytest.mark.parametrize("amount", ["4", "4B", "4XB", "much", 4])
def test_memory_without_a_sensible_unit_is_refused(amount):
    with pytest.raises(UsageError, match=f'--min_ram "{amount}"'):
        ResourceHints(min_ram=amount)


def test_large_examples_are_never_in_an_empty_batch(line):
    import handlers.elements.handler as elements

    assert elements._weight(("key", torch.ones(elements.BATCH_BYTES))) == elements.BATCH_BYTES
    assert elements._weight({"a": 1.0}) == elements.BATCH_BYTES // elements.BATCH_EXAMPLES


def test_an_empty_batch_is_not_collated(line):
    handler = TorchModelHandler(line, collate=torch.stack)
    assert handler.run_inference([], handler.load_model()) == []


def test_what_an_example_weighs():
    import handlers.elements.handler as elements

    least = elements.BATCH_BYTES // elements.BATCH_EXAMPLES
    assert elements._weight({"a": 1.0, "b": None, "c": 3}) == least
    assert elements._weight({"a": 1.0, "name": "x" * 10_000, "b": None}) == 10_000 + 2 * elements.NUMBER_BYTES
    assert elements._weight({"id": 1, "image": np.zeros(250_000, np.float32)}) == 1_000_032
    assert elements._weight([0.0] * 100_000) == 100_000 * elements.NUMBER_BYTES
    assert elements._weight({"words": [["ab"] * 1000] * 10}) == 20_000
