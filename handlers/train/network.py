"""The network of a training: built in, a class of the user, or a directory of Hugging Face that is fine-tuned."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from handlers.encode.base import BoundInput
from handlers.encode.binding import bind_inputs
from handlers.encode.categorical import BoundCategorical
from handlers.encode.numeric import BoundNumeric
from handlers.encode.sequence import BoundSequence
from handlers.encode.specs import InputSpec
from handlers.errors import UsageError
from handlers.model.formats.modules import call, of_module
from handlers.model_code import NO_CODE, ModelCode, import_function
from handlers.nets import Lstm, Mlp
from handlers.nets.columns import Normalize
from handlers.predict.loaded import LoadedModel
from handlers.train.inputs import LENGTHS
from handlers.train.labels import Labels

BUILT_IN: dict[str, type[torch.nn.Module]] = {"mlp": Mlp, "lstm": Lstm}
HUGGINGFACE = "huggingface"


@dataclass(frozen=True)
class Network:
    """A network before its training.

    Attributes:
        loaded: its module, and how it is called.
        inputs: its inputs, bound to the columns of the rows, ready to encode.
        format: of the weights that are saved.
        fields: fields of `model.yaml` that describe it.
        constants: the normalisations that training sets, by input.
        of_label: the one that brings outputs to the label's unit, if the network has it.
        parts: arguments of `ModelDir.save` for what is saved next to the weights, such as the tokenizer.
        finish: called with the mean and deviation of the label after the training of a network that gives normalised numbers.
    """

    loaded: LoadedModel
    inputs: tuple[BoundInput, ...]
    format: str = "safetensors"
    fields: Mapping[str, Any] = field(default_factory=dict)
    constants: Mapping[str, Normalize] = field(default_factory=dict)
    of_label: Normalize | None = None
    parts: Mapping[str, Any] = field(default_factory=dict)
    finish: Callable[[torch.Tensor, torch.Tensor], None] | None = None

    @property
    def module(self) -> torch.nn.Module:
        """The module."""
        module = self.loaded.module
        assert isinstance(module, torch.nn.Module)  # noqa: S101 - made here
        return module


def built_in(
    name: str, specs: Sequence[InputSpec], sample: pa.RecordBatch, labels: Labels, arguments: Mapping[str, Any]
) -> Network:
    """A built-in network for these inputs, with random weights.

    Args:
        name: one of `BUILT_IN`.
        specs: its inputs.
        sample: some rows.
        labels: what it predicts.
        arguments: of the user, such as `hidden`.

    Raises:
        UsageError: for an input that it cannot take, or an argument that it has not.
    """
    inputs = bind_inputs(specs, (), sample)
    numeric: dict[str, Any] = {}
    categorical: dict[str, Any] = {}
    sequence: dict[str, Any] = {}
    for bound in inputs:
        spec = bound.spec
        if isinstance(bound, BoundNumeric):
            if not bound.dtype.is_floating_point:
                raise UsageError(f'--architecture={name}: the input "{spec.name}" must be of floats')
            numeric[spec.name] = {"width": sum(bound.widths)} | ({"missing": True} if _allows(bound) else {})
        elif isinstance(bound, BoundCategorical):
            categorical[spec.name] = {"width": sum(bound.widths)} | _codes(bound)
        elif isinstance(bound, BoundSequence) and name == "lstm" and not sequence:
            _check_padding(bound)
            steps = _codes(bound.steps) if bound.steps.spec.codes is not None else {"width": len(bound.columns)}
            sequence = {"name": spec.name, **steps}
        else:
            takes = "numeric and categorical inputs" + (" and one sequence" if name == "lstm" else "")
            raise UsageError(
                f'--architecture={name} takes {takes}; the input "{spec.name}" has the encoder {spec.encoder}'
            )
    made: dict[str, Any] = {"outputs": labels.outputs}
    if name == "lstm":
        if not sequence:
            raise UsageError("--architecture=lstm needs an input with encoder sequence; use mlp for single values")
        made["sequence"] = sequence
    made |= {"numeric": numeric} if numeric else {}
    made |= {"categorical": categorical} if categorical else {}
    made |= {"denormalize": True} if labels.task == "regression" else {}
    if own := sorted(set(arguments) & {"outputs", "sequence", "lengths", "numeric", "categorical", "denormalize"}):
        raise UsageError(
            f"arguments: {own[0]} of --architecture={name} follows from the inputs and the label; remove it"
        )
    made |= arguments
    kind = BUILT_IN[name]
    module = call(kind, f"architecture {name}", **made)
    constants = dict(module.columns.constants())
    if isinstance(module, Lstm) and isinstance(module.steps, Normalize):
        constants[module.sequence] = module.steps
    fields = {"architecture": f"handlers.nets:{kind.__name__}", "arguments": made}
    return Network(of_module(module), inputs, fields=fields, constants=constants, of_label=module.head.label)


def of_class(
    name: str,
    specs: Sequence[InputSpec],
    sample: pa.RecordBatch,
    arguments: Mapping[str, Any],
    code: ModelCode = NO_CODE,
) -> Network:
    """A network of a class of the user, with the weights that its constructor gives it.

    Args:
        name: `module:Class`, in `code` or installed.
        specs: its inputs.
        sample: some rows.
        arguments: what it is constructed with.
        code: modules next to the config.

    Raises:
        UsageError: where it cannot be made.
    """
    module = make(name, arguments, code)
    loaded = of_module(module)
    inputs = bind_inputs(specs, (), sample, loaded.parameters)
    if any(type(bound).prepare is not BoundInput.prepare for bound in inputs):
        raise UsageError(
            f"--architecture={name}: an input with encoder text is trained with --architecture=huggingface only"
        )
    return Network(loaded, inputs, fields={"architecture": name, "arguments": dict(arguments)})


def make(name: str, arguments: Mapping[str, Any], code: ModelCode = NO_CODE) -> torch.nn.Module:
    """An instance of the class `module:Class`; raises `UsageError` where there is none."""
    module = call(import_function(name, "architecture", code), f'architecture "{name}"', **arguments)
    if not isinstance(module, torch.nn.Module):
        raise UsageError(f'architecture "{name}" gives a {type(module).__name__}, not a torch.nn.Module')
    return module


def pretrained(folder: Path, specs: Sequence[InputSpec], sample: pa.RecordBatch, labels: Labels) -> Network:
    """The model of a directory of Hugging Face with a new head for these labels.

    Args:
        folder: as `save_pretrained` or sentence-transformers wrote it.
        specs: one input with encoder text or image.
        sample: some rows.
        labels: what it predicts.

    Raises:
        UsageError: where it cannot be loaded safely, or has no head for the task.
    """
    from handlers.train import hub

    encoders = {spec.encoder for spec in specs}
    if len(specs) != 1 or not encoders <= {"text", "image"}:
        raise UsageError(f"{folder}: --architecture=huggingface takes one input with encoder text or image")
    model, parts = hub.with_head(folder, "".join(encoders), labels.task, labels.names or ("",) * labels.width)
    loaded = of_module(model)
    inputs = tuple(bound.prepare(folder) for bound in bind_inputs(specs, (), sample, loaded.parameters))
    finish = None if labels.task != "regression" else _denormalizer(model, labels.outputs, folder)
    return Network(loaded, inputs, "huggingface", parts=parts, finish=finish)


def _denormalizer(model: torch.nn.Module, outputs: int, folder: Path) -> Callable[[torch.Tensor, torch.Tensor], None]:
    """Folds the label's mean and deviation into the last linear layer, so that the saved model needs no other code."""
    linear = [each for each in model.modules() if isinstance(each, torch.nn.Linear) and each.out_features == outputs]
    if not linear or linear[-1].bias is None:
        raise UsageError(f"{folder}: its head does not end with a linear layer with a bias, which a regression needs")
    last = linear[-1]

    def finish(mean: torch.Tensor, deviation: torch.Tensor) -> None:
        with torch.no_grad():
            scale = deviation.to(last.weight)
            last.weight.mul_(scale[:, None])
            last.bias.mul_(scale).add_(mean.to(last.bias))

    return finish


def _allows(bound: BoundNumeric) -> bool:
    return bound.spec.allows_nonfinite


def _codes(bound: Any) -> dict[str, int]:
    """The number of codes of a categorical input, that of unknown values included."""
    codes, unknown = int(bound.spec.codes), bound.spec.unknown_code
    found = {"codes": max(codes, -1 if unknown is None else unknown + 1)}
    return found | ({"unknown": unknown} if unknown is not None and unknown >= codes else {})


def _check_padding(bound: BoundSequence) -> None:
    if bound.spec.mask != LENGTHS or bound.spec.pad != "right":
        raise UsageError(f'--architecture=lstm: the input "{bound.spec.name}" needs mask: {LENGTHS} and pad: right')
