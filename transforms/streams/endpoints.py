"""Where messages come from and go to, as the command line writes it: `SCHEME:…`. A scheme is a line in `SCHEMES`."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, Literal

from handlers.errors import UsageError
from handlers.redact import redact
from transforms.streams.messages import Sink, Source

# The module of each scheme has `source(address, settings, flag)` and `sink(address, settings, flag, whole)`, and
# `EXACTLY_ONCE`, if its sources then have a `delivery` of their own.
SCHEMES = {
    "folder": ("transforms.streams.folder", "folder:DIR"),
    "kafka": ("transforms.streams.kafka", "kafka://HOST:9092/TOPIC"),
    "pubsub": ("transforms.streams.pubsub", "pubsub://PROJECT/topics/NAME"),
}


@dataclass(frozen=True)
class Settings:
    """What sources and sinks are made with, beside their address. It has no secrets.

    Attributes:
        group: whose position is kept where messages come from; None for a name that the source chooses.
        config: a file of the broker client's options, secrets among them; it is read where they are used.
        begin: where a partition begins for which no position is kept.
        exactly_once: whether outputs and positions are written in one transaction.
        output: the address of the predictions, which is part of the name that a source may choose.
    """

    group: str | None = None
    config: str | None = None
    begin: Literal["earliest", "latest"] = "earliest"
    exactly_once: bool = False
    output: str = ""


def source_of(address: str, settings: Settings, flag: str = "--input") -> Source:
    """The source at `address`; raises `UsageError` for one that cannot be."""
    module = _module(address, flag)
    if settings.exactly_once and not getattr(module, "EXACTLY_ONCE", False):
        raise UsageError(
            f"--delivery=exactly_once needs a source with transactions, as kafka://HOST:9092/TOPIC, and {flag} "
            f'"{redact(address)}" has none; leave it out: outputs carry the ids by which they can be deduplicated'
        )
    made: Source = module.source(address, settings, flag)
    return made


def sink_of(address: str, settings: Settings, flag: str, *, whole: bool = False) -> Sink:
    """The sink at `address`.

    Args:
        address: `SCHEME:…`.
        settings: beside it.
        flag: for errors.
        whole: whether messages go out with all that they have, as dead letters do, where files would hold values only.

    Raises:
        UsageError: for an address that cannot be.
    """
    made: Sink = _module(address, flag).sink(address, settings, flag, whole=whole)
    return made


def scheme_of(address: str) -> str:
    """The part before the first colon."""
    return address.partition(":")[0]


def _module(address: str, flag: str) -> Any:
    scheme = scheme_of(address)
    if ":" not in address or scheme not in SCHEMES:
        known = ", ".join(example for _, example in SCHEMES.values())
        raise UsageError(f'{flag} "{redact(address)}" is no stream; write it as one of {known}')
    return importlib.import_module(SCHEMES[scheme][0])
