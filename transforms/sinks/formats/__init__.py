"""The output formats. A new one is a module with a `SINK`, added to `SINKS`."""

from __future__ import annotations

from handlers.errors import UsageError
from transforms.sinks.formats import avro, delimited, jsonl, parquet
from transforms.sinks.formats.sink import Encoder, Sink

__all__ = ["SINKS", "Encoder", "Sink", "dead_letter_format", "sink"]

SINKS: dict[str, Sink] = {each.SINK.name: each.SINK for each in (parquet, delimited, jsonl, avro)}


def sink(output_format: str) -> Sink:
    """The sink for `output_format`."""
    if output_format not in SINKS:
        raise UsageError(f"--output_format={output_format}: unknown; write one of {', '.join(SINKS)}")
    return SINKS[output_format]


def dead_letter_format(output_format: str) -> str:
    """The format of the dead letters of a run: `output_format`, or Parquet instead of CSV, which has no structs."""
    return "parquet" if output_format == "csv" else output_format
