"""A table, a stand-in for Dataflow, and the command that sends a job over the one to the other."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_dataflow import FakeDataflow, fake_dataflow, launch_arguments
from poisoned_table import Table


@pytest.fixture
def service() -> Iterator[FakeDataflow]:
    with fake_dataflow() as fake:
        yield fake


@pytest.fixture
def table(tmp_path: Path, poisoned: Table) -> Path:
    good = [row for row in range(3000) if row not in poisoned.poison]
    pq.write_table(poisoned.table.take(pa.array(good)), tmp_path / "in.parquet")
    return tmp_path / "in.parquet"


@pytest.fixture
def command(table: Path, model: Path, tmp_path: Path, service: FakeDataflow) -> list[str]:
    paths = [f"--input={table}", f"--model={model}", f"--output={tmp_path / 'out'}"]
    return ["--runner=DataflowRunner", *paths, *launch_arguments(tmp_path / "staging", service.url)]
