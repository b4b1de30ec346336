"""The model registry, written: pushing versions, moving aliases, and a model of it loaded for rows in memory.

May import: `handlers`, the modules at the top of `transforms`, and `transforms.local`.
"""
