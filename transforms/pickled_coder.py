"""A coder for what passes between fused steps: never encoded, as a rule, but measured time and again.

Beam measures the first elements of every `PCollection` and a share of the later ones, by default in encoding them. For
a large element that takes longer than to make it: a list of 2,048 small tensors, 80 ms.
"""

from __future__ import annotations

import abc
import pickle
from typing import Any

import apache_beam as beam


class PickledCoder(beam.coders.Coder, abc.ABC):
    """Pickles, as Beam does by default; a subclass says how to tell the size at no cost."""

    @abc.abstractmethod
    def estimate_size(self, value: Any) -> int:
        """About the number of bytes of `value`."""

    def encode(self, value: Any) -> bytes:
        """`value` pickled."""
        return pickle.dumps(value, protocol=5)

    def decode(self, encoded: bytes) -> Any:
        """What was pickled."""
        return pickle.loads(encoded)  # noqa: S301 - from a worker of this pipeline

    def is_deterministic(self) -> bool:
        """Equal values may be pickled differently, so none can be a key."""
        return False

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))
