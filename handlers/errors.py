"""The errors that users see. Each message is one line: what, where, and what to do instead."""

from __future__ import annotations

import re

from handlers.redact import redact

_kinds: dict[str, type[TorchbeamError]] = {}


class TorchbeamError(Exception):
    """Base of the errors of this package.

    A subclass is made from its message alone; other arguments have defaults, so that `error_in` can recreate it.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        _kinds[f"{cls.__module__}.{cls.__qualname__}"] = cls


class UsageError(TorchbeamError):
    """Wrong usage: an option, a path, a model directory. Ends a command with exit code 2."""


class BrokenModelError(TorchbeamError):
    """The model fails on every row that it is given. Ends a command with exit code 3."""


class TrainingError(TorchbeamError):
    """A training gives no usable model: its loss is not finite, or too many rows are dead letters.

    Ends a command with exit code 3.
    """


class BrokenFileError(TorchbeamError):
    """An input file could not be read, or not to its end.

    Rows that were read before the error have been emitted; `rows` is their number.
    """

    def __init__(self, message: str, rows: int = 0) -> None:
        super().__init__(message)
        self.rows = rows

    def __reduce__(self) -> tuple[type[BrokenFileError], tuple[str, int]]:
        return type(self), (str(self), self.rows)


class ServiceError(TorchbeamError):
    """A service that rows come from or go to fails, through no fault of a row: the runner may retry."""


class StreamError(TorchbeamError):
    """A broker does not take or give messages; what was not delivered is read again after a restart."""


class DeviceLostError(TorchbeamError):
    """This process can no longer use the accelerator; only a new process can continue."""


class AccountingError(TorchbeamError):
    """The rows that went in are not the rows that came out."""


class PublishError(TorchbeamError):
    """The outputs of a run could not be given their final names."""


class RowsFailedError(TorchbeamError):
    """Rows in memory could not be scored, and the caller wants all or none."""


def error_in(trace: str) -> TorchbeamError | None:
    """The error of this package that a traceback ends in, with its type and message; None if there is no such error.

    Runners report an exception of a worker as the text of its traceback. There Python names an error by its class,
    module and all, and only classes that are known here by that name are taken. An error raised while another was
    handled replaces it; one that it caused does not.
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
