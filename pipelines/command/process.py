"""Runs a command as a process: options, errors and exit codes, signals, closed streams, and its end.

A command is `main(argv) = execute(COMMAND, argv, parse, run)`, and `run(main)` for the process.

The command runs in a child of this process, which waits for it. So the parent can report an end that no Python code
sees: a model that calls `os._exit`, a crash in native code, `kill -9` when memory runs out.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn, Protocol, TypeVar

from handlers.isolation import contained
from handlers.private import clean_up
from handlers.redact import redact, remember
from pipelines.command.errors import FAILED, INTERRUPTED, exit_code, line_of
from pipelines.command.options import Command
from pipelines.command.supervisor import die_with_parent

# Each interrupts the command, which then cleans up: Ctrl-C, a scheduler that ends the job, a closed terminal.
_ENDING = (signal.SIGINT, signal.SIGTERM, *((signal.SIGHUP,) if hasattr(signal, "SIGHUP") else ()))
# Ctrl-C reaches parent and child, and the parent forwards its signals. A second signal this soon is the same one.
_SAME_SECONDS = 1.0
_CLEAR_LINE = "\r\x1b[K\x1b[?25h"  # of a progress bar, which hides the cursor


class Options(Protocol):
    """What the options of every command have."""

    @property
    def verbose(self) -> bool:
        """Whether the logs of Beam and the tracebacks of errors are shown."""


OptionsT = TypeVar("OptionsT", bound=Options)


def execute(
    command: Command,
    argv: list[str] | None,
    parse: Callable[[list[str], Command], OptionsT],
    run: Callable[[OptionsT], int],
) -> int:
    """Runs a command in this process and returns its exit code; every error is one line on stderr.

    Args:
        command: its description.
        argv: the arguments; None for the arguments of the process.
        parse: parses the options; raises `UsageError`, and SystemExit for `--help`.
        run: does the work and returns the exit code.
    """
    verbose = False
    try:
        arguments = sys.argv[1:] if argv is None else argv
        remember(arguments)
        options = parse(arguments, command)
        verbose = options.verbose
        set_up_logging(verbose)
        return contained(run, options)
    except KeyboardInterrupt as end:
        said = end.args[0] if end.args else command.interrupted
        print(f"{command.prog}: interrupted{said and f'; {redact(str(said))}'}", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if verbose:
            logging.getLogger(command.prog).error("", exc_info=error)
        print(f"{command.prog}: error: {line_of(error)}", file=sys.stderr)
        return exit_code(error)


@contextmanager
def imports_without_collection() -> Iterator[Callable[[], None]]:
    """Keeps Python's garbage collector off until the yielded function is called, after the imports, or until the end.

    Importing Beam and torch makes a million objects that stay. The collector would walk over them again and again: a fifth
    of the start-up, and later in the run. They are taken out of its sight once they are all there.
    """

    def resume() -> None:
        gc.freeze()
        gc.enable()

    gc.disable()
    try:
        yield resume
    finally:
        gc.enable()


class _Redacted(logging.Formatter):
    """Masks secrets in the logs of Beam, Java and other libraries, and in tracebacks."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def set_up_logging(verbose: bool) -> None:
    """Shows all logs if `verbose`, otherwise only errors of other libraries than Beam."""
    shown = logging.StreamHandler()
    shown.setFormatter(_Redacted("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO if verbose else logging.ERROR, handlers=[shown])
    if not verbose:
        # Every layer of the runner logs the traceback of a failed bundle, and a refused job logs the response of the
        # service as critical; the command reports the same in one line.
        logging.getLogger("apache_beam").setLevel(logging.CRITICAL + 1)
        # Its S3 client logs tracebacks, too, through the root logger.
        logging.getLogger().addFilter(lambda record: "apache_beam" not in record.pathname)


def run(main: Callable[[], int], prog: str = "torchbeam") -> NoReturn:
    """Runs a command in a child of this process and ends this one with its exit code.

    Args:
        main: the command; returns its exit code. It runs in a fork, so nothing that starts threads may be imported yet.
        prog: the name of the command, for the error line if the child ends without an exit code.
    """
    if not hasattr(os, "fork"):
        _interrupt_on_signals()
        _end(_exit_code(main))
    _flush()
    parent = os.getpid()
    done, done_in_child = os.pipe()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    child = os.fork()
    if child == 0:
        die_with_parent(parent)
        _interrupt_on_signals()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        _end(_exit_code(main), done_in_child)
    for number in _ENDING:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, _: _forward(number, child))
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.set_blocking(done, False)
    with suppress(BlockingIOError):
        if os.read(done, 1):
            os._exit(status)
    if -status in _ENDING:
        os._exit(INTERRUPTED)
    with suppress(OSError, ValueError):
        clear = _CLEAR_LINE if sys.stderr.isatty() else ""
        print(f"{clear}{prog}: error: {_how_it_ended(status)}", file=sys.stderr, flush=True)
    os._exit(FAILED)


def _forward(number: int, child: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(child, number)


def _interrupt_on_signals() -> None:
    """Makes every ending signal raise KeyboardInterrupt, once; signals that are ignored (nohup) stay ignored."""
    last = -_SAME_SECONDS

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        nonlocal last
        if time.monotonic() - last > _SAME_SECONDS:
            last = time.monotonic()
            raise KeyboardInterrupt

    for number in _ENDING:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, interrupt)


def _how_it_ended(status: int) -> str:
    """The message about a child that ended early: `status` is its exit code, or a signal as a negative number."""
    what = "the process ended without finishing the run"
    if status >= 0:
        return (
            f"{what}: exit code {status}; the model, a function or a native library has ended the process "
            "(os._exit); let it raise an error instead"
        )
    try:
        name = signal.Signals(-status).name
    except ValueError:  # a real-time signal
        name = f"signal {-status}"
    if -status == signal.SIGKILL:
        return (
            f"{what}: killed by {name}, as the system does where memory runs out; see its log, and give the run more "
            "memory or a smaller --batch_size"
        )
    return f"{what}: ended by {name}; the model or a native library has crashed; set PYTHONFAULTHANDLER=1 to see where"


def _exit_code(main: Callable[[], int]) -> int:
    try:
        return main()
    except SystemExit as end:  # --help
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:  # of stdout: its reader has ended or its disk is full
        with suppress(OSError, ValueError):
            print(f"the output of this command cannot be written: {error.strerror}", file=sys.stderr)
        return FAILED


def _end(code: int, done: int | None = None) -> NoReturn:
    """Ends this process; a byte in the pipe `done` tells its parent that this was intended."""
    clean_up()
    _flush()
    if done is not None:
        with suppress(OSError):
            os.write(done, b"1")
    # Not sys.exit: threads of an interrupted runner, or of libraries that wait for a response, would keep the process
    # alive.
    os._exit(code)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
