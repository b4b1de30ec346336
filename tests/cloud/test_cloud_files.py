"""Finding files in buckets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from cloud_runs import DEAD, as_parquet, expected
from fake_stores import Store

import torchbeam
from handlers.errors import UsageError
from handlers.model import stores
from transforms.sources import plan_input
from transforms.sources.files import find_files

pytestmark = pytest.mark.slow(15)


@pytest.fixture
def layout(store: Store) -> Store:
    stores.connect({"input": store.url("")}, PipelineOptions(list(store.options)))
    for name in ("day=1/x.parquet", "day=2/[x].parquet", "day=2/x y.parquet", "_hidden/z.parquet", "day=2/"):
        store.put(f"hive/{name}", b"" if name.endswith("/") else b"1234")
    return store


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("hive", ["day=1/x", "day=2/[x]", "day=2/x y"]),
        ("hive/", ["day=1/x", "day=2/[x]", "day=2/x y"]),
        ("hive/*/x*.parquet", ["day=1/x", "day=2/x y"]),
        ("hive/**/*.parquet", ["day=1/x", "day=2/[x]", "day=2/x y"]),
        ("hive/day=2/[x].parquet", ["day=2/[x]"]),
        ("", ["day=1/x", "day=2/[x]", "day=2/x y"]),
    ],
)
def test_found(layout: Store, pattern: str, found: list[str]) -> None:
    files = find_files(layout.url(pattern))
    assert [file.path for file in files] == [layout.url(f"hive/{name}.parquet") for name in found]
    assert {file.size for file in files} == {4}
    if pattern != "hive/day=2/[x].parquet":
        assert [dict(file.partitions)["day"] for file in files] == [name[4] for name in found]


def test_a_bucket_without_slash(layout: Store) -> None:
    assert len(find_files(layout.url("").rstrip("/"))) == 3


def test_nothing_there(layout: Store) -> None:
    with pytest.raises(UsageError, match="no file matches"):
        find_files(layout.url("hiv"))


def test_a_footer_is_read_alone(layout: Store) -> None:
    """Row counts and columns of a Parquet file are known without its data."""
    numbers = np.random.default_rng(5).normal(size=2_000_000)
    content = as_parquet(pa.table({"a": numbers}), 500_000)
    assert len(content) > 15_000_000
    layout.put("large.parquet", content)
    layout.proxy.seen.clear()
    assert plan_input(layout.url("large.parquet")).rows == 2_000_000
    assert 0 < sum(seen.answered for seen in layout.proxy.seen) < 1_000_000


def test_score_in_python(ready: Store, model: Path, table: pa.Table) -> None:
    """A folder in the bucket, scored in this process by a model of the bucket."""
    stores.connect({}, PipelineOptions(list(ready.options)))
    found = torchbeam.score(ready.url("models/linear"), ready.url("in"), device="cpu")
    answers = dict(zip(found.predictions["id"].to_pylist(), found.predictions["prediction"].to_pylist(), strict=True))
    assert answers == pytest.approx(expected(model, table), abs=1e-6)
    assert found.dead_letters["id"].to_pylist() == DEAD
    assert found.dead_letters["dead_letter"][0].as_py()["source"] == ready.url("in/x.parquet")
    with pytest.raises(UsageError, match="no file matches") as caught:
        torchbeam.score(model, ready.url("nothing"))
    assert "\n" not in str(caught.value)
