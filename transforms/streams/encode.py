"""From scored messages to messages that go out: predictions, dead letters and accounts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from transforms.sinks.formats.jsonl import json_lines
from transforms.streams.accounts import Accounts
from transforms.streams.messages import Headers, OutMessage
from transforms.streams.scored import ScoredMessages

MESSAGE_ID = "message_id"  # the column of predictions
ID_HEADER = "torchbeam-id"
ERROR_HEADER = "torchbeam-error"
ERROR_BYTES = 1024  # what an attribute of Pub/Sub may have
_OURS = (ID_HEADER, ERROR_HEADER)


@dataclass(frozen=True)
class Outputs:
    """What a chunk gives.

    Attributes:
        predictions: a JSON object for each scored message, under its key, headers and event time.
        dead_letters: the messages that were not scored, as they came, with the reason in the headers.
        accounts: one message of counts.
    """

    predictions: Sequence[OutMessage]
    dead_letters: Sequence[OutMessage]
    accounts: Sequence[OutMessage]


def outputs_of(scored: ScoredMessages, accounts: Accounts) -> Outputs:
    """The messages that a chunk gives."""
    return Outputs(predictions_of(scored), dead_letters_of(scored), [_account(scored, accounts)])


def predictions_of(scored: ScoredMessages) -> list[OutMessage]:
    """The predictions in JSON, with the id of their message."""
    messages, batch = scored.messages, scored.predictions
    if not batch.num_rows:
        return []
    indices = scored.indices.tolist()
    names = [messages.id(index) for index in indices]
    table = pa.Table.from_batches([batch.append_column(MESSAGE_ID, pa.array(names, pa.string()))])
    lines = json_lines(table).rstrip(b"\n").split(b"\n")
    keys, headers, times = messages.keys, messages.headers, messages.times
    return [
        OutMessage(keys[index], line, (*_kept(headers[index]), (ID_HEADER, name.encode())), times[index])
        for index, name, line in zip(indices, names, lines, strict=True)
    ]


def dead_letters_of(scored: ScoredMessages) -> list[OutMessage]:
    """The messages that were not scored, byte for byte, in their order."""
    messages = scored.messages
    found = []
    for index in sorted(scored.failures):
        failure = scored.failures[index]
        error = {
            "stage": failure.stage,
            "type": failure.type,
            "message": failure.message,
            "model_version": scored.model_version,
            "source": messages.source,
            "partition": messages.partition,
            "offset": int(messages.offsets[index]),
        }
        headers = (
            *_kept(messages.headers[index]),
            (ID_HEADER, messages.id(index).encode()),
            (ERROR_HEADER, _within(error, ERROR_BYTES)),
        )
        found.append(OutMessage(messages.keys[index], messages.values[index], headers, messages.times[index]))
    return found


def _within(error: dict[str, Any], limit: int) -> bytes:
    """`error` in JSON, its message cut where it would have more than `limit` bytes."""
    while len(encoded := json.dumps(error, ensure_ascii=False).encode(errors="backslashreplace")) > limit:
        message = error["message"]
        if not message:
            break
        error = error | {"message": message[: min(len(message) - 1, len(message) * limit // len(encoded))]}
    return encoded


def _account(scored: ScoredMessages, accounts: Accounts) -> OutMessage:
    messages = scored.messages
    key = f"{messages.source}/{messages.partition}".encode()
    return OutMessage(key, accounts.as_json(), ((ID_HEADER, accounts.id.encode()),), messages.times[-1])


def _kept(headers: Headers) -> Headers:
    """The headers of a message without those of an earlier run: its own come in their place."""
    if headers and any(name in _OURS for name, _ in headers):
        return tuple(header for header in headers if header[0] not in _OURS)
    return headers
