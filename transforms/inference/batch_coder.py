"""A coder that estimates the size of a batch of elements from its first element.

Beam encodes the first elements of every `PCollection` and a share of the later ones to measure them. For a batch that
takes longer than creating it: 80 ms for 2,048 examples with their tensors. Importing this module registers the coder with
Beam for `Batch(T)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from apache_beam.coders import ListCoder
from apache_beam.coders.coder_impl import CallbackCoderImpl
from apache_beam.coders.typecoders import registry
from apache_beam.typehints import typehints


class Batch(typehints.ListConstraint):
    """A type hint: a list of elements of a type, such as `Batch(tuple[str, Any])`."""

    def __init__(self, element: Any) -> None:
        super().__init__(element)  # type: ignore[no-untyped-call]


class BatchCoder(ListCoder):
    """Encodes a list with the coder of its elements, as Beam does; its size is estimated from the first element."""

    def _create_impl(self) -> CallbackCoderImpl:
        whole = super()._create_impl()  # type: ignore[no-untyped-call]
        element = self._elem_coder.get_impl()

        def size(batch: Sequence[Any]) -> int:
            return len(batch) * int(element.estimate_size(batch[0])) if batch else 0

        return CallbackCoderImpl(whole.encode, whole.decode, size)

    def to_type_hint(self) -> Batch:
        """The type of the encoded values."""
        return Batch(self._elem_coder.to_type_hint())


registry.register_coder(Batch, BatchCoder)
