"""Streams: messages from a broker or a folder in micro-batches, scored and delivered with their positions.

What lies here knows Beam and brokers; it takes chunks, scorers and errors from `handlers`, reading by format from
`transforms.sources`, the text of JSON lines from `transforms.sinks`, and scoring from `transforms.inference`. Nothing of
`pipelines` enters.
"""
