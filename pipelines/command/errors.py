"""Errors of a command: the cause inside a runner's error, the line to print, the exit code."""

from __future__ import annotations

import re

from handlers.errors import BrokenModelError, TorchbeamError, TrainingError, UsageError, error_in, one_line

FINISHED, FAILED, WRONG_USAGE, NOT_SCORED, INTERRUPTED = 0, 1, 2, 3, 130

_EXIT_CODES: dict[type[BaseException], int] = {
    UsageError: WRONG_USAGE,
    BrokenModelError: NOT_SCORED,
    TrainingError: NOT_SCORED,
}
_LINE = 1000  # characters
_STEP = re.compile(r" \[while running .*$", re.DOTALL)  # what Beam adds to a message
_OF_OTHERS = re.compile(r"(?:[a-z_][\w.]*\.)?([A-Z]\w*(?:Error|Exception|Interrupt|Exit|Warning)): (.+)")


def exit_code(error: BaseException) -> int:
    """The exit code of a command that ends with `error`."""
    return next((code for kind, code in _EXIT_CODES.items() if isinstance(error, kind)), FAILED)


def line_of(error: BaseException) -> str:
    """The line to print for `error`; for an unexpected error it also names --verbose."""
    if isinstance(error, TorchbeamError | OSError):
        return one_line(error, _LINE)
    return one_line(TorchbeamError(f"{type(error).__name__}: {error}; --verbose shows where"), _LINE)


def cause_of(error: BaseException) -> BaseException:
    """The cause of the error that a runner raised.

    An error of this package keeps its type, whether it was raised in this process or is in a traceback that the runner
    put in the message of its error. Any other error becomes a `TorchbeamError` with its type and message.
    """
    if isinstance(error, TorchbeamError):  # of a worker in this process
        error.args = (_STEP.sub("", str(error)), *error.args[1:])
        return error
    if not isinstance(error, Exception):
        return error
    text = str(error)
    lines = [line.strip() for line in text.splitlines()]
    if any(line.startswith(("KeyboardInterrupt", "RuntimeError: KeyboardInterrupt")) for line in lines):
        return KeyboardInterrupt()
    if (ours := error_in(text)) is not None:
        return cause_of(ours)
    for line in reversed(lines):
        if match := _OF_OTHERS.match(line):
            return TorchbeamError(f"the run failed: {match.group(1)}: {_STEP.sub('', match.group(2))}")
    return TorchbeamError(f"the run failed: {type(error).__name__}: {one_line(error)}")
