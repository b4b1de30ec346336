"""Writes scikit-learn's breast cancer table in two parts: rows to train on, and later ones to score.

    python examples/breast_cancer/tables.py out/breast_cancer/data

writes `known.parquet` (469 tumours) and `new.parquet` (100 others, two of them damaged).
"""

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.datasets import load_breast_cancer


def table() -> pa.Table:
    """One row a tumour, in a random order: its number, 30 measurements of its cells, and the diagnosis."""
    data = load_breast_cancer()
    order = np.random.default_rng(0).permutation(len(data.target))
    columns = {"tumour": order}
    columns |= {str(name).replace(" ", "_"): data.data[order, index] for index, name in enumerate(data.feature_names)}
    columns["diagnosis"] = data.target_names[data.target[order]]
    return pa.table(columns)


def damaged(rows: pa.Table) -> pa.Table:
    """The same rows; of two the mean radius is not known, as happens."""
    radius = rows["mean_radius"].to_pylist()
    radius[7] = radius[50] = None
    return rows.set_column(rows.schema.get_field_index("mean_radius"), "mean_radius", pa.array(radius, pa.float64()))


def main() -> None:
    """Writes both files, unless they are there: what has not changed need not be trained on again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the files are written")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    rows = table()
    for name, part in {"known": rows.slice(0, 469), "new": damaged(rows.slice(469))}.items():
        file = folder / f"{name}.parquet"
        if not file.exists():
            pq.write_table(part, file)


if __name__ == "__main__":
    main()
