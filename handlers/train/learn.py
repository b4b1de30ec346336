"""A training from prepared rows to a network that can be saved: labels, inputs, network, constants, loop."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from handlers.columnar.features import feature_columns
from handlers.encode.base import BoundInput
from handlers.encode.binding import bind_inputs
from handlers.encode.specs import InputSpec, NumericInput, input_spec
from handlers.errors import UsageError
from handlers.model.directory import ModelDir
from handlers.model.formats.hub_config import is_hub_directory, with_defaults
from handlers.model.formats.modules import of_module
from handlers.model_code import NO_CODE
from handlers.train import network as networks
from handlers.train.config import ConfigSpec, ModelConfig
from handlers.train.fit import fit
from handlers.train.inputs import Found, find_inputs
from handlers.train.labels import Labels, find_labels
from handlers.train.losses import Loss
from handlers.train.network import Network
from handlers.train.prepared import Prepared, Shards
from handlers.train.rows import RowTensors
from handlers.train.settings import Epoch, Listener, Settings, best_of

MIN_ROWS = 10
SAMPLE_ROWS = 1000
HUB_EPOCHS, HUB_BATCH, HUB_RATE = 3, 16, 5e-5
EPOCHS, RATE = 30, 1e-3
STEPS = 50  # of an epoch, about, as long as a step has
FEWEST, MOST = 16, 1024  # rows


@dataclass(frozen=True)
class Wanted:
    """What is trained.

    Attributes:
        architecture: a built-in one, or `module:Class`.
        config: fields of `model.yaml` that the user gives.
        task: if the user names it.
        pretrained: the directory to fine-tune, for `huggingface`.
    """

    architecture: str
    config: ModelConfig = field(default_factory=ModelConfig)
    task: str | None = None
    pretrained: Path | None = None


@dataclass(frozen=True)
class Learned:
    """A trained network.

    Attributes:
        network: with the weights of its best epoch, on the CPU.
        labels: what it predicts.
        settings: how it was trained.
        history: what each epoch came to.
        left_out: columns that are no inputs, with the reason.
        used: rows that were trained on and validated with.
        unusable: rows that could not be encoded, by `encode/type`.
        config: fields of `model.yaml` that the user gave.
    """

    network: Network
    labels: Labels
    settings: Settings
    history: list[Epoch]
    left_out: Mapping[str, str]
    used: tuple[int, int]
    unusable: Counter[str]
    config: ModelConfig

    @property
    def best(self) -> Epoch:
        """The epoch whose weights it has."""
        return best_of(self.history)

    def save(self, path: Path, name: str) -> ModelDir:
        """Writes the model directory."""
        given, network = self.config.spec, self.network
        fields = {
            each: _plain(getattr(given, each))
            for each in ("preprocess", "postprocess", "env_vars", "output", "threshold")
            if each in given.model_fields_set
        }
        # With all columns by name: a pattern could match the label in the rows that are scored.
        specs = [bound.spec.model_copy(update={"columns": bound.columns}) for bound in network.inputs]
        code = self.config.code_folder
        return ModelDir.save(
            network.module,
            path,
            name=name,
            task=self.labels.task,
            inputs=specs,
            format=network.format,
            code=sorted(item for item in code.iterdir() if not item.name.startswith(".")) if code else (),
            labels=list(self.labels.names),
            features=needed_features(given, self.labels.column, network.inputs),
            **network.fields,
            **network.parts,
            **fields,
        )


def learn(prepared: Prepared, wanted: Wanted, settings: Settings, folder: Path, listener: Listener) -> Learned:
    """Trains a network on prepared rows.

    Args:
        prepared: the rows.
        wanted: what is trained.
        settings: how.
        folder: where checkpoints and logs go; a training that was interrupted there is continued.
        listener: receives the progress.

    Raises:
        UsageError: for what the user must fix.
        TrainingError: where the loss is not finite.
    """
    spec = wanted.config.spec
    task = wanted.task or (None if spec.task == "raw" else spec.task)
    labels = find_labels(prepared, task, spec.labels)
    if settings.balanced and labels.task == "regression":
        raise UsageError("--class_weights=balanced is for classes; the task is regression")
    _check_rows(prepared)
    network, left_out = _network(prepared, wanted, labels, settings.seed)
    needed_features(spec, labels.column, network.inputs)
    train = _scan(prepared.train, network, labels)
    validation = _scan(prepared.validation, network, labels)
    _check_usable(train, validation)
    for name, constants in network.constants.items():
        constants.set_constants(train.moments[name].mean, train.moments[name].deviation)
    deviation = mean = None
    if labels.task == "regression":
        mean, deviation = train.moments[""].mean, train.moments[""].deviation
        if not bool((deviation > 0).all()):
            raise UsageError(
                f'--label: column "{labels.column}" is the same in all rows to train on; there is nothing to learn'
            )
        if network.of_label is not None:
            network.of_label.set_constants(mean, deviation)
    loss = Loss(
        labels,
        spec.output,
        balanced=settings.balanced,
        deviation=deviation,
        mean=mean if network.finish is not None else None,
        regression=settings.regression,
    )
    history = fit(network.loaded, loss, train, validation, settings, folder, listener)
    if network.finish is not None and mean is not None and deviation is not None:
        network.finish(mean, deviation)
    return Learned(
        network,
        labels,
        settings,
        history,
        left_out,
        (len(train), len(validation)),
        train.failures + validation.failures,
        wanted.config,
    )


def needed_features(spec: ConfigSpec, label: str, inputs: Sequence[BoundInput]) -> dict[str, str]:
    """The features that scoring needs: not those that only make the label, whose columns new rows may not have.

    Raises:
        UsageError: for one that is computed from the label.
    """
    used = {name for bound in inputs for name in bound.columns}
    kept: dict[str, str] = {}
    for name, text in reversed(spec.features.items()):
        if name in used or (spec.preprocess and name != label):  # what functions use is not known
            kept[name] = text
            columns = feature_columns({name: text})
            if label in columns:
                raise UsageError(
                    f'feature "{name}" is computed from the label "{label}", which rows to score do not have'
                )
            used |= columns
    return dict(reversed(kept.items()))


def default_epochs(architecture: str) -> int:
    """Passes over the rows at most, unless they are given."""
    return HUB_EPOCHS if architecture == networks.HUGGINGFACE else EPOCHS


def default_settings(
    settings: Settings,
    architecture: str,
    rows: int,
    *,
    epochs: int | None,
    learning_rate: float | None,
    batch_size: int | None,
) -> Settings:
    """`settings` with defaults that depend on what is trained and on how many rows, where these are not given."""
    hub = architecture == networks.HUGGINGFACE
    size = min(MOST, max(FEWEST, 2 ** round(math.log2(max(rows, 1) / STEPS))))
    return replace(
        settings,
        epochs=epochs or default_epochs(architecture),
        learning_rate=learning_rate or (HUB_RATE if hub else RATE),
        batch_size=batch_size or (HUB_BATCH if hub else size),
    )


def _network(prepared: Prepared, wanted: Wanted, labels: Labels, seed: int) -> tuple[Network, Mapping[str, str]]:
    """The network with its first weights, and the columns that are left out."""
    spec, name = wanted.config.spec, wanted.architecture
    sample = prepared.train.take(np.arange(min(SAMPLE_ROWS, len(prepared.train))))
    sample = sample.drop_columns([labels.column])
    if not sample.num_columns:
        raise UsageError(f'the rows have no other column than the label "{labels.column}"')
    specs: Sequence[InputSpec] = spec.inputs
    if used := [each.name for each in specs if labels.column in each.patterns]:
        raise UsageError(f'the input "{used[0]}" takes the label "{labels.column}"; remove it from its columns')
    if wanted.pretrained is not None:
        torch.manual_seed(seed)
        return _pretrained(wanted.pretrained, specs, sample, labels), {}
    found = Found((), {})
    if name in networks.BUILT_IN:
        if not specs:
            found = _found(prepared, labels, sequences=name == "lstm")
        torch.manual_seed(seed)
        return networks.built_in(name, specs or found.inputs, sample, labels, spec.arguments), found.left_out
    code = wanted.config.code() if wanted.config.path else NO_CODE
    if not specs:
        specs, found = _numbers(prepared, labels, networks.make(name, spec.arguments, code), name)
    torch.manual_seed(seed)
    return networks.of_class(name, specs, sample, spec.arguments, code), found.left_out


def _found(prepared: Prepared, labels: Labels, *, sequences: bool = False) -> Found:
    split_by = prepared.about.get("split_by") or ()
    keys = (
        [split_by] if isinstance(split_by, str) else [name for name in split_by if name in prepared.train.schema.names]
    )
    return find_inputs(prepared.train, labels.column, sequences=sequences, leave_out=keys)


def _numbers(
    prepared: Prepared, labels: Labels, module: torch.nn.Module, name: str
) -> tuple[Sequence[InputSpec], Found]:
    """For a class of one input: all columns of numbers."""
    parameters = of_module(module).parameters
    found = _found(prepared, labels)
    numbers = [each for each in found.inputs if isinstance(each, NumericInput) and each.shape is None]
    if len(parameters) != 1 or not numbers:
        raise UsageError(f"--architecture={name}: write the inputs of the model into a config, --model=CONFIG.yaml")
    columns = tuple(column for each in numbers for column in each.columns)
    others = {column: "not a number" for each in found.inputs if each not in numbers for column in each.columns}
    return (NumericInput(name=parameters[0], columns=columns),), Found((), {**found.left_out, **others})


def _pretrained(folder: Path, specs: Sequence[InputSpec], sample: pa.RecordBatch, labels: Labels) -> Network:
    if not folder.is_dir() or not is_hub_directory(folder):
        raise UsageError(f"--pretrained {folder} is not a directory that save_pretrained wrote (no config.json)")
    content = {"format": "huggingface", "task": labels.task}
    if specs:
        content["inputs"] = [each.given() for each in specs]  # type: ignore[assignment]
    known = with_defaults(content, folder)
    complete = [input_spec(**each) for each in known["inputs"]]
    # With the columns by name: the rows that are scored may have the label, a column of text, too.
    named = [
        each.model_copy(update={"columns": bound.columns})
        for each, bound in zip(complete, bind_inputs(complete, (), sample), strict=True)
    ]
    return networks.pretrained(folder, named, sample, labels)


def _scan(shards: Shards, network: Network, labels: Labels) -> RowTensors:
    return RowTensors.scan(shards, network.inputs, labels, list(network.constants))


def _check_rows(prepared: Prepared) -> None:
    train, validation = len(prepared.train), len(prepared.validation)
    if train + validation < MIN_ROWS:
        raise UsageError(
            f"there are {train + validation} rows to train on and validate with; {MIN_ROWS} are needed at least"
        )
    if not validation:
        raise UsageError(
            f"none of the {train:,} rows is held out to validate with; set --validation=0.2, or give more rows"
        )
    if train < 2:
        raise UsageError(f"all but {train} of the rows are held out; lower --validation")


def _check_usable(train: RowTensors, validation: RowTensors) -> None:
    for rows, what in ((train, "to train on"), (validation, "to validate with")):
        if len(rows) < 2 and len(rows.shards) >= 2:
            raise UsageError(
                f"{len(rows.shards) - len(rows)} of the {len(rows.shards)} rows {what} cannot be encoded: {rows.example}"
            )


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else list(value) if isinstance(value, tuple) else value
