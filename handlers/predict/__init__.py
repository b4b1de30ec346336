"""The predictor: micro-batches through a model in memory, isolation of bad rows, devices and slots, heads.

What belongs here: torch code that takes tensors and gives tensors or columns. No Beam, no files, no model directory.
May import: the modules at the top of `handlers`.
"""
