"""Prepared folders made by hand, with the fingerprint and counts that `prepare` writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from handlers.train.prepared import Prepared, write_about, write_shards


def prepared_folder(folder: Path, table: pa.Table, label: str, held_out: float = 0.25) -> Prepared:
    """The first rows of `table` to train on, the last ones to validate with, in shards of 100 rows."""
    first = table.num_rows - round(held_out * table.num_rows)
    for part, rows in (("train", table.slice(0, first)), ("validation", table.slice(first))):
        write_shards(folder / part, table.schema, rows.combine_chunks().to_batches(100), shard_bytes=4096)
    counts = {"read": table.num_rows, "sampled": table.num_rows, "dropped": 0, "dead": 0}
    rows_of = {"train": first, "validation": table.num_rows - first}
    about = {"label": label, "seed": 0, "validation": held_out, "split_by": [], "input": "rows.parquet"}
    write_about(folder, about | {"rows": counts | rows_of, "dead_by_error": {}})
    return Prepared.open(folder)


def customers(rows: int = 400, seed: int = 0) -> pa.Table:
    """Rows of every kind of column, from which the labels `churned`, `visits` and `spent` can be learned."""
    random = np.random.default_rng(seed)
    age = random.uniform(18, 90, rows)
    income = np.where(random.random(rows) < 0.1, np.nan, random.lognormal(10, 0.5, rows))
    country = random.choice(["NL", "BE", "DE"], rows)
    is_new = random.random(rows) < 0.3
    pull = (age - 54) / 20 + 2.0 * (country == "NL") - 1.5 * is_new
    return pa.table(
        {
            "customer_id": np.arange(rows),
            "age": age,
            "income": pa.array(income, mask=np.isnan(income)),
            "country": pa.array(country, mask=random.random(rows) < 0.05),
            "is_new": is_new,
            "constant": np.ones(rows),
            "note": [f"customer {row}" for row in range(rows)],
            "last_days": pa.array([[float(value) for value in random.normal(pull[row], 1, 3)] for row in range(rows)]),
            "churned": np.where(pull + random.normal(0, 0.3, rows) > 0, "yes", "no"),
            "visits": np.clip(np.round(pull + 3), 0, 5).astype(np.int64),
            "spent": 100_000 + 5_000 * pull + random.normal(0, 300, rows),
        }
    )
