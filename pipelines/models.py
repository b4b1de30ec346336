"""`python -m pipelines.models`: a registry of models: list, show, push, promote, rollback.

The registry itself is in `handlers.model.registry`, which reads it, and `transforms.registry`, which writes it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from handlers.errors import TorchbeamError, UsageError
from handlers.model import registry
from handlers.model.stores import shared_s3
from handlers.paths import is_mlflow, scheme_of
from handlers.redact import redact
from pipelines.command import process
from pipelines.command.errors import FAILED, FINISHED
from pipelines.command.options import IN_PROCESS, Command, TrustedModel, flag, option, parser, pick
from pipelines.command.values import path

if TYPE_CHECKING:
    from handlers.model.directory import ModelDir
    from transforms.registry.registry import ModelRegistry, RegisteredModel

PROG = "torchbeam models"
_EXIT_CODES = "0 done, 1 the registry is damaged, cannot be written or was changed at the same time, 2 wrong usage, 130 interrupted"
_NAME = "name of the model in the registry"
_ALIAS = "alias, such as champion or challenger"


@dataclass(frozen=True, kw_only=True)
class RegistryOptions:
    """The registry."""

    TITLE = "models"

    registry: str | None = option(
        "folder of the registry, local, gs:// or s3:// (default: the environment variable TORCHBEAM_REGISTRY)",
        None,
        parse=path,
        metavar="DIR",
    )
    verbose: bool = flag("show the tracebacks of errors")


@dataclass(frozen=True, kw_only=True)
class ListOptions(RegistryOptions):
    """The options of `list`."""

    json: bool = flag("write JSON")


@dataclass(frozen=True, kw_only=True)
class ModelOfRegistry(TrustedModel, RegistryOptions):
    """A version in the registry, and how far it is trusted."""

    TITLE = "models"

    model: str = option(
        "version in the registry, as credit@4, credit@latest or credit@challenger; the name alone is the latest",
        parse=registry.check_reference,
        metavar="NAME@VERSION",
    )


@dataclass(frozen=True, kw_only=True)
class ShowOptions(ModelOfRegistry):
    """The options of `show`."""

    json: bool = flag("write JSON")


@dataclass(frozen=True, kw_only=True)
class PushOptions(TrustedModel, RegistryOptions):
    """The options of `push`."""

    TITLE = "models"

    model: str = option(
        "model directory to copy, local, gs:// or s3://; or a version in the registry, as credit@3", parse=path
    )
    name: str = option(_NAME, parse=registry.check_name)
    registry: str | None = option(
        "folder of the registry, local, gs:// or s3:// (default: the environment variable TORCHBEAM_REGISTRY); or "
        "models:/ for MLflow's, at MLFLOW_TRACKING_URI",
        None,
        parse=path,
        metavar="DIR",
    )


@dataclass(frozen=True, kw_only=True)
class PromoteOptions(ModelOfRegistry):
    """The options of `promote`."""

    alias: str = option(_ALIAS, parse=registry.check_alias)


@dataclass(frozen=True, kw_only=True)
class RollbackOptions(RegistryOptions):
    """The options of `rollback`."""

    name: str = option(_NAME, parse=registry.check_name)
    alias: str = option(_ALIAS, parse=registry.check_alias)


@dataclass(frozen=True)
class _Given:
    """The options of an action; `beam` are those of Beam, such as `--s3_endpoint_url`."""

    options: Any
    beam: tuple[str, ...]

    @property
    def verbose(self) -> bool:
        return bool(self.options.verbose)


@dataclass(frozen=True)
class _Action:
    what: str
    usage: str
    kind: type[RegistryOptions]
    run: Callable[[Any], int | None]  # gives the exit code, if it may be another than 0


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: {PROG} ACTION [options]\n\nactions:")
        for name, action in ACTIONS.items():
            print(f"  {name:12}{action.what[0].lower()}{action.what[1:].rstrip('.')}")
        print(f"\n{PROG} ACTION --help lists the options of an action.")
        return 0 if arguments else 2
    if arguments[0] not in ACTIONS:
        print(f'{PROG}: unknown action "{redact(arguments[0])}"; use one of: {", ".join(ACTIONS)}', file=sys.stderr)
        return 2
    action = ACTIONS[arguments[0]]
    command = Command(
        f"{PROG} {arguments[0]}",
        action.what,
        action.usage,
        _EXIT_CODES,
        interrupted="nothing was changed",
    )

    def parse(argv: list[str], command: Command) -> _Given:
        if argv and not argv[0].startswith("-"):
            raise UsageError(f'unexpected argument "{argv[0]}"; write {action.usage}')
        values, others = parser(command, (action.kind,)).parse_known_args(argv)
        return _Given(pick(action.kind, values), tuple(others))

    def run(given: _Given) -> int:
        with shared_s3():
            _connect(given)
            try:
                return action.run(given.options) or FINISHED
            except OSError as error:
                raise TorchbeamError(f"the registry cannot be used: {error}") from error

    return process.execute(command, arguments[1:], parse, run)


def _connect(given: _Given) -> None:
    """Passes Beam's options to the object stores and checks that they respond."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in `score`
    options = given.options
    paths = {"registry": registry.registry_folder(options.registry), "model": getattr(options, "model", "")}
    remote = {name: found for name, found in paths.items() if scheme_of(found) is not None}
    if not remote and not given.beam:
        return
    from handlers.model import stores
    from pipelines import runners

    stores.connect(remote, runners.pipeline_options(IN_PROCESS[0], given.beam, (type(options),)))


def _list(options: ListOptions) -> int:
    found = _registry(options).models()
    damaged = [model.error for model in found if model.error]
    for line in damaged:
        print(f"{PROG} list: error: {redact(line)}", file=sys.stderr)
    code = FAILED if damaged else FINISHED
    if options.json:
        print(json.dumps([_as_json(model) for model in found], indent=2))
        return code
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title, justify in (("model", "left"), ("versions", "right"), ("latest", "right"), ("aliases", "left")):
        table.add_column(title, justify=justify)  # type: ignore[arg-type]
    for model in found:
        aliases = ", ".join(f"{alias}: {version}" for alias, version in model.aliases.items())
        shown = "(damaged)" if model.error else aliases
        table.add_row(model.name, str(len(model.versions)), str(model.versions[-1]), shown)
    Console(highlight=False).print(table)
    return code


def _show(options: ShowOptions) -> None:
    from pipelines.describe import lines_of, summary_of

    models = _registry(options)
    model = models.open(options.model, options.trust)
    name, _, version = model.registered.rpartition("@")
    recorded = bool(registry.version_at(models.folder, name, int(version)).digest)
    about = next(each for each in models.models() if each.name == name)
    if about.error:
        raise UsageError(about.error)
    found = summary_of(model) | {"path": model.path, "sha256": model.digest, "as_pushed": True if recorded else None}
    if options.json:
        print(json.dumps(found | {"model": _as_json(about)}, indent=2, ensure_ascii=False))
        return
    lines = [
        ("path", model.path),
        ("files", "as they were pushed" if recorded else "not recorded, since this version was not made by push"),
        ("versions", ", ".join(map(str, about.versions))),
    ]
    for alias, number in about.aliases.items():
        before = ", ".join(map(str, about.previous[alias]))
        lines.append((f"alias {alias}", f"{number}{f' (before: {before})' if before else ''}"))
    width = max(len(title) for title, _ in lines) + 2
    print("\n".join([*lines_of(found), "", *(f"{title:{width}}{text}" for title, text in lines)]))


def _push(options: PushOptions) -> None:
    folder = registry.registry_folder(options.registry)
    if is_mlflow(folder):
        from handlers.model import mlflow_registry

        if folder != registry.MLFLOW:
            raise UsageError(
                f"--registry {options.registry} names a model; write --registry=models:/ --name={options.name}"
            )
        model = _opened(replace(options, registry=None))
        print(mlflow_registry.push(model.local(), options.name, model.digest))
        return
    print(_registry(options).push(_opened(options), options.name, _tell))


def _tell(line: str) -> None:
    print(f"{PROG} push: {redact(line)}", file=sys.stderr)


def _promote(options: PromoteOptions) -> None:
    done = _registry(options).promote(options.model, options.alias, options.trust)
    print(f"{done.partition('@')[0]}@{options.alias} is {done}")


def _rollback(options: RollbackOptions) -> None:
    done = _registry(options).rollback(options.name, options.alias)
    print(f"{options.name}@{options.alias} is {done}")


def _registry(options: RegistryOptions) -> ModelRegistry:
    from transforms.registry.registry import ModelRegistry

    if not registry.registry_folder(options.registry):
        raise UsageError(f"name the registry with --registry=DIR or the environment variable {registry.ENVIRONMENT}")
    return ModelRegistry(options.registry)


def _opened(options: PushOptions) -> ModelDir:
    from handlers.model.directory import ModelDir

    return ModelDir(options.model, options.trust, options.registry)


def _as_json(model: RegisteredModel) -> Mapping[str, Any]:
    return {
        "name": model.name,
        "versions": list(model.versions),
        "latest": model.versions[-1],
        "aliases": model.aliases,
        "previous": {alias: list(versions) for alias, versions in model.previous.items()},
        **({"error": model.error} if model.error else {}),
    }


ACTIONS = {
    "list": _Action("List the models, their versions and aliases.", "[--registry=DIR] [--json]", ListOptions, _list),
    "show": _Action(
        "Describe a version, and check that its files are as they were pushed.",
        "--model=NAME@VERSION [--registry=DIR]",
        ShowOptions,
        _show,
    ),
    "push": _Action(
        "Copy a model directory to the registry as the next version, and print NAME@VERSION.",
        "--model=DIR --name=NAME [--registry=DIR]",
        PushOptions,
        _push,
    ),
    "promote": _Action(
        "Point an alias to a version.",
        "--model=NAME@VERSION --alias=ALIAS [--registry=DIR]",
        PromoteOptions,
        _promote,
    ),
    "rollback": _Action(
        "Point an alias to the version before its last promotion.",
        "--name=NAME --alias=ALIAS [--registry=DIR]",
        RollbackOptions,
        _rollback,
    ),
}


if __name__ == "__main__":
    process.run(main, PROG)
