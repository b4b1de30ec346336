"""Training: prepared rows on a local disk, and what learns from them.

What belongs here: reading and writing prepared folders; labels, inputs, the losses and the loop of a training. torch and
Arrow, no Beam. Lightning is imported by `fit` alone.
May import: `nets`, `columnar`, `model`, `predict`, `encode`, and the modules at the top of `handlers`.
"""
