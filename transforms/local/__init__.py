"""Scoring in this process, without a runner: rows of any kind in, predictions and dead letters of that kind out.

May import: `handlers`, the modules at the top of `transforms`, `sources` and `inference`.
"""
