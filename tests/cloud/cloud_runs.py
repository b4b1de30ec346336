"""The command on a bucket, and what it must leave there."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fake_stores import Store

from pipelines import score

ROWS = 1000
DEAD = [3, 500, 999]
PATHS = {"input": "in", "model": "models/linear", "output": "out"}


def run(store: Store, *arguments: str, **paths: str) -> int:
    """Runs the command; `paths` are names in the bucket, or whole paths."""
    flags = [f"--{flag}={path if '://' in path else store.url(path)}" for flag, path in paths.items()]
    return score.main([*flags, *arguments, *store.options])


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The line that the command has put on standard error, which is all that is there."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("torchbeam score: error: ")
    return lines[0]


def as_parquet(table: pa.Table, rows_a_group: int = 400) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, row_group_size=rows_a_group)
    return file.getvalue()


def read(store: Store, folder: str) -> pa.Table:
    names = [name for name in store.names(folder) if name.endswith(".parquet")]
    assert names, store.names()
    return pa.concat_tables([pq.read_table(io.BytesIO(store.get(name))) for name in names])


def expected(model: Path, table: pa.Table, fill: float | None = None) -> dict[int, float]:
    """What plain torch answers, by id; rows with a null are left out, or filled."""
    from safetensors.torch import load_file

    weights = load_file(model / "weights.safetensors")
    answers = {}
    for row in table.to_pylist():
        a = fill if row["a"] is None else row["a"]
        if a is not None:
            x = torch.tensor([a, row["b"]], dtype=torch.float32)
            answers[row["id"]] = float(x @ weights["weight"][0] + weights["bias"][0])
    return answers


def check(store: Store, output: str, answers: dict[int, float]) -> None:
    """The run under `output` is finished, its predictions are `answers`, and nothing else is there."""
    found = read(store, f"{output}/predictions/")
    assert sorted(found["id"].to_pylist()) == sorted(answers)
    by_id = dict(zip(found["id"].to_pylist(), found["prediction"].to_pylist(), strict=True))
    assert max(abs(by_id[row] - answer) for row, answer in answers.items()) <= 1e-6
    report = json.loads(store.get(f"{output}/report.json"))
    assert (report["rows_read"], report["rows_scored"]) == (len(answers) + report["rows_dead"], len(answers))
    assert not [name for name in store.names(output) if "_tmp" in name]


def put_model(store: Store, model: Path, name: str = "models/linear") -> str:
    for file in model.rglob("*"):
        if file.is_file():
            store.put(f"{name}/{file.relative_to(model).as_posix()}", file.read_bytes())
    return store.url(name)
