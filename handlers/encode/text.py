"""The text encoder: columns of text become tokens, by a fast tokenizer in the model directory.

Edge cases: an empty text is encoded as its special tokens; null is a row failure without `fill`; a text of more than
`max_length` tokens is truncated at its end and counted; text that is not valid Unicode is a row failure.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from handlers.encode.base import BoundInput, Encoded, Tensors
from handlers.encode.columns import resolve_columns
from handlers.encode.specs import TextInput
from handlers.encode.values import innermost, is_list, is_text
from handlers.errors import UsageError, one_line
from handlers.failures import RowFailure, RowFailures
from handlers.tensors import MASKS, Padding, Ragged, TensorInfo

TRUNCATED = "texts_truncated"
PIECE_TEXTS = 2048  # texts of a piece, encoded while the model runs on the previous piece
_NO_LIMIT = 1_000_000  # tokenizers without a limit give 10**30


@dataclass(frozen=True)
class BoundText(BoundInput):
    """A text input, bound to its columns.

    Attributes:
        spec: as `model.yaml` gives it.
        columns: one column, two that make pairs, or any number that are joined.
        parameters: names of the inputs that `forward` takes; empty where it takes any.
        tokenizer: opened by `prepare`; None before.
    """

    spec: TextInput
    parameters: tuple[str, ...] = ()
    tokenizer: Any = None

    def prepare(self, folder: Path) -> BoundText:
        """Opens the tokenizer."""
        return replace(self, tokenizer=open_tokenizer(folder / self.spec.tokenizer))

    def encode(self, batch: pa.RecordBatch) -> Encoded:
        """Tokens as `Ragged` int64, by the names of the model's inputs."""
        failures: RowFailures = {}
        texts = self._texts(batch, failures)
        encodings = self._tokenize(texts)
        columns = {"ids": self._ids_name} | ({"type_ids": "token_type_ids"} if self._takes_types else {})
        offsets = np.cumsum([0, *map(len, encodings)], dtype=np.int64)
        tensors: Tensors = {}
        for attribute, name in columns.items():
            values = itertools.chain.from_iterable(getattr(each, attribute) for each in encodings)
            tensors[name] = Ragged(torch.from_numpy(np.fromiter(values, np.int64, offsets[-1])), offsets)
        truncated = sum(1 for row, each in enumerate(encodings) if each.overflowing and row not in failures)
        return Encoded(tensors, failures, {TRUNCATED: truncated} if truncated else {})

    def zeros(self, rows: int) -> Tensors:
        """Empty texts: special tokens only."""
        blank = pa.array([""] * rows)
        return self.encode(pa.RecordBatch.from_arrays([blank] * len(self.columns), names=list(self.columns))).tensors

    @property
    def row_bytes(self) -> int:
        """So that a piece has `PIECE_TEXTS` rows: the tokens of a text are not known before encoding."""
        return (64 << 20) // PIECE_TEXTS

    @property
    def sample_rows(self) -> int:
        """Texts are scored slowly; a few are enough to find the columns."""
        return 16

    @property
    def padding(self) -> Padding:
        """Padded by the tokenizer's own token, with the mask that the model takes."""
        names = self.parameters or ("attention_mask",)
        mask = next((name for name in MASKS if name in names), None)
        pad = 0 if self.tokenizer is None or self.tokenizer.pad_token_id is None else self.tokenizer.pad_token_id
        return Padding(value={self._ids_name: pad}, mask=mask, inputs=(self._ids_name,))

    def order(self, batch: pa.RecordBatch) -> np.ndarray | None:
        """From the longest text to the shortest, by bytes, so that neighbours have about as many tokens."""
        size = np.zeros(batch.num_rows, np.int64)
        for name in self.columns:
            index = batch.schema.get_field_index(name)
            if index >= 0 and is_text(batch.schema.field(index).type):
                length = pc.binary_length(batch.column(index).cast(pa.large_string()))
                size += pc.fill_null(length, 0).to_numpy(zero_copy_only=False)
        return np.argsort(-size, kind="stable")

    @property
    def _ids_name(self) -> str:
        return self.spec.name if self.parameters and "input_ids" not in self.parameters else "input_ids"

    @property
    def _takes_types(self) -> bool:
        named = "token_type_ids" in self.tokenizer.model_input_names
        return named and (not self.parameters or "token_type_ids" in self.parameters)

    def _texts(self, batch: pa.RecordBatch, failures: RowFailures) -> list[list[str]]:
        """The one or two texts of each row; empty ones where a row failed."""
        found = []
        for name in self.columns:
            index = batch.schema.get_field_index(name)
            kind = None if index < 0 else batch.schema.field(index).type
            if kind is None or not _holds_text(kind):
                why = ("MissingColumn", "is missing") if kind is None else ("WrongType", f"holds {kind}, not text")
                failure = RowFailure("encode", why[0], f'column "{name}" {why[1]}')
                failures |= {row: failures.get(row, failure) for row in range(batch.num_rows)}
                found.append([""] * batch.num_rows)
                continue
            found.append(self._column(batch.column(index), name, failures))
        if self.spec.join is not None:
            found = [[self.spec.join.join(parts) for parts in zip(*found, strict=True)]]
        if self.spec.prefix:
            found[0] = [self.spec.prefix + text for text in found[0]]
        return found

    def _column(self, array: pa.Array, name: str, failures: RowFailures) -> list[str]:
        if pa.types.is_dictionary(array.type):
            array = array.dictionary_decode()
        texts: list[Any]
        try:
            texts = array.to_pylist()
        except UnicodeDecodeError:  # Arrow and Parquet do not validate the bytes of text
            texts = [self._decoded(value.as_buffer(), row, name, failures) for row, value in enumerate(array)]
        if array.null_count or pa.types.is_null(array.type):
            for row in np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False)).tolist():
                texts[row] = "" if self.spec.fill is None else self.spec.fill
                if self.spec.fill is None:
                    message = f'column "{name}" holds null; the model input "{self.spec.name}" needs text'
                    failures.setdefault(row, RowFailure("encode", "NullValue", message))
        return texts

    @staticmethod
    def _decoded(value: pa.Buffer | None, row: int, name: str, failures: RowFailures) -> str | None:
        try:
            return None if value is None else value.to_pybytes().decode()
        except UnicodeDecodeError as error:
            message = f'column "{name}" holds text that is not valid UTF-8: {error.reason}'
            failures.setdefault(row, RowFailure("encode", "UnicodeDecodeError", message))
            return ""

    def _tokenize(self, texts: list[list[str]]) -> list[Any]:
        """The encodings of the rows, of the tokenizers library."""
        if not texts[0]:
            return []
        encodings: list[Any] = self.tokenizer(
            *texts, truncation=True, max_length=self._max_length, return_attention_mask=False
        ).encodings
        return encodings

    @property
    def _max_length(self) -> int:
        limit = self.spec.max_length or self.tokenizer.model_max_length
        return int(limit) if limit < _NO_LIMIT else 512


def bind(spec: TextInput, _info: TensorInfo, batch: pa.RecordBatch, parameters: Sequence[str] = ()) -> BoundText:
    """Binds an input to the columns of `batch`; raises `UsageError` for a column that holds no text."""
    names = batch.schema.names
    texts = [field.name for field in batch.schema if _holds_text(field.type) and not pa.types.is_null(field.type)]
    if spec.columns or spec.name in names:
        columns = resolve_columns(spec, names)
    elif len(texts) == 1:
        columns = (texts[0],)
    else:
        found = f"columns of text are {', '.join(texts[:20])}" if texts else "no column holds text"
        raise UsageError(
            f'no column is named "{spec.name}" like the model input, and {found}; write its columns in a model.yaml'
        )
    for name in columns:
        if not _holds_text(kind := batch.schema.field(name).type):
            raise UsageError(f'column "{name}" holds {kind}; the text input "{spec.name}" needs text')
    if spec.join is None and len(columns) > 2:
        raise UsageError(
            f'the text input "{spec.name}" has {len(columns)} columns; set join, which makes them one text'
        )
    return BoundText(spec, columns, tuple(parameters))


def _holds_text(kind: pa.DataType) -> bool:
    return not is_list(kind) and (is_text(innermost(kind)) or pa.types.is_null(kind))


@functools.lru_cache(maxsize=16)
def open_tokenizer(folder: Path) -> Any:
    """The fast tokenizer of a directory; raises `UsageError` where there is no usable one."""
    try:
        from transformers import AutoTokenizer, PreTrainedTokenizerFast
        from transformers import logging as messages
    except ImportError:
        raise UsageError("encoder text needs transformers; pip install 'torchbeam[text]'") from None
    messages.set_verbosity_error()  # type: ignore[no-untyped-call]
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        raise UsageError(f"{folder} has no tokenizer (tokenizer.json); save one there with tokenizer.save_pretrained")
    try:
        if (folder / "tokenizer_config.json").is_file() or (folder / "config.json").is_file():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        else:
            tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))  # type: ignore[no-untyped-call]
    except Exception as error:
        raise UsageError(
            f"the tokenizer in {folder} cannot be opened: {type(error).__name__}: {one_line(error)}"
        ) from None
    if not tokenizer.is_fast:
        raise UsageError(f"the tokenizer in {folder} is slow; save it as a fast tokenizer (tokenizer.json)")
    return tokenizer
