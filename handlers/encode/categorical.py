"""The categorical encoder: values become the codes of their categories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from handlers.encode.matrix import BoundMatrix, bind_matrix
from handlers.encode.specs import CategoricalInput
from handlers.encode.values import Values, any_of, is_text, mask_of, numbers_of, within
from handlers.errors import UsageError
from handlers.tensors import TensorInfo


@dataclass(frozen=True)
class BoundCategorical(BoundMatrix):
    """A categorical input, bound to its columns."""

    spec: CategoricalInput

    def values(self, array: pa.Array) -> Values:
        """The codes of `array` (without lists), as int64."""
        if pa.types.is_dictionary(array.type):
            return self.values(array.dictionary_decode())
        spec = self.spec
        if spec.categories is None:
            return known_codes(array, spec.codes, spec.unknown)
        found = _indices(array, spec)
        unknown = mask_of(found.is_null())
        return _codes(array, pc.fill_null(found, 0).to_numpy(), unknown, spec.unknown, "UnknownCategory")

    @property
    def fill_value(self) -> Any:
        """The code of the category that replaces a null."""
        return self.spec.categories.index(self.spec.fill) if self.spec.categories else self.spec.fill


def bind(
    spec: CategoricalInput, info: TensorInfo, batch: pa.RecordBatch, _parameters: Sequence[str] = ()
) -> BoundCategorical:
    """Binds an input to the columns of `batch`; raises `UsageError` for a column of a type that has no meaning in it."""
    bound = bind_matrix(BoundCategorical, spec, info, batch)
    if spec.categories and isinstance(spec.categories[0], bool):
        for name in bound.columns:
            if is_text(batch.schema.field(name).type):
                _check_flags(batch.column(name), name, spec)
    return bound


def known_codes(array: pa.Array, codes: int, unknown: int | None) -> Values:
    """Numbers that are codes already, as int64: those that are not in 0 … codes - 1 are errors, or become `unknown`."""
    values = within(numbers_of(array, exact=True), torch.int64)
    outside = (values.numbers < 0) | (values.numbers >= codes) | any_of(values.errors, len(array))
    return _codes(array, np.where(outside, 0, values.numbers), outside, unknown, "OutOfRange")


def _codes(array: pa.Array, codes: np.ndarray, outside: np.ndarray, unknown: int | None, kind: str) -> Values:
    nulls = mask_of(array.is_null()) if array.null_count else None
    if nulls is not None:
        outside = outside & ~nulls
    if not outside.any():
        return Values(codes, nulls, {})
    if unknown is not None:
        return Values(np.where(outside, unknown, codes), nulls, {})
    return Values(codes, nulls, {kind: outside})


def _indices(array: pa.Array, spec: CategoricalInput) -> pa.Array:
    """The index of each value in `spec.categories`; null where it is not a category. 1, 1.0 and "1" are the same category."""
    categories = spec.categories or ()
    if isinstance(categories[0], str):
        return pc.index_in(category_text(array), pa.array(categories, pa.string()))
    if isinstance(categories[0], bool) and is_text(array.type):
        text = pc.utf8_lower(category_text(array))
        words = pc.index_in(text, pa.array([str(value).lower() for value in categories]))
        return pc.coalesce(words, pc.index_in(text, pa.array([str(int(value)) for value in categories])))
    values = within(numbers_of(array, exact=True), torch.int64)
    missing = any_of(values.errors, len(array)) | (False if values.nulls is None else values.nulls)
    numbers = pa.array(values.numbers, pa.int64(), mask=missing)
    return pc.index_in(numbers, pa.array(list(map(int, categories)), pa.int64()))


def category_text(array: pa.Array) -> pa.Array:
    """Values as the text of their category: 3, 3.0 and "3" are the same; nulls stay."""
    if pa.types.is_decimal(array.type) or pa.types.is_float16(array.type):
        array = array.cast(pa.float64())
    if pa.types.is_floating(array.type):  # 3.0 is the category 3
        whole = pc.and_(pc.equal(pc.floor(array), array), pc.less(pc.abs(array), 2.0**63))
        integers = pc.cast(pc.if_else(whole, array, pa.scalar(0).cast(array.type)), pa.int64(), safe=False)
        return pc.if_else(whole, integers.cast(pa.string()), array.cast(pa.string()))
    return array.cast(pa.string())


def _check_flags(array: pa.Array, name: str, spec: CategoricalInput) -> None:
    """YAML reads yes, no, on and off as booleans; where the column has such words, text was meant."""
    words = {str(value).strip().lower() for value in array.unique().to_pylist() if value is not None}
    if words and not words & {"true", "false"}:
        raise UsageError(
            f'column "{name}" holds text, but the categories of the model input "{spec.name}" are true and false; '
            'quote words that YAML reads as booleans, as "yes"'
        )
