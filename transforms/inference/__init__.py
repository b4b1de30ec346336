"""Inference: `Score` for chunks, `RunTorchInference` for elements, rechunking, and the coders of their elements.

May import: `handlers`, and the modules at the top of `transforms`.
"""
