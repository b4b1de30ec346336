"""Evaluation: labels against predictions, in sums that add up, so that rows are never held. May import handlers and transforms.

Plain functions and accumulators over numpy and Arrow; `evaluate.py` is the transform over them, `report.py` the page.
"""
