"""Scoring datasets of Ray without Beam: `Dataset.map_batches` with the scorer of the pipeline.

`actor` runs in Ray's workers, and does not import Ray at its top.
May import: `handlers`, the modules at the top of `transforms`, and `transforms.inference`.
"""
