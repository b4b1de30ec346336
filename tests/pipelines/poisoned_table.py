"""A table of 100,000 rows of which 137 are poisoned, and the model that scores it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import poison_rows
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from handlers import ModelDir

HERE = Path(__file__).parent

LABELS = ("low", "middle", "high")
POISONED = 137
WAYS = ("null", "text", "infinity", "length", "model", "preprocess", "postprocess")
EXPECTED = {
    "null": "encode/NullValue",
    "text": "encode/NotANumber",
    "infinity": "encode/NotFinite",
    "length": "encode/WrongLength",
    "model": "forward/ValueError",
    "preprocess": "preprocess/ValueError",
    "postprocess": "postprocess/KeyError",
}


@dataclass(frozen=True)
class Table:
    """The input files, what is wrong in them, and what a plain torch loop answers for all other rows."""

    folder: Path
    table: pa.Table
    poison: dict[int, str]
    dropped: frozenset[int]
    probabilities: np.ndarray

    def by_error(self) -> Counter[str]:
        return Counter(EXPECTED[way] for way in self.poison.values())


def save_model(folder: Path, **fields: object) -> ModelDir:
    torch.manual_seed(7)
    settings: dict[str, object] = {
        "task": "classification",
        "labels": LABELS,
        "inputs": [{"name": "x", "columns": ["amount", "f_*", "vec"]}],
        "preprocess": ["poison_rows:strict"],
        "postprocess": ["poison_rows:check"],
        "code": [HERE / "poison_rows.py"],
    }
    return ModelDir.save(poison_rows.Net(), folder, **(settings | fields))  # type: ignore[arg-type]


def make_table(folder: Path, model: Path) -> Table:
    """Writes the table under `folder`, in four files and a broken one, and scores it with `model` in a plain loop."""
    rows = 100_000
    rng = np.random.default_rng(1)
    amount = rng.normal(size=rows).round(6)
    features = rng.normal(size=(4, rows))
    vectors = rng.normal(size=(rows, 4))
    code = rng.integers(100, 200, rows)
    picked = rng.choice(rows, POISONED + 50, replace=False)
    poison = {int(row): WAYS[index % len(WAYS)] for index, row in enumerate(picked[:POISONED])}
    dropped = frozenset(map(int, picked[POISONED:]))
    code[list(dropped)] = poison_rows.LEFT_OUT

    texts, lists = [str(value) for value in amount], vectors.tolist()
    f_0: list[float | None] = features[0].tolist()
    f_1, f_2 = features[1].copy(), features[2].copy()
    for row, way in poison.items():
        if way == "null":
            f_0[row] = None
        elif way == "text":
            texts[row] = "a lot"
        elif way == "infinity":
            f_2[row] = np.inf if row % 2 else 1e39  # which float32 cannot hold
        elif way == "length":
            lists[row] = [1.0] * (3 if row % 2 else 5)
        elif way == "model":
            f_0[row] = poison_rows.MODEL_REFUSES
        elif way == "preprocess":
            code[row] = poison_rows.PREPROCESS_REFUSES
        elif way == "postprocess":
            code[row] = poison_rows.POSTPROCESS_REFUSES
    table = pa.table(
        {
            "id": pa.array(np.arange(rows)),
            "when": pa.array(1_700_000_000_000_000 + np.arange(rows), pa.timestamp("us", "UTC")),
            "amount": pa.array(texts),
            "f_0": pa.array(f_0, pa.float64()),
            "f_1": pa.array(f_1),
            "f_2": pa.array(f_2),
            "f_3": pa.array(features[3]),
            "vec": pa.array(lists, pa.list_(pa.float64())),
            "code": pa.array(code),
            "note": pa.array([None if row % 10 == 0 else f"n{row % 7}" for row in range(rows)]),
        }
    )
    for part in range(4):
        pq.write_table(table.slice(part * 25_000, 25_000), folder / f"part-{part}.parquet", row_group_size=7_000)
    whole = (folder / "part-0.parquet").read_bytes()
    (folder / "part-broken.parquet").write_bytes(whole[: len(whole) // 2])

    values = np.column_stack([amount, *features, vectors]).astype(np.float32)
    net = ModelDir(model).load().module
    with torch.no_grad():
        probabilities = (
            net(torch.from_numpy(np.where(values == poison_rows.MODEL_REFUSES, 0, values))).softmax(1).numpy()
        )
    return Table(folder, table, poison, dropped, probabilities)
