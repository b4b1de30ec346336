"""The hashes that decide about a row: whether it is sampled, where it comes in the order, and which part it goes to.

They depend on the seed, the file and the number of the row in it, or on the values of some columns: not on the runner, the
order of the files, or the folder that they are in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from handlers.columnar.chunks import ROW, SOURCE

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_NULL = "\0null"
_PIECE = 1 << 16  # numbers that are looked at together, at least


def row_hashes(chunk: pa.RecordBatch, seed: int, purpose: str, pattern: str) -> np.ndarray:
    """A hash for each row of `chunk`, which has provenance: uint64 of (rows,), uniform.

    Args:
        chunk: the rows.
        seed: another seed gives unrelated hashes.
        purpose: likewise another purpose.
        pattern: the input; of a source, what it has in common with the input is left out.
    """
    source = chunk.column(SOURCE)
    keys = [_key(f"{seed}\0{purpose}\0{relative(name, pattern)}") for name in source.dictionary.to_pylist()]
    rows = chunk.column(ROW).to_numpy(zero_copy_only=False).astype(np.uint64)
    start = np.array(keys, dtype=np.uint64)[source.indices.to_numpy(zero_copy_only=False)]
    return _mixed(start + rows * _GOLDEN)


def value_hashes(columns: Sequence[pa.Array], seed: int, purpose: str) -> np.ndarray:
    """A hash for each row by its values in `columns`, of types that can be cast to text: uint64 of (rows,)."""
    result = np.zeros(len(columns[0]), dtype=np.uint64)
    for index, column in enumerate(columns):
        texts = pc.fill_null(_texts(column), _NULL).dictionary_encode()
        prefix = f"{seed}\0{purpose}\0{index}\0"
        keys = np.array([_digest(prefix + text) for text in texts.dictionary.to_pylist()], dtype=np.uint64)
        result = _mixed(result ^ keys[texts.indices.to_numpy(zero_copy_only=False)])
    return result


def below(hashes: np.ndarray, share: float) -> np.ndarray:
    """Mask of a `share` (0 to 1) of uniform hashes."""
    if share >= 1:
        return np.ones(len(hashes), dtype=bool)
    return hashes < np.uint64(int(share * 2**64))


@lru_cache(maxsize=100_000)
def relative(source: str, pattern: str) -> str:
    """A source without the folders that it shares with `pattern`, but at least its name."""
    parts = source.split("/")
    shared = 0
    for mine, theirs in zip(parts[:-1], _normal(pattern).split("/"), strict=False):
        if mine != theirs:
            break
        shared += 1
    return "/".join(parts[shared:])


def _normal(pattern: str) -> str:
    return pattern.removeprefix("./").rstrip("/")


def _texts(column: pa.Array) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return column.cast(pa.string())


@lru_cache(maxsize=100_000)
def _key(text: str) -> int:
    return _digest(text)


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _mixed(values: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64, which makes a uniform hash of any sequence."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    result: np.ndarray = values ^ (values >> np.uint64(31))
    return result


class Smallest:
    """A mask of the numbers that may be among the `count` smallest of all, as they come; holds about 2 × `count` of them."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._kept: list[np.ndarray] = []
        self._held = 0
        self.limit = np.uint64(2**64 - 1)  # the largest that may still be among them

    def add(self, numbers: np.ndarray) -> np.ndarray:
        """Mask of `numbers`, uint64, that are not above all of the smallest so far."""
        mask: np.ndarray = numbers <= self.limit
        step = max(self._count, _PIECE)
        for start in range(0, len(numbers), step):
            piece = numbers[start : start + step]
            self._kept.append(piece[piece <= self.limit])
            self._held += len(self._kept[-1])
            if self._held >= 2 * self._count:
                self.settle()
        return mask

    def settle(self) -> np.uint64:
        """The largest of the `count` smallest so far; the largest number there is where there are fewer."""
        if self._held >= self._count:
            kept = np.partition(np.concatenate(self._kept), self._count - 1)[: self._count]
            self._kept, self._held, self.limit = [kept], len(kept), kept.max()
        return self.limit
