"""The command on buckets: it reads, writes, finds the model and scores dead letters again."""

from __future__ import annotations

import gzip
import io
import json
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from cloud_runs import DEAD, PATHS, ROWS, as_parquet, check, expected, one_line, put_model, read, run
from copy_model import copy_model
from fake_stores import Store

from handlers import ModelDir
from handlers.model import stores
from transforms.sinks.write import Writer

pytestmark = pytest.mark.slow(50)


def test_scores_and_replays(ready: Store, model: Path, table: pa.Table, tmp_path: Path) -> None:
    assert run(ready, **PATHS) == 0
    check(ready, "out", expected(model, table))
    letters = read(ready, "out/dead_letters/")
    assert sorted(letters["id"].to_pylist()) == DEAD
    assert {letter["source"] for letter in letters["dead_letter"].to_pylist()} == {
        ready.url("in/x.parquet"),
        ready.url("in/y.parquet"),
    }

    (tmp_path / "mended").mkdir()
    for file in model.iterdir():
        (tmp_path / "mended" / file.name).write_bytes(file.read_bytes())
    settings = (tmp_path / "mended" / "model.yaml").read_text()
    (tmp_path / "mended" / "model.yaml").write_text(settings.replace("- name: x", "- name: x\n  fill: 2.5"))
    put_model(ready, tmp_path / "mended", "models/mended")
    assert run(ready, input="out/dead_letters", model="models/mended", output="out2", report="reports/r.json") == 0
    found = read(ready, "out2/predictions/")
    answers = {row: answer for row, answer in expected(model, table, fill=2.5).items() if row in DEAD}
    by_id = dict(zip(found["id"].to_pylist(), found["prediction"].to_pylist(), strict=True))
    assert by_id == pytest.approx(answers, abs=1e-6)
    assert json.loads(ready.get("reports/r.json"))["rows_scored"] == len(DEAD)
    assert "out2/report.json" not in ready.names()


def test_overwrite(ready: Store, model: Path, table: pa.Table, capsys: pytest.CaptureFixture[str]) -> None:
    ready.put("small/x.parquet", as_parquet(table.slice(600)))
    assert run(ready, **PATHS) == 0
    before = {name: ready.get(name) for name in ready.names("out")}
    capsys.readouterr()
    assert run(ready, **PATHS) == 2
    assert "--overwrite" in one_line(capsys)
    assert {name: ready.get(name) for name in ready.names("out")} == before
    assert run(ready, "--overwrite", **PATHS | {"input": "small"}) == 0
    check(ready, "out", expected(model, table.slice(600)))
    assert len(ready.names("out")) == 3


@pytest.mark.parametrize("output_format", ["jsonl", "csv"])
def test_text_formats(ready: Store, model: Path, table: pa.Table, output_format: str) -> None:
    rows = table.slice(10, 5)
    lines = "".join(json.dumps(row) + "\n" for row in rows.to_pylist()).encode()
    ready.put("text/day=2/rows.jsonl.gz", gzip.compress(lines))
    assert run(ready, f"--output_format={output_format}", **PATHS | {"input": "text/day=*/*.jsonl.gz"}) == 0
    [name] = ready.names("out/predictions/")
    reader = pd.read_csv if output_format == "csv" else partial(pd.read_json, lines=True)
    found = reader(io.BytesIO(ready.get(name)))
    assert dict(zip(found["id"], found["prediction"], strict=True)) == pytest.approx(expected(model, rows), abs=1e-6)
    assert set(found["day"]) == {2}
    [empty] = ready.names("out/dead_letters/")
    assert empty.endswith("-empty.jsonl" if output_format == "jsonl" else "-empty.parquet")
    assert output_format == "csv" or ready.get(empty) == b""


def test_files_roll(ready: Store, table: pa.Table) -> None:
    stores.connect({"output": ready.url("rolled")}, PipelineOptions(list(ready.options)))
    writer = Writer(ready.url("rolled"), table.schema, "parquet", max_bytes=2000)
    for batch in table.to_batches(100):
        writer.write(batch)
    parts = writer.finish()
    assert sum(part.rows for part in parts) == ROWS
    assert len(parts) > 2
    assert read(ready, "rolled").sort_by("id").equals(table)


def test_model_is_copied_once(ready: Store, model: Path) -> None:
    assert run(ready, **PATHS) == 0
    size = (model / "weights.safetensors").stat().st_size
    assert len([seen for seen in ready.proxy.seen if seen.answered == size]) == 1


def test_a_host_copies_a_model_once(store: Store, model: Path, tmp_path: Path) -> None:
    """Workers that start together wait for the one that copies."""
    weights = model / "weights.safetensors"
    url = put_model(store, model)
    stores.connect({"model": url}, PipelineOptions(list(store.options)))
    opened = ModelDir(url)
    (tmp_path / "host").mkdir()
    store.proxy.seen.clear()
    with ProcessPoolExecutor(3, get_context("spawn")) as workers:
        jobs = [workers.submit(copy_model, opened, list(store.options), str(tmp_path / "host")) for _ in range(3)]
        [copy] = {job.result() for job in jobs}
    assert (Path(copy) / "weights.safetensors").read_bytes() == weights.read_bytes()
    assert len([seen for seen in store.proxy.seen if seen.answered == weights.stat().st_size]) == 1


def test_a_model_by_itself(store: Store, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a program of one's own there may be no pipeline yet whose options Beam could take."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", store.proxy.url)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    assert ModelDir(put_model(store, model)).version == ModelDir(model).version
