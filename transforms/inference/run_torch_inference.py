"""`RunTorchInference`: scores examples with a model; examples that fail become dead letters."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.ml.inference.base import (
    KeyedModelHandler,
    MaybeKeyedModelHandler,
    ModelHandler,
    PredictionResult,
    RunInference,
)
from apache_beam.pvalue import AsSideInput, PCollection

from handlers.elements.failures import FailedPrediction, failed_prediction
from handlers.elements.handler import Results, TorchModelHandler, example_bytes, failure_of
from handlers.errors import BrokenModelError, UsageError
from transforms.inference.batch_coder import Batch

_DEAD_LETTERS = "dead_letters"


@dataclass(frozen=True)
class DeadLetter:
    """An example that could not be scored.

    Attributes:
        key: of a keyed example, else None.
        example: as it entered the transform.
        stage: the stage that refused it; see `FailedPrediction`.
        error_type: the class of the error, or the name of the failed check.
        message: on one line.
        traceback: of the error; empty if a check refused the example.
        model_id: the path of the model; None if the example did not reach it.
    """

    key: Any
    example: Any
    stage: str
    error_type: str
    message: str
    traceback: str = ""
    model_id: str | None = None


class Inferences(NamedTuple):
    """The outputs of `RunTorchInference` and `SplitFailures`.

    Attributes:
        predictions: the output of `RunInference` without failures.
        dead_letters: `DeadLetter` of every example that failed.
    """

    predictions: PCollection[Any]
    dead_letters: PCollection[DeadLetter]


@dataclass(eq=False)
class SplitFailures(beam.PTransform[Any, Any]):
    """The output of `RunInference` with a `TorchModelHandler` to `Inferences`.

    | in | predictions | dead letters |
    | --- | --- | --- |
    | `PredictionResult` | the same | `DeadLetter` without key |
    | `(key, PredictionResult)` | the same | `DeadLetter` with key |
    | anything else, as returned by a postprocess function | the same | none |

    The example of a dead letter is the one passed to the handler, after the preprocess functions.
    """

    def expand(self, results: PCollection[Any]) -> Inferences:
        """One step."""
        outputs = results | "Split" >> beam.FlatMap(_split).with_outputs(_DEAD_LETTERS, main="predictions")
        return Inferences(outputs.predictions, outputs[_DEAD_LETTERS])


@dataclass(eq=False)
class RunTorchInference(beam.PTransform[Any, Any]):
    """Examples, keyed or not, to `Inferences`.

    Preprocess and postprocess functions of the handler run here on whole batches, so that an element crosses Beam once;
    each sees the element as it does in `RunInference`, with its key. A postprocess function never sees a failure, and an
    example on which a function fails is a dead letter by itself, as it came in.

    Attributes:
        handler: a `TorchModelHandler`, alone or in Beam's wrappers; alone it takes examples with and without keys.
        inference_args: further keyword arguments of the model's `forward`, or a side input of them
            (`beam.pvalue.AsDict(pcoll)`).
        metrics_namespace: for the metrics of this step.
        options: further keyword arguments of Beam's `RunInference`, such as `model_metadata_pcoll`. A
            `monitoring_transform` gets lists, one for each batch.
    """

    handler: ModelHandler[Any, Any, Any]
    inference_args: Mapping[str, Any] | AsSideInput | None = None
    metrics_namespace: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def expand(self, examples: PCollection[Any]) -> Inferences:
        """Batches → RunInference → split."""
        arguments: Any = self.inference_args
        self.handler.validate_inference_args(arguments)
        if isinstance(arguments, Mapping):
            arguments = dict(arguments)
        if self.handler.should_skip_batching():
            raise UsageError("RunTorchInference batches by itself; remove with_no_batching, or use RunInference")
        batches = beam.BatchElements(**self.handler.batch_elements_kwargs())
        outputs = (
            examples
            | "Batch" >> batches.with_output_types(Batch(examples.element_type or Any))
            | "RunInference"
            >> RunInference(
                _BatchHandler(self.handler),
                inference_args=arguments,
                metrics_namespace=self.metrics_namespace,
                **self.options,
            ).with_output_types(Batch(Any))
            | "Split" >> beam.FlatMap(lambda batch: batch).with_outputs(_DEAD_LETTERS, main="predictions")
        )
        return Inferences(outputs.predictions, outputs[_DEAD_LETTERS])


class _BatchHandler(ModelHandler[Any, list[Any], Any]):
    """Wraps a handler with its functions: turns a list of elements into one list of results.

    Dead letters are in that list as `TaggedOutput`. Keys are removed before the model and restored after it, unless a
    handler of Beam needs them.
    """

    def __init__(self, handler: ModelHandler[Any, Any, Any]) -> None:
        self._before = _one_after_the_other(list(handler.get_preprocess_fns()))
        self._after = _one_after_the_other(list(handler.get_postprocess_fns()))
        core: Any = handler
        while hasattr(core, "_base"):  # Beam's wrappers for functions, which are applied here
            core = core._base
        self._needs_key = isinstance(core, KeyedModelHandler)
        self._by_key = isinstance(core, KeyedModelHandler) and not core._single_model
        self._takes_key = isinstance(core, TorchModelHandler)
        if type(core) in (KeyedModelHandler, MaybeKeyedModelHandler) and not self._by_key:
            core, self._takes_key = core._unkeyed, True
        self._core = core
        self._env_vars = getattr(handler, "_env_vars", {})

    def load_model(self) -> Any:
        return self._core.load_model()

    def run_inference(
        self, batch: Sequence[Any], model: Any, inference_args: dict[str, Any] | None = None
    ) -> Iterable[list[Any]]:
        dead: list[DeadLetter] = []
        elements, inputs = _apply(self._before, batch, batch, "preprocess", dead)
        results, none_failed = self._score(inputs, model, inference_args)
        if not none_failed:
            elements, results = _good(elements, results, dead)
        _, predictions = _apply(self._after, elements, results, "postprocess", dead)
        return [predictions + [beam.pvalue.TaggedOutput(_DEAD_LETTERS, letter) for letter in dead]]

    def _score(self, inputs: list[Any], model: Any, arguments: dict[str, Any] | None) -> tuple[Iterable[Any], bool]:
        """Results in the order of `inputs`, and whether all of them are known to be predictions."""
        if not inputs:
            return [], True
        if not self._needs_key or (not self._by_key and all(map(_is_pair, inputs))):
            return self._run(inputs, model, arguments)
        results = [None if _is_pair(element) else _without_key(element) for element in inputs]
        indices: dict[Any, list[int]] = defaultdict(
            list
        )  # a handler with one model per key returns results sorted by key
        for index, element in enumerate(inputs):
            if _is_pair(element):
                indices[element[0] if self._by_key else None].append(index)
        for key, chosen in indices.items():
            part = [inputs[index] for index in chosen]
            try:
                found, _ = self._run(part, model, arguments)
            except KeyError:
                if not self._by_key or key in self._core._key_to_id_map:
                    raise
                failure = FailedPrediction("forward", "KeyError", f"no model is mapped to the key {key!r}")
                found = [(key, PredictionResult(example, failure)) for _, example in part]
            for index, result in zip(chosen, found, strict=True):
                results[index] = result
        return results, False

    def _run(self, inputs: list[Any], model: Any, arguments: dict[str, Any] | None) -> tuple[Iterable[Any], bool]:
        """Like `_score`, for elements that the handler takes in one batch."""
        examples = [each[1] if _is_pair(each) else each for each in inputs] if self._takes_key else inputs
        found = self._core.run_inference(examples, model, arguments)
        if not isinstance(found, Results):
            found = list(found)
        if len(found) != len(inputs):
            raise BrokenModelError(f"the handler gave {len(found)} results for {len(inputs)} examples")
        results = (
            result if example is each else (each[0], result)
            for each, example, result in zip(inputs, examples, found, strict=True)
        )
        return results, isinstance(found, Results) and found.none_failed

    def should_skip_batching(self) -> bool:
        return True  # RunTorchInference batches already

    def get_num_bytes(self, batch: Sequence[Any]) -> int:
        return len(batch) * example_bytes(batch[0][1] if _is_pair(batch[0]) else batch[0]) if batch else 0

    def get_metrics_namespace(self) -> str:
        return str(self._core.get_metrics_namespace())

    def get_resource_hints(self) -> dict[str, Any]:
        return dict(self._core.get_resource_hints())

    def validate_inference_args(self, inference_args: dict[str, Any] | None) -> None:
        self._core.validate_inference_args(inference_args)

    def update_model_path(self, model_path: str | None = None) -> None:
        self._core.update_model_path(model_path)

    def update_model_paths(self, model: Any, model_paths: Any = None) -> None:
        self._core.update_model_paths(model, model_paths)

    def share_model_across_processes(self) -> bool:
        return bool(self._core.share_model_across_processes())

    def model_copies(self) -> int:
        return int(self._core.model_copies())

    def override_metrics(self, metrics_namespace: str = "") -> bool:
        return bool(self._core.override_metrics(metrics_namespace))


def _without_key(element: Any) -> PredictionResult:
    message = f"KeyedModelHandler takes (key, example) pairs, not {type(element).__name__}"
    return PredictionResult(element, FailedPrediction("encode", "WrongType", message))


def _good(
    elements: Sequence[Any], results: Iterable[Any], dead: list[DeadLetter]
) -> tuple[Sequence[Any], Iterable[Any]]:
    """Elements and results without those that failed, which become dead letters."""
    good: tuple[list[Any], list[Any]] = [], []
    for element, result in zip(elements, results, strict=True):
        if failure := failure_of(result):
            dead.append(_dead_letter(element, failure, _model_id(result)))
        else:
            good[0].append(element)
            good[1].append(result)
    return good


def _one_after_the_other(functions: Sequence[Callable[[Any], Any]]) -> Callable[[Any], Any] | None:
    if len(functions) < 2:  # the common case, at no cost
        return functions[0] if functions else None
    return lambda value: functools.reduce(lambda found, function: function(found), functions, value)


def _apply(
    function: Callable[[Any], Any] | None,
    origins: Sequence[Any],
    values: Iterable[Any],
    stage: str,
    dead: list[DeadLetter],
) -> tuple[Sequence[Any], list[Any]]:
    """Runs `function` on each of `values`; returns the origins and results of those that succeeded."""
    if function is None:
        return origins, list(values)
    results: list[Any] = []
    failed: set[int] = set()
    for value in values:
        try:
            results.append(function(value))
        except Exception as error:
            index = len(results) + len(failed)
            dead.append(_dead_letter(origins[index], failed_prediction(stage, error), _model_id(value)))
            failed.add(index)
    return [origin for index, origin in enumerate(origins) if index not in failed] if failed else origins, results


def _split(result: Any) -> Iterator[Any]:
    failure = failure_of(result)
    if failure is None:
        yield result
        return
    is_keyed = type(result) is tuple
    inner = result[1] if is_keyed else result
    origin = (result[0], inner.example) if is_keyed else inner.example
    yield beam.pvalue.TaggedOutput(_DEAD_LETTERS, _dead_letter(origin, failure, inner.model_id))


def _is_pair(element: Any) -> bool:
    """Whether an element is a (key, example) pair."""
    return type(element) is tuple and len(element) == 2


def _dead_letter(origin: Any, failure: FailedPrediction, model_id: str | None) -> DeadLetter:
    key, example = origin if _is_pair(origin) else (None, origin)
    return DeadLetter(key, example, failure.stage, failure.error_type, failure.message, failure.traceback, model_id)


def _model_id(result: Any) -> str | None:
    if _is_pair(result):
        result = result[1]
    return result.model_id if isinstance(result, PredictionResult) else None
