"""Sequences by key: rows of a key in order of time, cut into windows.

What belongs here: plain functions on Arrow and numpy that order rows, compute columns over steps and cut windows; the pipeline
around them is in `transforms`.
May import: `columnar`, `model`, `encode`, `predict`, and the modules at the top of `handlers`.
"""
