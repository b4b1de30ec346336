"""`python -m pipelines.init`: writes the `model.yaml` of a directory that tells what it is, such as one of Hugging Face's."""

from __future__ import annotations

import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from handlers.errors import TorchbeamError, UsageError, one_line
from handlers.model.directory import MODEL_FILE, ModelDir
from handlers.model.formats.hub_config import is_hub_directory, with_defaults
from handlers.model.spec import spec_of
from handlers.predict.heads import TASKS
from pipelines.command import process
from pipelines.command.options import Command, flag, names, option, parser, path, pick

PROG = "torchbeam init"
COMMAND = Command(
    prog=PROG,
    description="Make a model directory of a directory that save_pretrained or sentence-transformers wrote.",
    usage="--from=DIR --output=DIR",
    exit_codes="0 written, 2 wrong usage",
)


@dataclass(frozen=True)
class InitOptions:
    """What is made, of what."""

    TITLE = "init"

    source: str = option(
        "the directory: config.json, *.safetensors, tokenizer or image processor", parse=path, flag="from"
    )
    output: str = option(
        "the model directory to write; it may be that of --from, which then gets a model.yaml", parse=path
    )
    task: str | None = option(
        "what the outputs mean (default: what the architecture tells)", None, choices=tuple(TASKS)
    )
    name: str | None = option("what the model is called (default: the name of --from)", None)
    columns: tuple[str, ...] = option(
        "the columns that it takes, between commas (default: text or image)", (), parse=names
    )
    overwrite: bool = flag("replace a model.yaml that is there")


def main(argv: list[str] | None = None) -> int:
    """Runs the command and gives its exit code."""
    try:
        values, others = parser(COMMAND, (InitOptions,)).parse_known_args(sys.argv[1:] if argv is None else argv)
        if others:
            raise UsageError(f'unknown option "{others[0]}"; see --help')
        model = make(pick(InitOptions, values))
    except TorchbeamError as error:
        print(f"{PROG}: error: {one_line(error, 1000)}", file=sys.stderr)
        return 2
    print(f"{model.path}: {model.spec.name}, task {model.spec.task}, version {model.version}")
    print(f"score with it: torchbeam score --input=… --model={model.path} --output=…")
    return 0


def make(options: InitOptions) -> ModelDir:
    """Writes the model directory.

    Raises:
        UsageError: where `source` is no such directory, tells too little, or `output` is taken.
    """
    source, target = Path(options.source), Path(options.output)
    if not source.is_dir() or not is_hub_directory(source):
        raise UsageError(
            f"--from {source} is no directory of save_pretrained or sentence-transformers (no config.json)"
        )
    in_place = target.exists() and target.samefile(source)
    if (target / MODEL_FILE).exists() and not options.overwrite:
        raise UsageError(f"{target / MODEL_FILE} is there already; replace it with --overwrite")
    if target.exists() and not in_place and not (target / MODEL_FILE).exists() and any(target.iterdir()):
        raise UsageError(f"--output {target} is not empty and no model directory; write to a new one")
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


if __name__ == "__main__":
    process.run(main)
