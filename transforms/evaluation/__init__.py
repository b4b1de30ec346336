"""Evaluation: labels against predictions, in sums that can be merged, so that rows are never kept.

May import handlers and transforms.

Plain functions and accumulators over numpy and Arrow; `evaluate.py` is the transform over them, `report.py` the page.
"""
