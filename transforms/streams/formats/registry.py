"""A schema registry, and the framing of values by it: a zero byte, the id of the schema in four bytes, then the value."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import fastavro
import numpy as np

from handlers.errors import StreamError, UsageError, one_line
from handlers.failures import RowFailure, RowFailures
from transforms.avro_types import without_logical_types
from transforms.streams.decode import STAGE, Decoder, Rows
from transforms.streams.messages import Messages

if TYPE_CHECKING:
    import pyarrow as pa
    from confluent_kafka.schema_registry import SchemaRegistryClient

_FRAME = struct.Struct(">bI")
_UNKNOWN_SECONDS = 10.0  # so long an id counts as unknown before the registry is asked again
_NOT_FOUND = 404
_LIMITS = {"timeout": 10, "max.retries": 3, "retries.wait.ms": 200}  # seconds; by default a call may wait forever


class UnknownSchemaError(Exception):
    """The registry does not have the schema that a value was written with."""


def framed(value: bytes) -> tuple[int, int]:
    """The id of the schema of a value, and where its data begins; raises `ValueError` where it has none."""
    if len(value) < _FRAME.size or value[0] != 0:
        raise ValueError("it does not begin with the id of a schema: a zero byte and four bytes")
    return _FRAME.unpack_from(value)[1], _FRAME.size


@dataclass(frozen=True)
class SchemaRegistry:
    """A schema registry. It goes to the workers by its URL; secrets are read from the file where it is used.

    Attributes:
        url: of the registry.
        config: a file of `schema.registry.*` options, as `schema.registry.basic.auth.user.info=USER:PASSWORD`.
    """

    url: str
    config: str | None = None
    _known: dict[int, Any] = field(default_factory=dict, compare=False, repr=False)
    _unknown: dict[int, float] = field(default_factory=dict, compare=False, repr=False)
    _clients: list[Any] = field(default_factory=list, compare=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "config": self.config, "_known": {}, "_unknown": {}, "_clients": []}

    def avro(self, number: int) -> Any:
        """The Avro schema of an id, without logical types, as fastavro takes it.

        Raises:
            UnknownSchemaError: if the registry does not have it.
            StreamError: if the registry does not answer.
        """
        if number not in self._known:
            found = self._ask(number)
            try:
                self._known[number] = fastavro.parse_schema(without_logical_types(json.loads(found)))
            except Exception as error:
                raise UnknownSchemaError(f"schema {number} is no Avro schema: {one_line(error)}") from None
        return self._known[number]

    def check(self, number: int) -> None:
        """Raises as `avro` does, for a schema of any kind."""
        if number not in self._known:
            self._known[number] = self._ask(number)

    def newest(self, topic: str) -> Any:
        """The newest Avro schema of the values of `topic`, in its JSON form.

        Raises:
            UsageError: if there is none, or the registry does not answer.
        """
        subject = f"{topic}-value"
        try:
            found = self._client.get_latest_version(subject).schema.schema_str
        except Exception as error:
            if _is_missing(error):
                raise UsageError(
                    f'the schema registry has no subject "{subject}"; give the schema of the run as --schema=FILE'
                ) from None
            raise UsageError(f"the schema registry does not answer: {one_line(error)}") from None
        return json.loads(found or "")

    def reach(self) -> None:
        """Raises `UsageError` if the registry does not answer."""
        try:
            self._client.get_subjects()
        except UsageError:
            raise
        except Exception as error:
            raise UsageError(f"the schema registry does not answer: {one_line(error)}") from None

    def _ask(self, number: int) -> str:
        if time.monotonic() - self._unknown.get(number, -_UNKNOWN_SECONDS) < _UNKNOWN_SECONDS:
            raise UnknownSchemaError(f"the schema registry has no schema {number}")
        try:
            found = self._client.get_schema(number).schema_str or ""
        except Exception as error:
            if _is_missing(error):
                self._unknown[number] = time.monotonic()
                raise UnknownSchemaError(f"the schema registry has no schema {number}") from None
            raise StreamError(f"the schema registry does not answer: {one_line(error)}") from None
        return found

    @property
    def _client(self) -> SchemaRegistryClient:
        if not self._clients:
            try:
                from confluent_kafka.schema_registry import SchemaRegistryClient
            except ImportError:
                raise UsageError("--schema_registry needs confluent-kafka; pip install 'torchbeam[stream]'") from None
            try:
                self._clients.append(SchemaRegistryClient({"url": self.url, **_LIMITS, **_options(self.config)}))
            except ValueError as error:
                raise UsageError(f"--schema_registry: {one_line(error)}") from None
        client: SchemaRegistryClient = self._clients[0]
        return client


def _is_missing(error: Exception) -> bool:
    return getattr(error, "http_status_code", None) == _NOT_FOUND


def _options(config: str | None) -> dict[str, str]:
    """The options of the registry's client in a file of `name=value` lines."""
    prefix = "schema.registry."
    if config is None:
        return {}
    try:
        with open(config) as file:  # noqa: PTH123
            lines = [line.strip() for line in file]
    except OSError as error:
        raise UsageError(f"{config} cannot be read: {error.strerror}") from None
    pairs = (line.partition("=") for line in lines if line.startswith(prefix))
    return {
        name.strip().removeprefix(prefix): value.strip() for name, _, value in pairs if name.strip() != f"{prefix}url"
    }


@dataclass(frozen=True)
class FramedDecoder:
    """Takes the id of the schema off values and gives them to another decoder, as for JSON with a schema registry.

    Attributes:
        inner: reads what is behind the id.
        registry: must have the schema.
    """

    inner: Decoder
    registry: SchemaRegistry

    @property
    def schema(self) -> pa.Schema:
        """The columns of the rows."""
        return self.inner.schema

    def rows(self, values: list[bytes], messages: Messages, indices: Sequence[int]) -> Rows:
        """The rows of `values`; see `Decoder`."""
        good: list[int] = []
        failures: RowFailures = {}
        for index, value in enumerate(values):
            try:
                self.registry.check(framed(value)[0])
                good.append(index)
            except UnknownSchemaError as error:
                failures[index] = RowFailure(STAGE, "UnknownSchema", str(error))
            except ValueError as error:
                failures[index] = RowFailure(STAGE, "ValueError", str(error))
        rows = self.inner.rows(
            [values[index][_FRAME.size :] for index in good], messages, [indices[index] for index in good]
        )
        failures |= {good[row]: failure for row, failure in rows.failures.items()}
        kept = rows.indices if len(good) == len(values) else [good[row] for row in rows.indices.tolist()]
        return replace(rows, indices=np.asarray(kept, np.int64), failures=failures)
