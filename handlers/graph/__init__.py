"""Several models on the rows of a chunk: `models.yaml`, the plan of such a run, the scorer and its model handler.

What belongs here: which model runs on which row, what one takes from another, and what becomes of a row in the end.
May import: `columnar`, `model`, `predict`, `encode`, and the modules at the top of `handlers`.
"""
