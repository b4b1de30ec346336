"""Shows what came out of scoring the digits: some predictions, the accuracy, and the rows that could not be scored.

python examples/digits/show.py out/digits/scored
"""

import argparse
from pathlib import Path

import pyarrow.parquet as pq


def main() -> None:
    """Prints the result of a run."""
    parser = argparse.ArgumentParser(description="Show the predictions of the digits example.")
    parser.add_argument("scored", type=Path, help="the --output of the run")
    scored = parser.parse_args().scored

    columns = ["scan", "scanned_at", "digit", "predicted_class", "confidence"]
    predictions = pq.read_table(scored / "predictions", columns=columns).sort_by("scan").to_pandas()
    right = predictions["predicted_class"] == predictions["digit"].astype(str)
    print("\nThe first five predictions beside the true digits:\n")
    print(predictions.head(5).to_string(index=False))
    print("\nFive that the model got wrong:\n")
    print(predictions[~right].head(5).to_string(index=False))
    print(f"\n{right.mean():.1%} of {len(predictions)} images, none of which was in the training, are right.")

    dead = pq.read_table(scored / "dead_letters").sort_by("scan").to_pylist()
    print(f"{len(dead)} rows could not be scored, and are in the dead letters:\n")
    for row in dead:
        print(f"  scan {row['scan']}: {row['dead_letter']['message']}")
    print(f"\nThe counts of the run are in {scored}/report.json.")


if __name__ == "__main__":
    main()
