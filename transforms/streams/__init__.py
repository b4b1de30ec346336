"""Streams: messages from a broker or a folder in micro-batches, scored and delivered with their positions.

What lies here knows Beam and brokers; it takes chunks, scorers and errors from `handlers` and reading by format from
`transforms.sources`. Nothing of `pipelines` enters.
"""
