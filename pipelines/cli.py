"""The console script: `torchbeam NAME …` is `python -m pipelines.NAME …`."""

from __future__ import annotations

import importlib
import sys
from typing import NoReturn

from handlers.redact import redact
from pipelines.command import process

COMMANDS = {
    "prepare": "clean, sample and split rows for training",
    "score": "score a table with a PyTorch model",
    "stream": "score the messages of a stream until it is ended",
    "train": "train a model on a table and write its model directory",
    "evaluate": "compare labels with predictions: metrics and a report",
    "run": "prepare, train, score and evaluate from one file",
    "doctor": "check for problems before a run",
    "describe": "describe a model directory",
    "models": "list, show, push, promote and roll back models of a registry",
    "init": "make a model directory from a Hugging Face directory",
}


def main(argv: list[str] | None = None) -> int:
    """Runs a command and returns its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: torchbeam COMMAND [options]\n\ncommands:")
        for name, what in COMMANDS.items():
            print(f"  {name:12}{what}")
        print("\ntorchbeam COMMAND --help lists the options of a command.")
        return 0 if arguments else 2
    if arguments[0] not in COMMANDS:
        print(
            f'torchbeam: unknown command "{redact(arguments[0])}"; use one of: {", ".join(COMMANDS)}',
            file=sys.stderr,
        )
        return 2
    code: int = importlib.import_module(f"pipelines.{arguments[0]}").main(arguments[1:])
    return code


def start() -> NoReturn:
    """The console script."""
    process.run(main, " ".join(["torchbeam", *sys.argv[1:2]]))
