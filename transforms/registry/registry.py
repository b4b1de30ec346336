"""`ModelRegistry`: a folder of model directories by name and version, with aliases that are moved atomically."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from handlers.errors import TorchbeamError, UsageError
from handlers.model import registry
from handlers.model.directory import ModelDir
from handlers.model.registry import ALIASES, Alias
from handlers.model.stores import explain, prepare, shared_s3
from handlers.model.trust import Trust
from handlers.paths import is_mlflow, is_remote

if TYPE_CHECKING:
    from transforms.registry.row_predictor import RowPredictor

T = TypeVar("T")

_log = logging.getLogger(__name__)

_KEPT = 100  # versions that an alias remembers


@dataclass(frozen=True)
class RegisteredModel:
    """A model of a registry.

    Attributes:
        name: its name.
        versions: the numbers of its versions, in ascending order; the last one is `latest`.
        aliases: from each alias to its version.
        previous: from each alias to the versions before, the last one first.
        error: why the aliases cannot be read, if their file is damaged; else empty.
    """

    name: str
    versions: tuple[int, ...]
    aliases: dict[str, int]
    previous: dict[str, tuple[int, ...]]
    error: str = ""


class ModelRegistry:
    """A registry of models: the folder `models/NAME/VERSION/`, local or in an object store. Needs no server.

    Names are `NAME@VERSION`, `NAME@ALIAS` or `NAME@latest`; `NAME` alone is its latest version. A version never changes;
    an alias such as `champion` points to one version at a time.

    Args:
        folder: local, `gs://…` or `s3://…`; TORCHBEAM_REGISTRY by default. It may be missing until the first push.

    Raises:
        UsageError: without a folder.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        found = registry.registry_folder(folder)
        if not found:
            raise UsageError(f"name the folder of the registry, or set {registry.ENVIRONMENT}")
        if is_mlflow(found):
            raise UsageError(f"{found} is MLflow's registry, which only `models push` writes; use MLflow for the rest")
        self.folder = found

    def __repr__(self) -> str:
        return f"ModelRegistry({self.folder!r})"

    def models(self) -> list[RegisteredModel]:
        """All models that have a version, by name; one whose aliases cannot be read has an `error`."""
        found = []
        for name, versions in registry.all_versions(self.folder).items():
            aliases, reason = {}, ""
            try:
                aliases = registry.read_aliases(self.folder, name)
            except UsageError as error:
                reason = str(error)
            found.append(
                RegisteredModel(
                    name,
                    tuple(versions),
                    {alias: each.version for alias, each in aliases.items()},
                    {alias: each.previous for alias, each in aliases.items()},
                    reason,
                )
            )
        return found

    def open(self, model: str, trust: Trust | None = None) -> ModelDir:
        """Opens a version, and checks that its files are as they were pushed.

        Args:
            model: `NAME`, `NAME@VERSION`, `NAME@ALIAS` or `NAME@latest`.
            trust: what it may set and run.

        Raises:
            UsageError: where there is none, or it was changed.
        """
        name, version = self._find(model)
        return ModelDir(registry.folder_of(self.folder, name, version), trust, self.folder)

    @shared_s3()
    def push(
        self, model: ModelDir | str | os.PathLike[str], name: str, tell: Callable[[str], None] | None = None
    ) -> str:
        """Copies a model directory to the registry as the next version of `name`; gives `NAME@VERSION`.

        The version is complete when it is seen. Of two pushes at once each gets a number of its own. On a local disk it first
        removes what pushes left that were killed more than an hour ago.

        Args:
            model: the model directory, or its path.
            name: of the model in the registry.
            tell: called with a line for everything that is removed; it is logged by default.

        Raises:
            UsageError: for a wrong name, and a model that is no valid directory.
            TorchbeamError: where the registry cannot be written.
        """
        from transforms.registry.push import push

        name = _checked(registry.check_name, name, "name")
        if is_remote(self.folder):
            prepare()
        opened = model if isinstance(model, ModelDir) else ModelDir(model, registry=self.folder)
        return f"{name}@{push(opened, self.folder, name, tell or _log.warning)}"

    def promote(self, model: str, alias: str, trust: Trust | None = None) -> str:
        """Points `alias` to a version; gives `NAME@VERSION`.

        Args:
            model: the version, as for `open`.
            alias: such as `champion`; made where it is missing.
            trust: as for `open`.

        Raises:
            UsageError: where there is no such version, or its files are not as they were pushed.
            TorchbeamError: where another process moved the alias at the same time; then nothing has changed.
        """
        alias = _checked(registry.check_alias, alias, "alias")
        opened = self.open(model, trust)
        name, version = _parts(opened.registered)

        def promoted(before: Alias | None) -> Alias:
            if before is None:
                return Alias(version)
            if before.version == version:
                return before
            return Alias(version, (before.version, *before.previous)[:_KEPT])

        return f"{name}@{self._move(name, alias, promoted).version}"

    def rollback(self, name: str, alias: str, trust: Trust | None = None) -> str:
        """Points `alias` to the version before its last promotion; gives `NAME@VERSION`.

        Raises:
            UsageError: where there is no such alias or no version before, or it is not as it was pushed.
            TorchbeamError: where another process moved the alias at the same time; then nothing has changed.
        """
        name, alias = _checked(registry.check_name, name, "name"), _checked(registry.check_alias, alias, "alias")
        registry.find_version(self.folder, name, alias)  # says which aliases there are

        def rolled_back(before: Alias | None) -> Alias:
            if before is None or not before.previous:
                raise UsageError(f"{name}@{alias} has no version before; promote another one")
            self.open(f"{name}@{before.previous[0]}", trust)
            return Alias(before.previous[0], before.previous[1:])

        return f"{name}@{self._move(name, alias, rolled_back).version}"

    def bring_up(
        self,
        task: str,
        *,
        device: str = "auto",
        batch_size: int | None = None,
        precision: str = "float32",
        trust: Trust | None = None,
    ) -> RowPredictor:
        """Loads a version into this process, to predict for rows in memory.

        Args:
            task: the model, as for `open`.
            device: auto, cpu, cuda or cuda:N.
            batch_size: rows of a call of the model; chosen by the bytes of a row by default.
            precision: float32, or bfloat16 or float16 by autocast.
            trust: as for `open`.

        Raises:
            UsageError: where there is no such version, it cannot be loaded, or there is no such device.
        """
        model = self.open(task, trust)
        model.set_environment()
        from handlers.predict.placement import Placement
        from transforms.registry.row_predictor import RowPredictor

        return RowPredictor(model, Placement(device, precision), batch_size)  # type: ignore[arg-type]

    def _find(self, model: str) -> tuple[str, int]:
        name, wanted = _checked(registry.split_reference, model, "model")
        return name, registry.find_version(self.folder, name, wanted)

    @shared_s3()
    def _move(self, name: str, alias: str, change: Callable[[Alias | None], Alias]) -> Alias:
        """Moves an alias. Of changes of one alias at once one succeeds; those of other aliases do not matter."""
        from transforms.conditional_files import ChangedError, conditional_file

        path = f"{self.folder}/{name}/{ALIASES}"
        if is_remote(path):
            prepare()
        try:
            file = conditional_file(path)
            seen = file.read()
            aliases = registry.parse_aliases(seen.text if seen else None, path)
            before = aliases.get(alias)
            after = change(before)
            while after != before:
                try:
                    file.write(registry.render_aliases(aliases | {alias: after}), seen)
                    break
                except ChangedError:
                    seen = file.read()
                    aliases = registry.parse_aliases(seen.text if seen else None, path)
                    if aliases.get(alias) != before:
                        now = aliases.get(alias)
                        raise TorchbeamError(
                            f"{name}@{alias} was changed by another process at the same time, to "
                            f"{f'version {now.version}' if now else 'nothing'}; this one changed nothing"
                        ) from None
        except TorchbeamError:
            raise
        except Exception as error:
            raise TorchbeamError(f"{path} cannot be written: {explain(error)}") from error
        return after


def _parts(registered: str) -> tuple[str, int]:
    name, _, version = registered.rpartition("@")
    return name, int(version)


def _checked(check: Callable[[str], T], text: str, what: str) -> T:
    try:
        return check(text)
    except ValueError as error:
        raise UsageError(f"{what} {error}") from None
