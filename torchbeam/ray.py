"""Scoring datasets of Ray: `torchbeam.ray.score(ds, model)`. See docs/python.md."""

from __future__ import annotations

from torchbeam.shadow import check_packages

check_packages()

from transforms.ray.scoring import RayScores, score  # noqa: E402 - only once it is known to be ours

__all__ = ["RayScores", "score"]
