"""Sinks: writing chunks to files, publishing a run under its final names, loading tables.

May import: `handlers`, and the modules at the top of `transforms`.
"""
