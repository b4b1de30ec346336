"""The console script: `torchbeam NAME …` is `python -m pipelines.NAME …`."""

from __future__ import annotations

import difflib
import importlib
import sys
from typing import NoReturn

from handlers.redact import redact
from handlers.version import __version__
from pipelines.command import process

# In the order in which they are needed, as in the README.
COMMANDS = {
    "init": "make a model directory from a Hugging Face, scikit-learn, ONNX or XGBoost model",
    "prepare": "clean, sample and split rows for training",
    "train": "train a model on a table and write its model directory",
    "describe": "describe a model directory",
    "doctor": "check for problems before a run",
    "score": "score tables, texts or images with a model",
    "stream": "score the messages of a stream until it is ended",
    "evaluate": "compare labels with predictions: metrics and a report",
    "run": "prepare, train, score and evaluate from one file",
    "models": "list, show, push, promote and roll back models of a registry",
}


def main(argv: list[str] | None = None) -> int:
    """Runs a command and returns its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: torchbeam COMMAND [options]\n\ncommands:")
        for name, what in COMMANDS.items():
            print(f"  {name:12}{what}")
        print("\ntorchbeam COMMAND --help lists the options of a command; torchbeam --version prints the version.")
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"torchbeam {__version__}")
        return 0
    if arguments[0] not in COMMANDS:
        close = difflib.get_close_matches(arguments[0], COMMANDS, 1)
        hint = f'did you mean "{close[0]}"?' if close else f"use one of: {', '.join(COMMANDS)}"
        print(f'torchbeam: unknown command "{redact(arguments[0])}"; {hint}', file=sys.stderr)
        return 2
    code: int = importlib.import_module(f"pipelines.{arguments[0]}").main(arguments[1:])
    return code


def start() -> NoReturn:
    """The console script."""
    process.run(main, " ".join(["torchbeam", *sys.argv[1:2]]))
