"""A command as the whole of a process: signals, streams that are gone, and its end."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

INTERRUPTED = 130


def run(main: Callable[[], int]) -> NoReturn:
    """Runs a command and ends the process with its exit code."""
    # A scheduler that ends the job cleans up as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code = main()
    except SystemExit as end:  # --help
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except OSError as error:  # of stdout, where its reader has left or its disk is full
        with suppress(OSError, ValueError):
            print(f"the output of this command cannot be written: {error.strerror}", file=sys.stderr)
        code = 1
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    # Not sys.exit: threads of a runner that was interrupted or failed, or of libraries that were asked and did not
    # answer, would keep the process alive.
    os._exit(code)
