"""The columnar path: `ColumnarModelHandler` and the scorer, which take Arrow record batches (chunks).

What belongs here: code that knows chunks (provenance, the plan of a run, chains of functions on rows, SQL features).
May import: `model`, `predict`, `encode`, and the modules at the top of `handlers`.
"""
