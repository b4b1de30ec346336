"""Scoring data frames of Spark: `torchbeam.spark.score(df, model)`. See docs/python.md."""

from __future__ import annotations

from torchbeam.shadow import check_packages

check_packages()

from transforms.spark.scoring import SparkScores, score  # noqa: E402 - only once it is known to be ours

__all__ = ["SparkScores", "score"]
