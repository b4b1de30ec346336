"""What a contestant is given, and the clock that it stops."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Job:
    """One run of one contestant.

    Attributes:
        input: a folder of files of one format.
        format: parquet, csv, jsonl (both may be compressed) or rows: Python objects, made by the contestant's process.
        rows: how many rows there are.
        model: the model directory.
        output: an absent folder; Parquet files are written into it, or into its folder `predictions`.
        settings: numbers and names of the contestant, such as `batch_rows`.
    """

    input: str
    format: str
    rows: int
    model: str
    output: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """Its text for the command line of the process."""
        return json.dumps(asdict(self))

    @property
    def files(self) -> list[Path]:
        """The files of the input, in order."""
        return sorted(Path(self.input).iterdir())


class Clock:
    """Measures the part of a run that is the work: without imports, the start of an engine, and a model that is loaded once."""

    seconds: float | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Measures the block."""
        begin = time.perf_counter()
        yield
        self.seconds = time.perf_counter() - begin
