"""Scoring data frames of Spark without Beam: `DataFrame.mapInArrow` with the scorer of the pipeline.

`partition` and `shipping` run in Spark's Python workers, and import neither Beam nor pyspark at their top.
May import: `handlers`, and `transforms.inference`.
"""
