"""The training job: prepared rows, the training on this machine, and the model directory that is written."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from handlers.columnar.chains import Rows
from handlers.columnar.stage import ModelStage
from handlers.errors import TrainingError, UsageError
from handlers.model import files
from handlers.model.directory import ModelDir
from handlers.predict.placement import Placement
from handlers.predict.predictor import Predictor
from handlers.stats import Stats
from handlers.train.card import card
from handlers.train.labels import check_label
from handlers.train.learn import Learned, Wanted, default_epochs, default_settings, learn
from handlers.train.prepared import ABOUT, Prepared
from handlers.train.settings import Listener, Settings
from handlers.version import __version__
from pipelines.command.options import SourceOptions
from pipelines.jobs.prepare_options import ConfigOptions, FolderOptions, PrepareOptions
from pipelines.jobs.preparing import prepare_rows
from pipelines.jobs.train_options import TrainOptions
from pipelines.jobs.train_output import TrainOutput, claimed, full_disk
from transforms.evaluation.evaluate import Totals
from transforms.evaluation.fingerprint import FILE, KEY
from transforms.evaluation.names import HEADLINE, TITLES
from transforms.evaluation.settle import Wanted as Evaluated
from transforms.evaluation.settle import settle

CARD = "README.md"
BATCH_ROWS = 8192


@dataclass(frozen=True)
class Trained:
    """A finished training.

    Attributes:
        output: the model directory.
        version: of the model.
        about: the content of its `training.json`.
        seconds: that the training took, without the preparation of rows; 0 for one that had ended before.
    """

    output: Path
    version: str
    about: Mapping[str, Any]
    seconds: float = 0.0


def train(options: TrainOptions, tell: Callable[[str], None], listener: Listener) -> Trained:
    """Trains a model and writes its directory.

    Args:
        options: of the command.
        tell: called with lines for the user.
        listener: receives the progress.

    Raises:
        UsageError: for what the user must fix.
        TrainingError: if the loss is not finite.
        TorchbeamError: if the rows cannot be prepared, or the disk is full.
    """
    with full_disk(Path(options.sink.output)), claimed(options.sink, determining(options), tell) as output:
        if output is not None:
            prepared = _rows(options, output, tell)
            started = time.monotonic()
            learned = learn(prepared, *_wanted(options, prepared), output.folder, listener)
            seconds = time.monotonic() - started
            with output.new() as new:
                model = learned.save(new, options.sink.name or _name(options))
                about = describe(options, prepared, learned, model)
                (new / FILE).write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n")
                (new / CARD).write_text(card(about, {name: TITLES[name] for name in HEADLINE[about["task"]]}))
                version = ModelDir(new).version
                output.publish(new)
            return Trained(output.folder, version, about, seconds)
    folder = Path(options.sink.output)
    tell(f"the training in {folder} has ended already")
    return Trained(folder, ModelDir(folder).version, json.loads((folder / FILE).read_text()))


def determining(options: TrainOptions) -> dict[str, Any]:
    """The options that determine what comes out, as JSON has them."""
    config = options.config
    found: dict[str, Any] = {"input": options.source.input or None, "prepared": options.source.prepared}
    found |= {name: getattr(options.source, name) for name in ("input_format", "limit")}
    found |= {each.name: getattr(options.rows, each.name) for each in dataclasses.fields(options.rows)}
    found |= {"architecture": options.architecture}
    found |= {name: getattr(options.network, name) for name in ("task", "pretrained")}
    found |= {each.name: getattr(options.training, each.name) for each in dataclasses.fields(options.training)}
    if options.source.prepared is not None and (about := Path(options.source.prepared) / ABOUT).is_file():
        found["prepared_sha256"] = files.sha256(about)
    if config.path:
        found["config"] = config.spec.model_dump(mode="json", exclude_unset=True, exclude={"training"})
        found["code"] = files.digest_of(config.code_files) if config.code_files else None
    plain: dict[str, Any] = json.loads(json.dumps(found))
    return plain


def _rows(options: TrainOptions, output: TrainOutput, tell: Callable[[str], None]) -> Prepared:
    """The rows to train on: those of `--prepared`, those that a resumed training had, or new ones."""
    if options.source.prepared is not None:
        prepared = Prepared.open(options.source.prepared)
        if options.rows.label and options.rows.label != prepared.label:
            check_label(options.rows.label, prepared.train.schema)
            raise UsageError(
                f'--label={options.rows.label}, but the rows of --prepared have the label "{prepared.label}"; prepare them again'
            )
        return prepared
    if output.has_rows:
        return Prepared.open(output.rows)
    source, folder = options.source, FolderOptions(output=str(output.rows), overwrite=True)
    wanted = PrepareOptions(
        source=SourceOptions(source.input, source.input_format, source.limit),
        rows=options.rows,
        config=ConfigOptions(options.network.model),
        folder=folder,
        run=options.run,
        beam=options.beam,
    )
    prepared = prepare_rows(wanted, options.config, tell)
    _check_dead(options, prepared.about)
    return prepared


def _check_dead(options: TrainOptions, about: Mapping[str, Any]) -> None:
    """Refuses rows of which too many cannot be used."""
    read, dead = about["rows"]["read"], about["rows"]["dead"]
    label = options.rows.label
    nulls = sum(about["dead_by_error"].get(f"label/{kind}", 0) for kind in ("NullValue", "NotFinite"))
    if nulls and not options.rows.skip_null_labels:
        raise UsageError(
            f'--label: column "{label}" is null or not finite in {nulls:,} of {read:,} rows; fill it in features, or train without '
            "such rows by --skip_null_labels"
        )
    if dead and dead / read > options.run.max_failure_rate:
        worst = next(iter(about["dead_by_error"]))
        raise TrainingError(
            f"{dead} of {read} rows are dead letters, above --max_failure_rate={options.run.max_failure_rate}; most are {worst}"
        )


def _wanted(options: TrainOptions, prepared: Prepared) -> tuple[Wanted, Settings]:
    given, network = options.training, options.network
    wanted = Wanted(
        options.architecture,
        options.config,
        network.task,
        Path(network.pretrained) if network.pretrained is not None else None,
    )
    settings = Settings(
        weight_decay=given.weight_decay,
        patience=given.patience,
        gradient_clip=given.gradient_clip,
        balanced=given.class_weights == "balanced",
        regression=given.loss,
        precision=given.precision,
        device=given.device,
        seed=options.rows.seed,
        logger=given.logger,
    )
    settings = default_settings(
        settings,
        wanted.architecture,
        len(prepared.train),
        epochs=given.epochs,
        learning_rate=given.learning_rate,
        batch_size=given.batch_size,
    )
    return wanted, settings


def _name(options: TrainOptions) -> str:
    if options.config.path and "name" in options.config.spec.model_fields_set:
        return options.config.spec.name
    return Path(options.sink.output).resolve().name


def describe(options: TrainOptions, prepared: Prepared, learned: Learned, model: ModelDir) -> dict[str, Any]:
    """The content of `training.json`. It has no times, so that the same training gives the same model version."""
    about, used = prepared.about, learned.used
    rows = {name: count for name, count in about["rows"].items() if name not in ("train", "validation")}
    rows |= {"trained": used[0], "validated": used[1], "unusable": learned.unusable.total()}
    return {
        "torchbeam": __version__,
        "name": model.spec.name,
        "task": learned.labels.task,
        "label": learned.labels.column,
        "labels": list(learned.labels.names),
        "architecture": options.architecture,
        "pretrained": options.network.pretrained,
        "source": about.get("input") or options.source.input or str(options.source.prepared),
        "validation": _held_out(about),
        "inputs": [_input(bound.spec.given(), bound.spec.encoder, bound.columns) for bound in learned.network.inputs],
        "features": dict(model.spec.features),
        "left_out": dict(learned.left_out),
        "seed": learned.settings.seed,
        "settings": dataclasses.asdict(learned.settings),
        "options": determining(options),
        "rows": rows,
        "unusable_by_error": dict(learned.unusable),
        "dead_by_error": dict(about.get("dead_by_error", {})),
        "best_epoch": learned.best.epoch,
        "metrics": {"validation_loss": learned.best.validation_loss} | validate(model, prepared, learned),
        "history": [dataclasses.asdict(epoch) for epoch in learned.history],
        KEY: about.get(KEY),
    }


def validate(model: ModelDir, prepared: Prepared, learned: Learned) -> dict[str, Any]:
    """Metrics of the saved model on the validation rows, which it scores as `score` does; those of `evaluate`, by its code."""
    predictor = Predictor(model.load(), Placement(learned.settings.device))
    probabilities = learned.labels.task == "classification"
    stage = ModelStage(model, learned.network.inputs, predictor, probabilities=probabilities)
    totals: Totals | None = None
    for batch in prepared.validation.batches(BATCH_ROWS):
        scored = _scored(stage, batch, learned.labels.column)
        if totals is None:
            wanted = Evaluated(learned.labels.column)
            totals = Totals(settle(scored.schema, scored, wanted, "the validation part"))
        totals.add(scored)
    if totals is None:
        return {}
    found: dict[str, Any] = totals.task.metrics()
    kept = {name: value for name, value in found.items() if isinstance(value, int | float | None)}
    return kept | {name: found[name] for name in ("classes", "confusion_matrix") if name in found}


def _scored(stage: ModelStage, batch: pa.RecordBatch, label: str) -> pa.RecordBatch:
    """The label and the predictions of the rows that were answered."""
    answers = stage.answer(Rows(batch, np.arange(batch.num_rows)), Stats())
    truth = batch.column(label).take(pa.array(answers.ids))
    return pa.RecordBatch.from_arrays([truth, *answers.columns.values()], names=[label, *answers.columns])


def _held_out(about: Mapping[str, Any]) -> str:
    """How the validation rows were chosen, in words."""
    share, split_by = about.get("validation"), about.get("split_by")
    names = [split_by] if isinstance(split_by, str) else list(split_by or ())
    by = f" of the values of {', '.join(names)}, each with all of its rows" if names else " of the rows"
    return f"{share:.0%}{by}, by seed {about.get('seed', 0)}" if isinstance(share, float) else "as prepared"


def _input(given: Mapping[str, Any], encoder: str, columns: tuple[str, ...]) -> dict[str, Any]:
    """An input as JSON has it: without NaN, which JSON has not, and without long lists of categories."""
    kept = {name: value for name, value in given.items() if name not in ("categories", "fill")}
    return {**kept, "encoder": encoder, "columns": list(columns)}


__all__ = ["Trained", "default_epochs", "train"]
