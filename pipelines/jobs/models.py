"""The models of a run: from the names that the user gave to opened model directories.

torch is imported once the directories are open: it reads the environment variables that they set.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from handlers.batching import ResourceHints
from handlers.errors import UsageError
from handlers.graph.spec import ByKeySpec, ModelEntry, ModelSplit, ModelsSpec
from handlers.model.directory import ModelDir
from handlers.model.registry import (
    ENVIRONMENT,
    NoVersionError,
    all_versions,
    choose_version,
    folder_of,
    is_reference,
    registry_folder,
    resolve,
)
from handlers.model.stores import explain
from handlers.paths import is_mlflow, is_remote
from pipelines.command.options import ModelOptions
from pipelines.dataflow import settings as dataflow
from pipelines.jobs.options import ScoreOptions, connect
from transforms.file_ops import folder_of as folder_of_file
from transforms.file_ops import join, subfolders

if TYPE_CHECKING:
    from handlers.graph.plan import ModelSettings


def resolve_model(reference: str, folder: str = ".", registry: str | None = None) -> str:
    """The path of the model that a user named: a name in the registry, or a path.

    A relative path in a file is relative to the `folder` of that file.
    """
    if is_reference(reference) or is_mlflow(reference):
        return resolve(reference, registry).path
    if is_remote(reference) or os.path.isabs(reference) or folder == ".":  # noqa: PTH117
        return reference
    return join(folder, reference)


def with_models(options: ScoreOptions) -> tuple[ScoreOptions, ModelsSpec | None]:
    """The options with the models that `--models` or `--model=NAME=DIR` name, with paths that can be opened.

    A run with one of them on all rows is a run of one model, whose spec is None.

    Raises:
        UsageError: for models that cannot be run, and options that are of a single model.
    """
    spec = options.models()
    if spec is None:
        return options, None
    folder = folder_of_file(options.several.models) if options.several.models else "."
    registry = options.model.registry
    root = registry_folder(registry)
    if is_remote(root) and any(map(_uses_registry, spec.models)):
        connect(options, registry=root)
    spec = spec.model_copy(update={"models": tuple(_resolved(entry, folder, registry) for entry in spec.models)})
    named = tuple(named for entry in spec.models for named in _paths(entry))
    options = replace(options, named=named)
    connect(options)
    if (entry := spec.single) is not None:
        hints = hints_of(entry, options.model)
        model = replace(
            options.model,
            model=str(entry.model),
            model_version=entry.version or options.model.model_version,
            accelerator=hints.accelerator,
            min_ram=hints.min_ram,
            device=entry.device or options.model.device,
            batch_size=batch_size_of(entry, options.model),
        )
        beam = options.beam
        if options.run.runner == dataflow.RUNNER:
            model, beam = dataflow.settle(model, beam)
        return replace(options, model=model, beam=beam, named=()), None
    of_one = {"preprocess": "model.yaml", "postprocess": "model.yaml", "model_version": "models.yaml, as version"}
    for name, where in of_one.items():
        if getattr(options.model, name):
            raise UsageError(f"--{name} is for one model, and there are {len(spec.models)}; write it into {where}")
    return options, spec


@dataclass(frozen=True)
class SeveralModels:
    """The models of a run, opened.

    Attributes:
        options: completed for the runner and the hints of the models.
        split: how rows are split among models, if they are.
        compare: the names of two models to compare, if any.
        settings: of each model.
    """

    options: ScoreOptions
    split: ModelSplit | None = None
    compare: tuple[str, ...] = ()
    settings: tuple[ModelSettings, ...] = ()


def open_models(options: ScoreOptions, spec: ModelsSpec) -> SeveralModels:
    """Opens the models of a run.

    Raises:
        UsageError: for a directory that is no model, and for hints that the runner would refuse.
    """
    directories = [_opened(entry, options.model) for entry in spec.models]
    for directory, _ in directories:
        directory.set_environment()
    registry = registry_folder(options.model.registry)

    from handlers.graph.plan import ByKey, ModelSettings
    from handlers.predict.placement import Placement

    found = []
    for entry, (directory, models) in zip(spec.models, directories, strict=True):
        model = options.model
        hints = hints_of(entry, model)
        mine = replace(model, accelerator=hints.accelerator, min_ram=hints.min_ram, device=entry.device or model.device)
        if options.run.runner == dataflow.RUNNER:
            mine, beam = dataflow.settle(mine, options.beam)
            options = replace(options, beam=beam)
        by_key = None
        if (keyed := entry.by_key) is not None:
            by_key = ByKey(keyed.column, keyed.folder, models, keyed.default, keyed.memory_bytes, model.trust, registry)
        placement = Placement(mine.device, model.precision, model.compile, model.model_copies)
        found.append(
            ModelSettings(
                entry.name,
                directory,
                entry.when,
                entry.inputs_from,
                entry.on_failure == "continue",
                placement,
                batch_size_of(entry, model),
                hints,
                by_key,
            )
        )
    return SeveralModels(_with_hints(options, found), spec.shares, spec.compare, tuple(found))


def hints_of(entry: ModelEntry, defaults: ModelOptions) -> ResourceHints:
    """The resource hints of a model: its own, else those of the command."""
    return entry.hints.hints if entry.hints else ResourceHints(defaults.accelerator, defaults.min_ram)


def batch_size_of(entry: ModelEntry, defaults: ModelOptions) -> int | None:
    """The rows of a micro-batch of a model: its own, else those of the command."""
    return defaults.batch_size if entry.batch_size is None else None if entry.batch_size == "auto" else entry.batch_size


def _opened(entry: ModelEntry, options: ModelOptions) -> tuple[ModelDir, dict[str, str]]:
    """The model of an entry; of `by_key` the default or else the first, and the paths of all by key, as they are now."""
    try:
        models = _listed(entry.by_key) if entry.by_key else {}
        path = (entry.by_key.default or next(iter(models.values()))) if entry.by_key else str(entry.model)
        return ModelDir(path, replace(options.trust, version=entry.version), options.registry), models
    except UsageError as error:
        raise UsageError(f'model "{entry.name}": {error}') from None


def _listed(by_key: ByKeySpec) -> dict[str, str]:
    """The paths of the models of `by_key`, by key; raises `UsageError` where there are none."""
    if not isinstance(by_key.models, str):
        return dict(by_key.models)
    try:
        names = subfolders(by_key.folder)
    except Exception as error:
        raise UsageError(f"{by_key.folder}, the folder of by_key, cannot be listed: {explain(error)}") from None
    if not names:
        raise UsageError(f"{by_key.folder}, the folder of by_key, has no folders of models")
    return {name: join(by_key.folder, name) for name in names}


def _paths(entry: ModelEntry) -> list[tuple[str, str]]:
    """The paths of a model, with names for messages."""
    if entry.by_key is None:
        return [(entry.name, str(entry.model))]
    default = [(f"{entry.name} (default)", entry.by_key.default)] if entry.by_key.default else []
    if isinstance(entry.by_key.models, str):
        return [(entry.name, entry.by_key.folder), *default]
    return [*((f"{entry.name} ({key})", path) for key, path in entry.by_key.models.items()), *default]


def _uses_registry(entry: ModelEntry) -> bool:
    return bool(entry.by_key and entry.by_key.names) or any(is_reference(path) for _, path in _paths(entry))


def _with_hints(options: ScoreOptions, models: Sequence[ModelSettings]) -> ScoreOptions:
    """`options` with the first hints of any model, for the warning about a runner that ignores them."""
    accelerators = [each.hints.accelerator for each in models if each.hints.accelerator]
    rams = [each.hints.min_ram for each in models if each.hints.min_ram]
    model = replace(options.model, accelerator=next(iter(accelerators), None), min_ram=next(iter(rams), None))
    return replace(options, model=model)


def _resolved(entry: ModelEntry, folder: str, registry: str | None) -> ModelEntry:
    by_key = entry.by_key
    if by_key is not None:
        try:
            if by_key.names is not None:
                models: str | dict[str, str] = _in_registry(by_key, registry)
            elif isinstance(by_key.models, str):
                models = resolve_model(by_key.models, folder, registry)
            else:
                models = {key: resolve_model(path, folder, registry) for key, path in by_key.models.items()}
            default = by_key.default and resolve_model(by_key.default, folder, registry)
        except UsageError as error:
            raise UsageError(f'model "{entry.name}": {error}') from None
        return entry.model_copy(update={"by_key": by_key.model_copy(update={"models": models, "default": default})})
    return entry.model_copy(update={"model": resolve_model(str(entry.model), folder, registry)})


def _in_registry(by_key: ByKeySpec, registry: str | None) -> dict[str, str]:
    """The paths of the versions that the names in the registry stand for now, by key; raises `UsageError` where there are none.

    A model that has not got the version or alias is left out.
    """
    assert by_key.names is not None  # noqa: S101
    root = registry_folder(registry)
    if not root or is_mlflow(root):
        raise UsageError(
            f'by_key takes "{by_key.models}" from a registry that is a folder; name it with --registry=DIR or the '
            f"environment variable {ENVIRONMENT}"
        )
    before, after, wanted = by_key.names
    found = {}
    for name, versions in all_versions(root).items():
        if name.startswith(before) and name.endswith(after) and len(name) > len(before) + len(after):
            with suppress(NoVersionError):
                key = name[len(before) : len(name) - len(after)]
                found[key] = folder_of(root, name, choose_version(root, name, wanted, versions))
    if not found:
        raise UsageError(f'registry {root} has no model "{by_key.models}"')
    return found
