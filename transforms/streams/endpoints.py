"""Where messages come from and go to, as the command line writes it: `SCHEME:…`. A scheme is a line in `SCHEMES`."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from handlers.errors import UsageError
from handlers.redact import redact
from transforms.streams.messages import Sink, Source

# The module of each scheme has `source(address, settings)` and `sink(address, settings, whole)`; it may have `delivery`.
SCHEMES = {
    "folder": ("transforms.streams.folder", "folder:DIR"),
}


@dataclass(frozen=True)
class Settings:
    """What sources and sinks are made with, beside their address. It has no secrets.

    Attributes:
        group: whose position is kept where messages come from.
        config: a file of the broker client's options, secrets among them; it is read where they are used.
    """

    group: str = "torchbeam"
    config: str | None = None


def source_of(address: str, settings: Settings, flag: str = "--input") -> Source:
    """The source at `address`; raises `UsageError` for one that cannot be."""
    made: Source = _module(address, flag).source(address, settings)
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
    made: Sink = _module(address, flag).sink(address, settings, whole=whole)
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
