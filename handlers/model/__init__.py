"""Model directories: `model.yaml`, the weights formats, stores and local copies.

What belongs here: code that turns a path into a validated spec or into a model in memory.
May import: `predict`, `encode`, and the modules at the top of `handlers`.
"""
