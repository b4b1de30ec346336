"""The coder of what goes down the fused stage: it is never encoded there, only measured."""

from __future__ import annotations

import pickle
from typing import Any

import apache_beam as beam
from apache_beam.coders.typecoders import registry

from transforms.streams.messages import Messages

_MESSAGE_BYTES = 256


class MessagesCoder(beam.coders.Coder):
    """Beam's default coder with a cheap size: Beam measures a share of all elements, by default by pickling them."""

    def encode(self, value: Any) -> bytes:
        """The pickled value."""
        return pickle.dumps(value, protocol=5)

    def decode(self, encoded: bytes) -> Any:
        """The value."""
        return pickle.loads(encoded)  # noqa: S301 - from a worker of this pipeline

    def estimate_size(self, value: Any) -> int:
        """A guess from the number of messages."""
        return _MESSAGE_BYTES * len(getattr(value, "messages", value))

    def is_deterministic(self) -> bool:
        """False: it cannot be a key."""
        return False

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))


registry.register_coder(Messages, MessagesCoder)
