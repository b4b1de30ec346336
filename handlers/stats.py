"""Statistics of a batch, for the metrics. Small and picklable."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Stats:
    """What became of the rows of a batch on their way through the model.

    Attributes:
        micro_batches: rows of each that the model answered.
        tokens: real tokens of the padded inputs; 0 where nothing was padded.
        padded_tokens: tokens of the padded inputs, padding included.
        out_of_memory: how often memory ran out.
        encode_seconds: from rows to tensors.
        forward_seconds: in the model, with the way to the device and back.
        decode_seconds: from tensors to columns or results.
        counts: what encoders count, by name.
    """

    micro_batches: list[int] = field(default_factory=list)
    tokens: int = 0
    padded_tokens: int = 0
    out_of_memory: int = 0
    encode_seconds: float = 0.0
    forward_seconds: float = 0.0
    decode_seconds: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, other: Stats) -> None:
        """Adds what was done for further rows."""
        self.micro_batches += other.micro_batches
        self.tokens += other.tokens
        self.padded_tokens += other.padded_tokens
        self.out_of_memory += other.out_of_memory
        self.encode_seconds += other.encode_seconds
        self.forward_seconds += other.forward_seconds
        self.decode_seconds += other.decode_seconds
        self.counts.update(other.counts)


@dataclass(frozen=True)
class Load:
    """What loading a model cost.

    Attributes:
        seconds: from the file to the device.
        bytes: of its parameters and buffers.
    """

    seconds: float
    bytes: int
