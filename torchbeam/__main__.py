"""`python -m torchbeam`, and the console script `torchbeam`."""

from __future__ import annotations

import sys
from typing import NoReturn

from torchbeam.shadow import check_packages


def start() -> NoReturn:
    """Runs the command that the arguments name, and ends the process with its exit code."""
    try:
        check_packages()
    except ImportError as error:
        print(f"torchbeam: error: {error}", file=sys.stderr)
        sys.exit(2)
    from pipelines import cli

    cli.start()


if __name__ == "__main__":
    start()
