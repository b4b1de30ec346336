"""Trains a small transformer that classifies docstrings of the standard library, then scores and evaluates it.

    python examples/docstrings/classify.py out/docstrings

The class is the part of the library that a docstring is from, such as networking. `out/docstrings` gets the model directory
`model`, the table of docstrings that were not trained on, `scored` and `evaluation` with its report. Docstrings of one module are
on both sides of the split; with whole modules left out the task is harder (67 % instead of 83 % in a trial).
"""

import argparse
import ast
import json
import os
import subprocess
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait sleep, which matters on a busy machine

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from sklearn.model_selection import train_test_split
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from torchbeam import ModelDir

PARTS = {
    "development": ("ast", "dis", "doctest", "inspect", "lib2to3", "pdb", "pydoc", "unittest"),
    "interface": ("curses", "idlelib", "tkinter", "turtle", "turtledemo"),
    "networking": ("asyncio", "email", "ftplib", "http", "imaplib", "smtplib", "socket", "socketserver", "ssl", "urllib"),
    "numbers and time": ("_pydatetime", "_pydecimal", "_strptime", "calendar", "datetime", "decimal", "fractions",
                         "numbers", "random", "statistics", "zoneinfo"),
}  # fmt: skip
SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
LENGTH = 32  # tokens of a docstring; the first lines say most


def docstrings() -> Iterator[dict[str, str]]:
    """Functions and classes with a docstring of five words or more; a text that repeats counts once."""
    library = Path(sysconfig.get_path("stdlib"))
    part_of = {package: part for part, packages in PARTS.items() for package in packages}
    seen = set()
    for file in sorted(library.rglob("*.py")):
        names = file.relative_to(library).with_suffix("").parts
        if names[0] not in part_of or {"test", "tests", "idle_test"} & set(names):
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8", errors="replace"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                text = ast.get_docstring(node) or ""
                if len(text.split()) >= 5 and text not in seen:
                    seen.add(text)
                    yield {"name": ".".join((*names, node.name)), "part": part_of[names[0]], "text": text}


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer of up to 4,000 tokens."""
    tokenizer = Tokenizer(models.WordPiece(unk_token=SPECIAL["unk_token"]))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = list(SPECIAL.values())
    tokenizer.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=4000, special_tokens=special))
    tokenizer.post_processor = processors.BertProcessing(
        ("[SEP]", tokenizer.token_to_id("[SEP]")), ("[CLS]", tokenizer.token_to_id("[CLS]"))
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=LENGTH, **SPECIAL)


def train(texts: list[str], labels: list[int], tokenizer: PreTrainedTokenizerFast, epochs: int = 3) -> torch.nn.Module:
    """A BERT of two layers, from random weights."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # the batches are too small to share among threads
    config = BertConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=LENGTH,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        pad_token_id=tokenizer.pad_token_id,
        id2label=dict(enumerate(PARTS)),
    )
    model = BertForSequenceClassification(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    target = torch.tensor(labels)
    for _ in range(epochs):
        for batch in torch.randperm(len(texts)).split(32):
            tokens = tokenizer([texts[i] for i in batch], padding=True, truncation=True, return_tensors="pt")
            optimizer.zero_grad()
            model(**tokens, labels=target[batch]).loss.backward()
            optimizer.step()
    return model.eval()


def torchbeam(command: str, *options: str) -> None:
    """Shows and runs a command of torchbeam."""
    print(f"\n$ torchbeam {command} {' '.join(options)}", flush=True)
    subprocess.run([sys.executable, "-m", "torchbeam", command, *options], check=True)  # noqa: S603


def main() -> None:
    """Trains, saves, scores and evaluates."""
    parser = argparse.ArgumentParser(description="Train a classifier of docstrings, score and evaluate it.")
    parser.add_argument("out", type=Path, help="folder for the model directory, the table and what comes of it")
    out = parser.parse_args().out

    rows = list(docstrings())
    known, others = train_test_split(rows, test_size=0.25, random_state=0, stratify=[row["part"] for row in rows])
    texts = [row["text"] for row in known]
    tokenizer = train_tokenizer(texts)
    model = train(texts, [list(PARTS).index(row["part"]) for row in known], tokenizer)
    saved = ModelDir.save(model, out / "model", format="huggingface", name="docstrings", tokenizer=tokenizer)
    pq.write_table(pa.Table.from_pylist(others), out / "table.parquet")
    print(f"model  {saved.path}, version {saved.version}, trained on {len(known)} docstrings")
    print(f"table  {out / 'table.parquet'}, {len(others)} other docstrings")

    torchbeam(
        "score",
        f"--input={out}/table.parquet",
        f"--model={out}/model",
        f"--output={out}/scored",
        *("--probabilities", "--overwrite"),
    )
    torchbeam("evaluate", f"--input={out}/scored", "--label=part", f"--output={out}/evaluation", "--overwrite")

    accuracy = json.loads((out / "evaluation" / "metrics.json").read_text())["accuracy"]
    ((majority, count),) = Counter(row["part"] for row in others).most_common(1)
    print(
        f"\naccuracy {accuracy:.1%}; always answering {majority!r}, the most frequent part: {count / len(others):.1%}"
    )


if __name__ == "__main__":
    main()
