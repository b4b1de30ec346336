"""The element-wise path: `TorchModelHandler` and what it needs to score Beam elements, one result each.

What belongs here: code that knows single examples (collation, rows of plain values, results, failures of an example).
May import: every other package of `handlers`. Nothing in `handlers` imports this one.
"""
