"""Inference: `Score` for chunks, `RunTorchInference` for elements, rechunking and the coders of what flows.

May import: `handlers`, and the modules at the top of `transforms`.
"""
