"""Preparation: from chunks to rows to train on, sampled, shuffled and split.

What belongs here: the transforms of a preparation, the hashes that decide about a row, and the merge that writes the shards.
May import: the modules at the top of `transforms`, and `handlers`.
"""
