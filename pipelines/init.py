"""`python -m pipelines.init`: makes a model directory from a Hugging Face directory, or a file of another framework."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from handlers.errors import TorchbeamError, UsageError
from handlers.model.directory import MODEL_FILE, ModelDir
from handlers.model.formats.hub_config import is_hub_directory, with_defaults
from handlers.model.spec import spec_of
from handlers.predict.heads import TASKS
from pipelines.command import process
from pipelines.command.errors import FINISHED
from pipelines.command.options import Command, flag, option, parse_one
from pipelines.command.values import names, path

PROG = "torchbeam init"
_PICKLES = (".pkl", ".pickle", ".joblib", ".pt", ".pth", ".bin")
COMMAND = Command(
    prog=PROG,
    description="Make a model directory from a directory that save_pretrained or sentence-transformers wrote, or from a "
    "file of ONNX (.onnx), scikit-learn (.skops) or XGBoost (.ubj, .json).",
    usage="--from=DIR|FILE --output=DIR",
    exit_codes="0 written, 2 wrong usage, 130 interrupted",
    interrupted="",
    runs_beam=False,
)


@dataclass(frozen=True)
class InitOptions:
    """The source directory and the model directory to write."""

    TITLE = "init"

    source: str = option(
        "the directory (config.json, *.safetensors, tokenizer or image processor) or file", parse=path, flag="from"
    )
    output: str = option(
        "the model directory to write; may be the directory of --from, which then gets a model.yaml", parse=path
    )
    task: str | None = option("what the outputs mean (default: from the model)", None, choices=tuple(TASKS))
    name: str | None = option("name of the model (default: the name of --from)", None)
    columns: tuple[str, ...] = option("input columns, separated by commas (default: text or image)", (), parse=names)
    overwrite: bool = flag("replace an existing model.yaml")
    verbose: bool = flag("show the tracebacks of errors")


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return process.execute(COMMAND, argv, _parse, _run)


def _parse(argv: list[str], command: Command) -> InitOptions:
    return parse_one(InitOptions, argv, command)


def _run(options: InitOptions) -> int:
    try:
        model = make(options)
    except UsageError:
        raise
    except TorchbeamError as error:  # the directory cannot be used, so the command was given the wrong one
        raise UsageError(str(error)) from error
    print(f"{model.path}: {model.spec.name}, task {model.spec.task}, version {model.version}")
    print(f"score with it: torchbeam score --input=… --model={model.path} --output=…")
    return FINISHED


def make(options: InitOptions) -> ModelDir:
    """Writes the model directory.

    Raises:
        UsageError: if `source` is not such a directory or lacks what is needed, or `output` is in use.
    """
    source, target = Path(options.source), Path(options.output)
    if source.is_file():
        return _of_file(source, target, options)
    if not source.is_dir() or not is_hub_directory(source):
        raise UsageError(
            f"--from {source} is not a directory that save_pretrained or sentence-transformers wrote (no config.json)"
        )
    in_place = target.exists() and target.samefile(source)
    if (target / MODEL_FILE).exists() and not options.overwrite:
        raise UsageError(f"{target / MODEL_FILE} exists already; replace it with --overwrite")
    if target.exists() and not in_place and not (target / MODEL_FILE).exists() and any(target.iterdir()):
        raise UsageError(f"--output {target} is not empty and not a model directory; write to a new one")
    given: dict[str, Any] = {"format": "huggingface"}
    given |= {"name": options.name} if options.name else {}
    given |= {"task": options.task} if options.task else {}
    content = with_defaults(given, source)
    if options.columns:
        content["inputs"] = [{**each, "columns": list(options.columns)} for each in content["inputs"]]
    spec_of(content, str(target / MODEL_FILE))
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    if not in_place:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
            copy = Path(scratch) / "copy"
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns(".*", "__pycache__", MODEL_FILE))
            if target.exists():
                shutil.rmtree(target)
            copy.rename(target)
    (target / MODEL_FILE).write_text(text)
    return ModelDir(target)


def _of_file(source: Path, target: Path, options: InitOptions) -> ModelDir:
    """The model directory of a model that is one file of another framework."""
    if source.suffix in _PICKLES:
        raise UsageError(
            f"--from {source} may hold a pickle, which is never loaded; load it where it was written, and save the model "
            "with ModelDir.save"
        )
    if options.columns:
        raise UsageError("--columns is for Hugging Face directories; the inputs of other models are in model.yaml")
    if (target / MODEL_FILE).exists() and not options.overwrite:
        raise UsageError(f"{target / MODEL_FILE} exists already; replace it with --overwrite")
    return ModelDir.save(source, target, name=options.name or source.stem, task=options.task)


if __name__ == "__main__":
    process.run(main, PROG)
