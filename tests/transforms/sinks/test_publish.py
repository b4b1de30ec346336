import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.io.filesystem import FileMetadata
from apache_beam.io.localfilesystem import LocalFileSystem
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that, equal_to

from handlers.columnar.chunks import DEAD_LETTER, dead_letter_schema, dead_letters, with_provenance
from handlers.errors import AccountingError, PublishError
from handlers.failures import RowFailure
from transforms import file_ops
from transforms.accounting import Counts
from transforms.file_ops import join
from transforms.sinks import publish as publishing
from transforms.sinks.publish import (
    Publication,
    Publish,
    left_over,
    publish,
    publish_run,
    reports,
)
from transforms.sinks.temporary import clean_up, temporary_folder
from transforms.sinks.write import Part, WriteChunks, Writer

SCHEMA = pa.schema([("n", pa.int64())])
REPORT = {"rows_read": 6}


class RemoteFileSystem(LocalFileSystem):
    """An object store in miniature: `remote:///a/b` is the local file `/a/b`, and there are no folders."""

    @classmethod
    def scheme(cls) -> str:
        return "remote"

    def has_dirs(self) -> bool:
        return False

    def mkdirs(self, path: str) -> None:
        Path(local(path)).mkdir(parents=True, exist_ok=True)

    def create(self, path: str, *args: Any, **kwargs: Any) -> Any:
        return super().create(local(path), *args, **kwargs)

    def open(self, path: str, *args: Any, **kwargs: Any) -> Any:
        return super().open(local(path), *args, **kwargs)

    def exists(self, path: str) -> bool:
        return Path(local(path)).is_file()

    def metadata(self, path: str) -> FileMetadata:
        return FileMetadata(path, Path(local(path)).stat().st_size)

    def _list(self, dir_or_prefix: str) -> Any:
        for folder, _, names in os.walk(Path(local(f"{dir_or_prefix}x")).parent):
            for name in names:
                yield self.metadata(f"remote://{folder}/{name}")

    def rename(self, source_file_names: list[str], destination_file_names: list[str]) -> None:
        super().rename([local(path) for path in source_file_names], [local(path) for path in destination_file_names])

    def delete(self, paths: list[str]) -> None:
        for path in paths:
            Path(local(path)).unlink()


def local(path: str) -> str:
    return path.removeprefix("remote://")


def publication(output: Path | str, **options: Any) -> Publication:
    fields = {"run_id": "r1", "predictions": SCHEMA, "dead_letters": dead_letter_schema(SCHEMA), **options}
    return Publication(str(output), **fields, started=time.time() - 2)


def batch(*numbers: int) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({"n": list(numbers)}, schema=SCHEMA)


def dead(*numbers: int) -> pa.RecordBatch:
    chunk = with_provenance(batch(*numbers), "a.parquet", 0)
    return dead_letters(chunk, [RowFailure("encode", "ValueError", "bad")] * chunk.num_rows, "v")


def parts(run: Publication, name: str, batches: list[pa.RecordBatch]) -> list[Part]:
    """Writes each batch to a part of its own."""
    found = []
    for rows in batches:
        letters = name == "dead_letters"
        schema, kind = (run.dead_letters, run.dead_letter_format) if letters else (run.predictions, run.output_format)
        writer = Writer(join(temporary_folder(run.output, run.run_id), name), schema, kind)
        writer.write(rows)
        found += writer.finish()
    return found


def numbers(folder: Path) -> list[int]:
    return sorted(n for path in folder.glob("part-*.parquet") for n in pq.read_table(path)["n"].to_pylist())


def everything(output: Path) -> list[str]:
    return sorted(str(path.relative_to(output)) for path in output.rglob("*") if path.is_file())


def test_a_run_is_published_whole(tmp_path: Path) -> None:
    output = tmp_path / "out [1]"  # what Beam takes for a pattern
    run = publication(output)
    predictions = parts(run, "predictions", [batch(0, 1), batch(2)])
    letters = parts(run, "dead_letters", [dead(3)])
    parts(run, "predictions", [batch(99)])  # of an attempt that failed: nobody was told of it

    publish(run, predictions, letters, [{"path": "b.csv", "error": "broken", "rows": 0}], REPORT)

    names = [Path(part.path).name.removeprefix("part-") for part in predictions]
    assert everything(output) == [
        f"dead_letters/part-r1-{Path(letters[0].path).name.removeprefix('part-')}",
        "failed_files.jsonl",
        f"predictions/part-r1-{names[0]}",
        f"predictions/part-r1-{names[1]}",
        "report.json",
    ]
    assert numbers(output / "predictions") == [0, 1, 2]
    assert numbers(output / "dead_letters") == [3]
    assert (output / "failed_files.jsonl").read_text() == '{"path": "b.csv", "error": "broken", "rows": 0}\n'
    assert json.loads((output / "report.json").read_text()) == {"rows_read": 6, "run_id": "r1"}
    assert reports(str(output))


@pytest.mark.parametrize(("output_format", "content"), [("parquet", None), ("csv", '"n"\n'), ("jsonl", "")])
def test_a_run_without_rows_leaves_empty_files(tmp_path: Path, output_format: str, content: str | None) -> None:
    publish(publication(tmp_path, output_format=output_format), [], [], [], REPORT)

    letters = "parquet" if output_format == "csv" else output_format
    assert everything(tmp_path) == [
        f"dead_letters/part-r1-empty.{letters}",
        f"predictions/part-r1-empty.{output_format}",
        "report.json",
    ]
    path = tmp_path / "predictions" / f"part-r1-empty.{output_format}"
    if content is None:
        assert pq.read_table(path).schema == SCHEMA
    else:
        assert path.read_text() == content


def test_publishing_again_changes_nothing(tmp_path: Path) -> None:
    for overwrite in (False, True):
        run = publication(tmp_path / str(overwrite), overwrite=overwrite)
        arguments = (
            parts(run, "predictions", [batch(0, 1), batch(2)]),
            parts(run, "dead_letters", [dead(3)]),
            [],
            REPORT,
        )
        publish(run, *arguments)
        before = everything(Path(run.output))

        publish(run, *arguments)

        assert everything(Path(run.output)) == before
        assert numbers(Path(run.output) / "predictions") == [0, 1, 2]


class StopHereError(Exception):
    pass


def failing(call: Callable[..., Any], at: int) -> Callable[..., Any]:
    """`call`, whose call number `at` fails."""
    calls = 0

    def once(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            raise StopHereError
        return call(*args)

    return once


@pytest.mark.parametrize(
    ("module", "step"),
    [
        (file_ops, "_rename_local"),
        (publishing, "remove_tree"),
        (publishing, "write_text"),
        (publishing, "write_empty"),
    ],
)
@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize("overwrite", [False, True])
def test_an_interrupted_attempt_is_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: ModuleType, step: str, at: int, overwrite: bool
) -> None:
    if overwrite:
        old = publication(tmp_path, run_id="old")
        publish(old, parts(old, "predictions", [batch(70, 71)]), [], [{"path": "x", "error": "e", "rows": 0}], REPORT)
    run = publication(tmp_path, overwrite=overwrite)
    arguments = (parts(run, "predictions", [batch(0), batch(1), batch(2)]), [], [], REPORT)
    monkeypatch.setattr(module, step, failing(getattr(module, step), at))
    try:
        publish(run, *arguments)
    except StopHereError:
        assert not reports(str(tmp_path))
        publish(run, *arguments)

    assert numbers(tmp_path / "predictions") == [0, 1, 2]
    assert reports(str(tmp_path))
    assert len(everything(tmp_path)) == 5  # three parts, an empty file of dead letters, the report


def test_an_attempt_that_is_given_other_files_publishes_those(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = publication(tmp_path)
    first = parts(run, "predictions", [batch(0), batch(1), batch(2)])
    with monkeypatch.context() as patch:
        patch.setattr(file_ops, "_rename_local", failing(file_ops._rename_local, 3))
        with pytest.raises(StopHereError):
            publish(run, first, [], [], REPORT)
    again = parts(run, "predictions", [batch(0)])  # a worker was lost, and the first bundle was computed again

    publish(run, [*first[1:], *again], [], [], REPORT)

    assert numbers(tmp_path / "predictions") == [0, 1, 2]


def test_a_file_that_is_gone_is_an_error_and_the_old_run_stays(tmp_path: Path) -> None:
    old = publication(tmp_path, run_id="old")
    publish(old, parts(old, "predictions", [batch(7)]), [], [], REPORT)
    run = publication(tmp_path, overwrite=True)
    predictions = parts(run, "predictions", [batch(0), batch(1)])
    Path(predictions[1].path).unlink()

    with pytest.raises(
        PublishError, match=r"1 files to publish in .*predictions are missing, the first is .*run again"
    ):
        publish(run, predictions, [], [], REPORT)
    assert numbers(tmp_path / "predictions") == [7]
    assert reports(str(tmp_path))


def test_overwriting_replaces_a_run_and_leaves_what_is_not_its(tmp_path: Path) -> None:
    old = publication(tmp_path, run_id="old", output_format="csv")
    failed = [{"path": "x", "error": "e", "rows": 0}]
    publish(old, parts(old, "predictions", [batch(7)]), parts(old, "dead_letters", [dead(8)]), failed, REPORT)
    (tmp_path / "predictions" / "notes.txt").write_text("mine")
    (tmp_path / "mine.txt").write_text("mine")
    run = publication(tmp_path, overwrite=True)

    publish(run, parts(run, "predictions", [batch(0)]), [], [], REPORT)

    (prediction,) = (tmp_path / "predictions").glob("part-*")
    assert everything(tmp_path) == [
        "dead_letters/part-r1-empty.parquet",
        "mine.txt",
        "predictions/notes.txt",
        f"predictions/{prediction.name}",
        "report.json",
    ]
    assert numbers(tmp_path / "predictions") == [0]


def test_without_overwrite_two_runs_are_never_mixed(tmp_path: Path) -> None:
    old = publication(tmp_path, run_id="old", report_path=str(tmp_path / "elsewhere.json"))
    publish(old, parts(old, "predictions", [batch(7)]), [], [], REPORT)
    before = everything(tmp_path)
    run = publication(tmp_path)
    predictions = parts(run, "predictions", [batch(0)])

    assert not reports(str(tmp_path))
    assert reports(str(tmp_path), str(tmp_path / "elsewhere.json"))
    assert len(left_over(str(tmp_path))) == 2
    with pytest.raises(PublishError, match=r"holds files of another run .*--overwrite"):
        publish(run, predictions, [], [], REPORT)
    clean_up(str(tmp_path), "r1")
    assert everything(tmp_path) == before

    shutil.rmtree(tmp_path / "predictions")
    shutil.rmtree(tmp_path / "dead_letters")
    (tmp_path / "report.json").write_text("not ours")
    with pytest.raises(PublishError, match=r"report\.json is the report of another run"):
        publish(run, predictions, [], [], REPORT)


def test_the_report_goes_where_it_is_wanted(tmp_path: Path) -> None:
    report_path = str(tmp_path / "reports" / "today.json")
    run = publication(tmp_path / "out", report_path=report_path)

    publish(run, [], [], [], REPORT)

    assert reports(run.output, report_path)
    assert not reports(run.output)
    assert everything(tmp_path / "reports") == ["today.json"]


def test_a_remote_folder_is_published_through_beam(tmp_path: Path) -> None:
    output = f"remote://{tmp_path}"
    old = publication(output, run_id="old")
    publish(old, parts(old, "predictions", [batch(7)]), [], [{"path": "x", "error": "e", "rows": 0}], REPORT)
    run = publication(output, overwrite=True)
    arguments = (parts(run, "predictions", [batch(0), batch(1)]), parts(run, "dead_letters", [dead(3)]), [], REPORT)

    publish(run, *arguments)
    publish(run, *arguments)

    assert len(everything(tmp_path)) == 4
    assert numbers(tmp_path / "predictions") == [0, 1]
    assert reports(output)


def score(pipeline: beam.Pipeline, run: Publication, counts: list[Counts]) -> beam.PCollection:
    folder = temporary_folder(run.output, run.run_id)
    chunks = pipeline | beam.Create([0, 10]) | beam.Map(lambda n: batch(n, n + 1)).with_output_types(pa.RecordBatch)
    bad = pipeline | "bad" >> beam.Create([5]) | "dead" >> beam.Map(dead).with_output_types(pa.RecordBatch)
    outputs = {
        "predictions": chunks | WriteChunks(join(folder, "predictions"), run.predictions, run.output_format),
        "dead_letters": bad
        | "WriteDead" >> WriteChunks(join(folder, "dead_letters"), run.dead_letters, run.dead_letter_format),
        "failed_files": pipeline | "failed" >> beam.Create([{"path": "b.csv", "error": "broken", "rows": 0}]),
        "counts": pipeline | "counts" >> beam.Create(counts),
    }
    return outputs | "PublishAll" >> Publish(run)


READ = Counts(rows_read=5, files_read=1, files_dead=1)
SCORED = Counts(rows_scored=4, rows_dead=1, dead_by_error={"encode/ValueError": 1})


def test_a_pipeline_publishes_itself(tmp_path: Path) -> None:
    run = publication(tmp_path, model_name="credit", model_version="v7", runner="FnApiRunner")
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        reports = score(pipeline, run, [READ, SCORED])
        assert_that(reports | beam.Map(lambda report: report["rows_scored"]), equal_to([4]))

    assert numbers(tmp_path / "predictions") == [0, 1, 10, 11]
    (letter,) = pq.read_table(tmp_path / "dead_letters").to_pylist()
    assert (letter["n"], letter[DEAD_LETTER]["source"]) == (5, "a.parquet")
    assert (tmp_path / "failed_files.jsonl").exists()
    assert not Path(temporary_folder(str(tmp_path), "r1")).exists()
    found = json.loads((tmp_path / "report.json").read_text())
    assert (found["rows_read"], found["rows_scored"], found["rows_dead"], found["files_dead"]) == (5, 4, 1, 1)
    assert (found["model"], found["runner"]) == ({"name": "credit", "version": "v7"}, "FnApiRunner")
    assert 2 <= found["seconds"] < 60
    assert found["dead_by_error"] == {"encode/ValueError": 1}


def test_nothing_is_published_where_a_row_is_missing(tmp_path: Path) -> None:
    run = publication(tmp_path)
    with (
        pytest.raises(Exception, match="6 rows were read, but 4 scored"),
        beam.Pipeline(runner=FnApiRunner()) as pipeline,
    ):
        score(pipeline, run, [READ, SCORED, Counts(rows_read=1)])

    assert not reports(str(tmp_path))
    assert not (tmp_path / "predictions").exists()
    clean_up(str(tmp_path), "r1")
    clean_up(str(tmp_path), "r1")
    assert everything(tmp_path) == []


def test_a_folder_that_is_kept_takes_files_that_are_computed_again(tmp_path: Path) -> None:
    run = publication(tmp_path, keep_folder=True)
    folder = Path(temporary_folder(run.output, run.run_id))
    counts = Counts(rows_read=2, rows_scored=2)
    for _ in range(2):  # the second time by a runner that has lost what the first one told
        publish_run(run, parts(run, "predictions", [batch(0, 1)]), [], [], counts)
        assert list(folder.iterdir()) == []
        assert numbers(tmp_path / "predictions") == [0, 1]


def test_a_run_that_has_ended_publishes_nothing(tmp_path: Path) -> None:
    run = publication(tmp_path, keep_folder=True)
    with pytest.raises(PublishError, match=r"_tmp-r1 was removed.*nothing is published; run again"):
        publish_run(run, [], [], [], Counts())
    assert list(tmp_path.iterdir()) == []


def test_the_files_must_hold_the_rows_that_were_counted(tmp_path: Path) -> None:
    run = publication(tmp_path)

    with pytest.raises(AccountingError, match="3 rows were counted for predictions, but its files hold 2"):
        publish_run(run, parts(run, "predictions", [batch(0, 1)]), [], [], Counts(rows_read=3, rows_scored=3))
    assert not (tmp_path / "predictions").exists()
