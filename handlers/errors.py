"""The errors that people see. Each message is one line: the thing, its value, and the way out."""

from __future__ import annotations

import re

from handlers.redact import redact

_kinds: dict[str, type[TorchbeamError]] = {}


class TorchbeamError(Exception):
    """Base of the errors of this package.

    A subclass is made from its message alone; what else it takes has a default, so that `error_in` can make it anew.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        _kinds[f"{cls.__module__}.{cls.__qualname__}"] = cls


class UsageError(TorchbeamError):
    """Something that the user wrote is wrong: an option, a path, a model directory. Ends a command with exit code 2."""


class BrokenModelError(TorchbeamError):
    """The model fails on every row that it is given. Ends a command with exit code 3."""


class BrokenFileError(TorchbeamError):
    """An input file could not be read, or not to its end.

    Rows that were read before the break have been handed on; `rows` says how many.
    """

    def __init__(self, message: str, rows: int = 0) -> None:
        super().__init__(message)
        self.rows = rows

    def __reduce__(self) -> tuple[type[BrokenFileError], tuple[str, int]]:
        return type(self), (str(self), self.rows)


class ServiceError(TorchbeamError):
    """A service that rows come from or go to fails, which is no fault of any row: the runner may try again."""


class DeviceLostError(TorchbeamError):
    """The accelerator cannot be used any more by this process; only a fresh process can go on."""


class AccountingError(TorchbeamError):
    """The rows that went in are not the rows that came out."""


class PublishError(TorchbeamError):
    """The outputs of a run could not be given their final names."""


def error_in(trace: str) -> TorchbeamError | None:
    """The error of this package that a traceback tells of, with its type and message; None where there is none.

    Runners hand on what was raised in a worker as the text of its traceback. There Python names an error by its class,
    module and all, and only classes that are known here by that name are taken. What was raised while another error was
    handled takes its place; what an error was the cause of does not.
    """
    last = trace.rpartition("During handling of the above exception, another exception occurred:")[2]
    names = "|".join(re.escape(name) for name in (*_kinds, f"{__name__}.{TorchbeamError.__qualname__}"))
    found = re.findall(rf"^(?:.*[: ])?({names}): (.+)$", last, re.MULTILINE)
    if not found:
        return None
    name, message = found[-1]
    return _kinds.get(name, TorchbeamError)(message.rstrip())


def one_line(error: BaseException, limit: int = 500) -> str:
    """The message of `error` on a single line of at most `limit` characters, all of which can be shown; no secrets."""
    text = str(error)
    if "Traceback of TorchScript" in text:  # the interpreter's, with what happened in its last line
        text = text.rstrip().rsplit("\n", 1)[-1]
    text = " ".join(redact(text).split()) or type(error).__name__
    text = "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
    return text if len(text) <= limit else text[: limit - 1] + "…"
