"""`TorchModelHandler`: Beam's RunInference over examples, with the guarantees of the columnar path.

An example that cannot be scored does not fail its batch: its result is a `PredictionResult` whose `inference` is a
`FailedPrediction`. `transforms.RunTorchInference` and `transforms.SplitFailures` separate those.
"""

from __future__ import annotations

import functools
import os
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat, starmap
from operator import countOf
from types import NoneType
from typing import Any, TypedDict, TypeVar, Unpack

from apache_beam.ml.inference.base import PredictionResult
from apache_beam.pvalue import AsSideInput

from handlers.base import MeteredHandler
from handlers.batching import ResourceHints
from handlers.elements.collate import Collate
from handlers.elements.examples import Answers, ExampleScorer, HandlerConfig, InferenceFn, Source
from handlers.elements.failures import FailedPrediction
from handlers.errors import DeviceLostError, UsageError
from handlers.metrics import InferenceMetrics
from handlers.model.directory import MODEL_FILE, ModelDir
from handlers.model.state_dict import StateDict
from handlers.predict.faults import leave_lost_process
from handlers.predict.placement import Placement
from handlers.tensors import Padding

T = TypeVar("T")

# A batch by default: so many examples, or fewer where they are large. Beam's choice, by timing, is often a few
# where other work shares the processor, and then the overhead of a batch dominates.
BATCH_EXAMPLES = 2048
BATCH_BYTES = 16 << 20
_LEAST = BATCH_BYTES // BATCH_EXAMPLES
NUMBER_BYTES = 32  # about what a number of Python takes
_NUMBERS = frozenset((float, int, bool, NoneType))


class BeamBatching(TypedDict, total=False):
    """How RunInference gathers examples: Beam's own options, see `apache_beam.ml.inference.base.ModelHandler`."""

    min_batch_size: int
    max_batch_size: int
    max_batch_duration_secs: int
    max_batch_weight: int
    element_size_fn: Callable[[Any], int]
    batch_length_fn: Callable[[Any], int]
    batch_bucket_boundaries: list[int]


class TorchModelHandler(MeteredHandler[Any, PredictionResult, ExampleScorer]):
    """Scores examples with a PyTorch model, in `RunInference` and in every wrapper that Beam has for handlers.

    | example | `PredictionResult.inference` |
    | --- | --- |
    | tensor, array, mapping of tensors, mapping of columns | what the model gives: a tensor, or a tuple or dict of them |
    | the same, with `head=True` | the columns of the model's task: `{"predicted_class": "good", "confidence": 0.9}` |
    | any that cannot be scored | `FailedPrediction` |

    Args:
        model: a model directory or a bare `.pt2` or TorchScript file, or a `StateDict`.
        placement: device, precision, compilation, processes to a GPU.
        hints: resource hints of the inference step.
        padding: how examples of unequal length are padded. Without it they are padded only for a model that takes an
            `attention_mask`, `mask` or `padding_mask` that they do not bring; for others, each length goes by itself.
        collate: a function from a list of examples to tensors by input name, instead of ours.
        inference_fn: as Beam's handlers take it: `(batch, model, device, inference_args, model_id)` to one result an
            example. It is given examples of one shape at a time.
        head: whether the model's task decodes its outputs.
        keep_example: whether a result carries its example; a failed one always does.
        large_model: one copy of the model for all processes of a host, as Beam takes it.
        model_copies: copies for all processes of a host, as Beam takes it.
        env_vars: set in the worker before the model is loaded, in addition to those of the model directory.
        batching: see `BeamBatching`; by default batches of up to 2,048 examples or 16 MiB.

    Raises:
        UsageError: where the model directory is not valid, or an option is unknown or wrong.
    """

    def __init__(
        self,
        model: Source | str | os.PathLike[str],
        *,
        placement: Placement | None = None,
        hints: ResourceHints | None = None,
        padding: Padding | None = None,
        collate: Collate | None = None,
        inference_fn: InferenceFn | None = None,
        head: bool = False,
        keep_example: bool = True,
        large_model: bool = False,
        model_copies: int | None = None,
        env_vars: Mapping[str, str] | None = None,
        **batching: Unpack[BeamBatching],
    ) -> None:
        unknown = set(batching) - set(BeamBatching.__annotations__)
        if unknown:  # Beam's base class would ignore it
            raise UsageError(
                f'TorchModelHandler has no option "{min(unknown)}"; the options for batches are '
                f"{', '.join(BeamBatching.__annotations__)}"
            )
        source = model if isinstance(model, ModelDir | StateDict) else ModelDir(model)
        if not batching:
            batching = {"min_batch_size": BATCH_BYTES, "max_batch_size": BATCH_BYTES, "element_size_fn": _weight}
        own_vars = dict(source.spec.env_vars) if isinstance(source, ModelDir) else {}
        super().__init__(
            large_model=large_model, model_copies=model_copies, env_vars=own_vars | dict(env_vars or {}), **batching
        )
        if inference_fn is not None and (collate is not None or head):
            raise UsageError("inference_fn makes the results itself; leave collate and head out")
        copies = self.model_copies() if self.share_model_across_processes() else None
        self._config = HandlerConfig(source, placement or Placement(), copies, padding, collate, inference_fn, head)
        self._hints = hints or ResourceHints()
        self._keep_example = keep_example
        self._metrics = InferenceMetrics()

    def load_model(self) -> ExampleScorer:
        """Loads the model into this process, on its device."""
        return self._config.load()

    def update_model_path(self, model_path: str | None = None) -> None:
        """Takes the model at `model_path`, as `model_metadata_pcoll` and `watch_model_pattern` give it.

        The path of a `model.yaml` stands for its directory: patterns of Beam match files.
        """
        model_path = (model_path or "").removesuffix(f"/{MODEL_FILE}")
        if model_path and model_path != self._config.source.path:
            self._config = self._config.at(model_path)

    def run_inference(
        self, batch: Sequence[Any], model: ExampleScorer, inference_args: dict[str, Any] | None = None
    ) -> Iterable[PredictionResult]:
        """One result for every example of `batch`, in order.

        Raises:
            BrokenModelError: where the model gives another number of rows than it was given.
        """
        examples = list(batch)
        if not examples:  # BatchElements begins a bundle with an empty batch where its first element is too large
            return []
        try:
            answers = self._score(model, examples, inference_args)
        except DeviceLostError:
            leave_lost_process()
            raise
        failed = answers.failed_by_stage()
        self._metrics.loaded(answers.load)
        self._metrics.batch(len(examples), len(examples) - failed.total(), failed, answers.stats)
        return Results(examples, answers, self._keep_example)

    def _score(self, model: Any, examples: list[Any], arguments: dict[str, Any] | None) -> Answers:
        if isinstance(model, ExampleScorer):
            return model.score(examples, arguments)
        call = pickle.dumps((examples, arguments), protocol=5)
        answers: Answers = pickle.loads(model.score_pickled(call))  # noqa: S301 - from a process of this pipeline
        return answers

    def get_num_bytes(self, batch: Sequence[Any]) -> int:
        """About how many bytes the examples take, by the first of them (Beam's own pickles the whole batch to know)."""
        return len(batch) * example_bytes(batch[0]) if len(batch) else 0

    def validate_inference_args(self, inference_args: Mapping[str, Any] | AsSideInput | None) -> None:
        """Refuses, before the pipeline runs, what cannot be keyword arguments. A side input has no value yet."""
        if inference_args is None or isinstance(inference_args, AsSideInput):
            return
        if not isinstance(inference_args, Mapping) or not all(isinstance(name, str) for name in inference_args):
            raise UsageError(
                "inference_args must be keyword arguments of the model's forward, by name: a dict, or beam.pvalue.AsDict"
            )


@dataclass(frozen=True, eq=False)
class Results(Iterable[PredictionResult]):
    """The results of a batch, in order. Each is made when it is asked for, so that not all need be held at once.

    Attributes:
        examples: the batch.
        answers: what became of it.
        keep_example: whether a result carries its example; a failed one always does.
    """

    examples: list[Any]
    answers: Answers
    keep_example: bool

    @property
    def none_failed(self) -> bool:
        """Whether all are known to be predictions; results of a user function may contain failures."""
        return not self.answers.failures and not self.answers.results

    def __len__(self) -> int:
        return len(self.examples)

    def __iter__(self) -> Iterator[PredictionResult]:
        model_id, found = self.answers.model_id, self.answers.in_order()
        if self.none_failed:  # the common case, at a third of the cost
            kept = self.examples if self.keep_example else repeat(None, len(self))
            return map(_result, zip(kept, found, repeat(model_id, len(self)), strict=True))
        return starmap(self._either, zip(self.examples, found, strict=True))

    def _either(self, example: Any, answer: Any) -> PredictionResult:
        model_id: str | None = self.answers.model_id
        if isinstance(answer, PredictionResult):  # of an inference_fn
            example, answer, model_id = answer
        keep = self.keep_example or isinstance(answer, FailedPrediction)
        return PredictionResult(example if keep else None, answer, model_id)


_result = functools.partial(tuple.__new__, PredictionResult)  # its _make, at half the cost


def skip_failures(function: Callable[[Any], T]) -> Callable[[Any], T | Any]:
    """For `with_postprocess_fn` under plain `RunInference`: passes failed predictions through without calling `function`."""

    @functools.wraps(function)
    def guarded(result: Any) -> T | Any:
        return result if failure_of(result) is not None else function(result)

    return guarded


def failure_of(result: Any) -> FailedPrediction | None:
    """The failure in a `PredictionResult` or a pair of a key and one; None for anything else."""
    if type(result) is tuple and len(result) == 2:
        result = result[1]
    if isinstance(result, PredictionResult) and isinstance(result.inference, FailedPrediction):
        return result.inference
    return None


def example_bytes(example: Any) -> int:
    """About how many bytes an example takes; a list is taken to be of values like its first."""
    if type(example) in _NUMBERS:
        return NUMBER_BYTES
    if isinstance(example, str | bytes):
        return len(example)
    if isinstance(example, Mapping):
        return sum(map(example_bytes, example.values()))
    if isinstance(example, list | tuple):
        return len(example) * example_bytes(example[0]) if example else 0
    try:
        return int(example.nbytes)
    except Exception:  # of a kind that has none, such as a sparse tensor
        return NUMBER_BYTES


def _weight(element: Any) -> int:
    """What an element, keyed or not, counts in a batch of `BATCH_BYTES`; never more, or Beam would emit an empty batch."""
    if type(element) is tuple and len(element) == 2:
        element = element[1]
    if type(element) is dict and len(element) <= _LEAST // NUMBER_BYTES:
        # Every element is looked at, and rows of plain numbers, most of all floats, are the common case.
        values = element.values()
        if countOf(map(type, values), float) == len(values) or _NUMBERS.issuperset(map(type, values)):
            return _LEAST
    size = example_bytes(element)
    return _LEAST if size <= _LEAST else min(BATCH_BYTES, size)
