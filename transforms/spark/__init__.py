"""Scoring data frames of Spark without Beam: `DataFrame.mapInArrow` with the scorer of the pipeline.

`partition` runs in Spark's Python workers, and imports neither Beam nor pyspark at its top.
May import: `handlers`, the modules at the top of `transforms`, and `transforms.inference`.
"""
