"""The modules in `code/` of model directories, each `code/` in its own namespace.

Two versions of one model have modules of the same names with other contents, and both may be loaded in one process. So
`credit/rows.py` in `code/` is imported as `handlers.model_code.c0123456789abcdef.credit.rows`, after the hash of that
`code/`. Inside of it nothing of this shows: `from credit.rows import clean` finds the module next to it, before anything
installed, and so do relative imports. What is imported must have the hash that was verified, and is compiled
from its source: bytecode next to it is ignored, and none is written.

Functions and classes of these modules are pickled by that name. A process can load them once it has opened, or
unpickled, the model directory.

Other code may import such a module under its plain name, if no other module has that name. Where two `code/` with
different contents have it, that is an error.
"""

from __future__ import annotations

import builtins
import functools
import hashlib
import importlib
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, FileFinder, ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from handlers.errors import UsageError, one_line

__path__: list[str] = []  # for Python's own import, a package whose modules are found by `_Own`

_PREFIX = f"{__name__}."
_DIGITS = 16

_lock = threading.RLock()
_codes: dict[str, ModelCode] = {}
_expected: dict[str, Callable[[], object]] = {}


@dataclass(frozen=True)
class ModelCode:
    """The modules of one `code/`.

    Attributes:
        namespace: the package that they are in; empty without modules.
        folder: where they are.
        files: SHA-256 of every file, by its path in `code/`.
    """

    namespace: str = ""
    folder: Path = field(default_factory=Path)
    files: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def add(digest: str, folder: Path, files: Mapping[str, str]) -> ModelCode:
        """Makes the modules of a `code/` importable.

        Args:
            digest: of the files; the same modules may be added from several folders.
            folder: where they are.
            files: SHA-256 of every file, by its path in `folder`.
        """
        code = ModelCode(_namespace(digest), folder, files)
        with _lock:
            known = code.namespace in _codes
            _codes[code.namespace] = code
            _expected.pop(code.namespace, None)
            if not known:
                _forget_plain_names(code.top_names)
            importlib.invalidate_caches()
        return code

    @staticmethod
    def known(digest: str) -> ModelCode | None:
        """The `code/` of this digest, if it was added in this process."""
        return _codes.get(_namespace(digest))

    @staticmethod
    def expect(digest: str, add: Callable[[], object]) -> None:
        """Registers `add`, which is called on the first import from the `code/` of this digest."""
        with _lock:
            if _namespace(digest) not in _codes:
                _expected[_namespace(digest)] = add

    @functools.cached_property
    def top_names(self) -> frozenset[str]:
        """The names of the modules and packages at the top."""
        return frozenset(name.split("/")[0].split(".")[0] for name in self.files if _is_module(name))

    def full_name(self, module: str) -> str:
        """The name by which a module is imported: in this namespace where it is in `code/`, else as it is."""
        return f"{self.namespace}.{module}" if module.partition(".")[0] in self.top_names else module

    def read(self, path: str) -> bytes:
        """The contents of a file; raises ImportError where they are not those that were verified."""
        content = Path(path).read_bytes()
        name = Path(path).relative_to(self.folder).as_posix()
        if hashlib.sha256(content).hexdigest() != self.files.get(name):
            raise ImportError(f"{path} was changed after the model was opened, or is hidden", path=path)
        return content

    @functools.cached_property
    def builtins(self) -> dict[str, Any]:
        """Python's built-in names with an `__import__` that finds the modules of this `code/` first."""

        def import_(
            name: str, globals: Any = None, locals: Any = None, fromlist: Sequence[str] | None = (), level: int = 0
        ) -> ModuleType:
            own = name if level else self.full_name(name)
            if own == name or fromlist:
                return builtins.__import__(own, globals, locals, fromlist or (), level)
            importlib.import_module(own)
            return sys.modules[self.full_name(name.partition(".")[0])]

        return vars(builtins) | {"__import__": import_}


NO_CODE = ModelCode()


def import_function(name: str, what: str, code: ModelCode = NO_CODE) -> Any:
    """The object that `name` (`module:function` or `module:Class`) refers to.

    Args:
        name: of the module, in `code` or installed, and of the function in it.
        what: what it is, for messages (for example "preprocess").
        code: the modules of the model.

    Raises:
        UsageError: where it cannot be imported; names `what`.
    """
    module_name, _, attribute = name.partition(":")
    try:
        target: Any = importlib.import_module(code.full_name(module_name))
    except ModuleNotFoundError as error:
        hint = f'no module named "{plain_name(error.name)}"' if error.name else one_line(error)
        raise UsageError(
            f'{what} "{name}" cannot be imported: {hint}; put it in code/ of the model directory'
        ) from None
    except (Exception, SystemExit) as error:  # a script without a __main__ guard may exit
        raise UsageError(f'{what} "{name}" cannot be imported: {type(error).__name__}: {one_line(error)}') from None
    for part in attribute.split("."):
        if not hasattr(target, part):
            raise UsageError(f'{what} "{name}" cannot be imported: {module_name} has no "{attribute}"')
        target = getattr(target, part)
    if not callable(target):
        raise UsageError(f'{what} "{name}" is not a function or class')
    return target


def plain_name(module: str) -> str:
    """The name of a module as its author wrote it: without the namespace, where it is in one."""
    return module.removeprefix(_PREFIX).partition(".")[2] if module.startswith(_PREFIX) else module


def _namespace(digest: str) -> str:
    return f"{_PREFIX}c{digest[:_DIGITS]}"


def _is_module(name: str) -> bool:
    return name.endswith((".py", *EXTENSION_SUFFIXES))


class _Source(SourceFileLoader):
    def __init__(self, code: ModelCode, fullname: str, path: str) -> None:
        super().__init__(fullname, path)
        self._code = code

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self._code.read(path), path)

    def exec_module(self, module: ModuleType) -> None:
        vars(module)["__builtins__"] = self._code.builtins
        super().exec_module(module)


class _Extension(ExtensionFileLoader):
    def __init__(self, code: ModelCode, fullname: str, path: str) -> None:
        code.read(path)
        super().__init__(fullname, path)


class _Own(MetaPathFinder):
    """Finds the modules of all `code/` by their full names, and those below a plain name that refers to one."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith(_PREFIX):
            top, _, rest = fullname.partition(".")
            real = getattr(sys.modules.get(top), "__name__", top) if rest else top
            return _plain(fullname, f"{real}.{rest}") if real.startswith(_PREFIX) else None
        namespace, *parts = fullname.removeprefix(_PREFIX).split(".")
        code = _find(_PREFIX + namespace)
        if code is None:
            raise ModuleNotFoundError(
                f"{fullname} is code of a model that this process has not opened; open its ModelDir first",
                name=fullname,
            )
        folder = code.folder.joinpath(*parts[:-1])
        if not parts:
            spec = ModuleSpec(fullname, None, is_package=True)
            spec.submodule_search_locations = [str(folder)]
            return spec
        loaders = (functools.partial(_Extension, code), EXTENSION_SUFFIXES), (functools.partial(_Source, code), [".py"])
        return FileFinder(str(folder), *loaders).find_spec(fullname)  # type: ignore[arg-type]


class _Last(MetaPathFinder):
    """Finds, after all others, a module of a `code/` by its plain name."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if path is not None:
            return None
        found = [code for code in list(_codes.values()) if fullname in code.top_names]
        if len(found) > 1:
            raise ImportError(
                f'module "{fullname}" is in code/ of {len(found)} models in this process, with different contents '
                f"({', '.join(str(code.folder) for code in found)}); only modules in code/ can import it",
                name=fullname,
            )
        return _plain(fullname, found[0].full_name(fullname)) if found else None


class _Plain(Loader):
    """Gives the module that is there already, by its full name."""

    def __init__(self, real: str) -> None:
        self._real = real
        self._spec: ModuleSpec | None = None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(self._real)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # which Python has set to that of the plain name


def _plain(name: str, real: str) -> ModuleSpec:
    return ModuleSpec(name, _Plain(real))


def _find(namespace: str) -> ModelCode | None:
    with _lock:
        add = _expected.pop(namespace, None)
    if add is not None and namespace not in _codes:
        add()
    return _codes.get(namespace)


def _forget_plain_names(tops: frozenset[str]) -> None:
    """These names are no longer unique; forgets what they referred to."""
    for name, module in list(sys.modules.items()):
        mine = getattr(module, "__name__", "")
        if name.partition(".")[0] in tops and isinstance(mine, str) and mine.startswith(_PREFIX):
            del sys.modules[name]


sys.meta_path.insert(0, _Own())
sys.meta_path.append(_Last())
