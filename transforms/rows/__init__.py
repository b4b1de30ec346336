"""Beam rows: scoring them in pipelines of rows, such as those of Beam YAML and of other languages.

May import: `handlers`, the modules at the top of `transforms`, `sources` and `inference`.
"""
