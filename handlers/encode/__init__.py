"""Encoders: columns become the tensors of one model input, and a row that cannot be encoded gets its own error.

What belongs here: one module per encoder, what encoders share, and binding (which columns feed which input). No Beam.
May import: the modules at the top of `handlers`.
"""
