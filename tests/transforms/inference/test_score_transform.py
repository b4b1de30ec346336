"""`Score` in pipelines of one's own: chunks from anywhere, every row accounted for."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.testing.util import assert_that
from apache_beam.transforms.window import FixedWindows, SlidingWindows, TimestampedValue
from small_models import Sum

from handlers import Batching, ModelDir, Placement, ResourceHints
from handlers.errors import BrokenModelError, UsageError
from transforms import Score
from transforms.accounting import Counts, total

SCHEMA = pa.schema({"id": pa.int64(), "a": pa.float64(), "b": pa.float64(), "name": pa.string()})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelDir:
    folder = tmp_path_factory.mktemp("sum") / "model"
    return ModelDir.save(Sum(), folder, task="regression", inputs=[{"name": "x", "columns": ["a", "b"]}])


def batch(first: int, rows: int, **others: Any) -> pa.RecordBatch:
    ids = range(first, first + rows)
    columns = {"id": list(ids), "a": [each / 2 for each in ids], "b": [1.0] * rows, "name": [f"n{i}" for i in ids]}
    return pa.record_batch({**columns, **others}, schema=None if others else SCHEMA)


def check(expected: list[Any]) -> Callable[[list[Any]], None]:
    def matcher(got: list[Any]) -> None:
        assert sorted(got) == sorted(expected), got

    return matcher


def answers(scored: pa.RecordBatch) -> list[tuple[int, float]]:
    return list(zip(scored.column("id").to_pylist(), scored.column("prediction").to_pylist(), strict=True))


def letters(dead: pa.RecordBatch) -> list[tuple[int, str, str, int]]:
    found = [(row["id"], row["dead_letter"]) for row in dead.to_pylist()]
    return [(id_, f"{each['stage']}/{each['type']}", each["source"].split("#")[0], each["row"]) for id_, each in found]


def test_a_schema_is_enough(model: ModelDir) -> None:
    score = Score(model.path, SCHEMA, columns=["id", "name"], source="orders", batching=Batching(chunk_rows=30))
    assert score.predictions_schema.names == ["id", "name", "prediction", "model_version"]
    assert score.dead_letters_schema.names == [*SCHEMA.names, "dead_letter"]
    assert score.needed == {"a", "b"}
    chunks = [
        batch(0, 20),  # row 13 / 2 is fine, 26 is not
        batch(20, 20),
        batch(40, 2, a=[None, float("inf")]),
        batch(42, 2, a=["0.5", "half"]),
        batch(44, 3).select(["id", "name"]),
        batch(47, 0),
    ]
    dead = [
        (26, "forward/RuntimeError", "orders", 6),
        (40, "encode/NullValue", "orders", 0),
        (41, "encode/NotFinite", "orders", 1),
        (43, "read/ValueError", "orders", 1),
        *((44 + row, "read/MissingColumn", "orders", row) for row in range(3)),
    ]
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        scored = pipeline | beam.Create(chunks) | score
        good = [(id_, id_ / 2 + 1) for id_ in range(40) if id_ != 26]
        assert_that(scored.predictions | beam.FlatMap(answers), check([*good, (42, 1.5)]), "good")
        assert_that(scored.dead_letters | beam.FlatMap(letters), check(dead), "dead")
        schemas = scored.predictions | "S" >> beam.Map(lambda each: each.schema.equals(score.predictions_schema))
        assert_that(schemas | beam.Distinct(), check([True]), "schema")
        dead_schemas = scored.dead_letters | "D" >> beam.Map(lambda each: each.schema.equals(score.dead_letters_schema))
        assert_that(dead_schemas | "DD" >> beam.Distinct(), check([True]), "dead schema")
        counts = scored.counts | beam.CombineGlobally(total)
        assert_that(counts | beam.Map(lambda each: (each.rows_scored, each.rows_dead)), check([(40, 7)]), "counts")


def test_tables_of_beams_own_parquet_source(model: ModelDir, tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_batches([batch(0, 10)]), tmp_path / "in.parquet")
    score = Score(model, pq.read_schema(tmp_path / "in.parquet"))
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        scored = pipeline | beam.io.ReadFromParquetBatched(str(tmp_path / "in.parquet")) | score
        assert_that(scored.predictions | beam.FlatMap(answers), check([(id_, id_ / 2 + 1) for id_ in range(10)]))


@pytest.mark.parametrize("windows", [FixedWindows(10), SlidingWindows(20, 10)])
def test_windows_keep_their_rows(model: ModelDir, windows: Any) -> None:
    """Each row is in the predictions of each of its windows, and the counts of a window are those of its rows."""
    copies = 2 if isinstance(windows, SlidingWindows) else 1

    class Window(beam.DoFn):
        def process(self, element: Any, window: Any = beam.DoFn.WindowParam) -> Any:
            yield int(window.start), element

    score = Score(model, SCHEMA)
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        chunks = pipeline | beam.Create([(batch(0, 4), 1), (batch(4, 3), 2), (batch(24, 3), 11)])
        scored = (
            chunks
            | beam.MapTuple(TimestampedValue).with_output_types(pa.RecordBatch)
            | beam.WindowInto(windows)
            | score
        )
        rows = scored.predictions | beam.FlatMap(answers) | beam.ParDo(Window())
        starts = {0: [0, -10][:copies], 1: [10, 0][:copies]}
        good = [(start, (id_, id_ / 2 + 1)) for id_ in [*range(7), 24, 25] for start in starts[id_ >= 24]]
        assert_that(rows, check(good), "good")
        dead = scored.dead_letters | beam.FlatMap(letters) | "DW" >> beam.ParDo(Window())
        assert_that(dead, check([(start, (26, "forward/RuntimeError", "pipeline", 2)) for start in starts[1]]), "dead")
        counts = scored.counts | beam.CombineGlobally(total).without_defaults() | "CW" >> beam.ParDo(Window())
        expected = {start: (0, 0) for starts_of in starts.values() for start in starts_of}
        for start in starts[0]:
            expected[start] = (expected[start][0] + 7, expected[start][1])
        for start in starts[1]:
            expected[start] = (expected[start][0] + 2, expected[start][1] + 1)
        found = counts | beam.MapTuple(lambda start, each: (start, (each.rows_scored, each.rows_dead)))
        assert_that(found, check(list(expected.items())), "counts")


def test_twice_in_a_pipeline(model: ModelDir) -> None:
    score = Score(model, SCHEMA, columns="id")
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        one = pipeline | "One" >> beam.Create([batch(0, 3)]) | "ScoreOne" >> score
        two = pipeline | "Two" >> beam.Create([batch(5, 2)]) | "ScoreTwo" >> score
        assert_that(one.predictions | "A" >> beam.FlatMap(answers), check([(0, 1.0), (1, 1.5), (2, 2.0)]), "one")
        assert_that(two.predictions | "B" >> beam.FlatMap(answers), check([(5, 3.5), (6, 4.0)]), "two")


def test_failure_rate(model: ModelDir) -> None:
    """Two of four rows are dead letters: allowed at 0.5, and not at 0.4."""
    chunks = [batch(25, 2), batch(0, 2, a=[None, 1.0])]
    for rate in (0.5, 0.4):
        pipeline = beam.Pipeline(runner=FnApiRunner())
        _ = pipeline | beam.Create(chunks) | Score(model, SCHEMA, max_failure_rate=rate)
        if rate == 0.5:
            pipeline.run()
        else:
            with pytest.raises(Exception, match=r"2 of 4 rows are dead letters, above max_failure_rate=0.4"):
                pipeline.run()


def test_hints_and_placement(model: ModelDir) -> None:
    score = Score(model, SCHEMA, hints=ResourceHints(min_ram="4GB"), placement=Placement("cpu"))
    pipeline = beam.Pipeline(runner=FnApiRunner())
    _ = pipeline | beam.Create([batch(0, 1)]) | score
    environments = pipeline.to_runner_api().components.environments.values()
    assert [each.resource_hints for each in environments if each.resource_hints]


# Functions of a pipeline of one's own, by name, as workers import them.


def with_total(row: dict) -> dict:  # type: ignore[type-arg]
    return {**row, "total": row["a"] + row["b"]}


def with_label(row: dict) -> dict:  # type: ignore[type-arg]
    return {**row, "label": row["name"].upper()}


def only_large(rows: pa.RecordBatch) -> pa.RecordBatch:
    return rows.filter(pa.compute.greater(rows.column("prediction"), 3.0))


HERE = __name__


def test_functions_settled_by_a_sample(tmp_path: Path) -> None:
    inputs = [{"name": "x", "columns": ["total", "b"]}]
    model = ModelDir.save(Sum(), tmp_path / "model", task="regression", inputs=inputs)
    functions: dict[str, Any] = {
        "preprocess": f"{HERE}:with_total",
        "postprocess": (f"{HERE}:with_label", f"{HERE}:only_large"),
    }
    with pytest.raises(UsageError, match="give a sample of rows"):
        _ = Score(model, SCHEMA, **functions).plan
    score = Score(model, sample=pa.Table.from_batches([batch(0, 8)]), **functions)
    assert score.predictions_schema.field("label").type == pa.string()
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        scored = pipeline | beam.Create([batch(0, 5)]) | score  # predictions 2 + id / 2, more than 3 from id 3 on
        rows = scored.predictions | beam.FlatMap(lambda each: each.select(["id", "prediction", "label"]).to_pylist())
        assert_that(rows | beam.Map(lambda row: tuple(row.values())), check([(3, 3.5, "N3"), (4, 4.0, "N4")]), "good")
        counts = scored.counts | beam.CombineGlobally(total)
        assert_that(counts, check_counts(Counts(rows_scored=2, rows_dropped=3)), "counts")


def check_counts(expected: Counts) -> Callable[[list[Counts]], None]:
    def matcher(got: list[Counts]) -> None:
        assert got == [expected], got

    return matcher


def test_lists_of_variable_length_need_a_sample(tmp_path: Path) -> None:
    inputs = [{"name": "x", "columns": ["pair"]}]
    model = ModelDir.save(Sum(), tmp_path / "model", task="regression", inputs=inputs)
    schema = pa.schema({"pair": pa.list_(pa.float32())})
    with pytest.raises(UsageError, match=r"pair.*give a sample of rows"):
        _ = Score(model, schema).plan
    sample = pa.record_batch({"pair": [None, [1.0, 2.0]]}, schema)
    assert Score(model, schema, sample).plan.inputs[0].columns == ("pair",)


@pytest.mark.parametrize("function", ["with_label", "only_large"])
def test_a_postprocess_that_rows_of_zeros_do_not_settle_needs_a_sample(model: ModelDir, function: str) -> None:
    with pytest.raises(UsageError, match=f"{function} gives no row for rows of zeros; give a sample"):
        _ = Score(model, SCHEMA, postprocess=f"{HERE}:{function}").plan
    assert Score(model, SCHEMA, batch(0, 9), postprocess=f"{HERE}:{function}").plan.output is not None


def test_rows_of_the_sample_that_do_not_fit_are_left_out(model: ModelDir) -> None:
    sample = batch(0, 2, a=["x", "1.5"])
    assert Score(model, SCHEMA, sample).predictions_schema == Score(model, SCHEMA).predictions_schema


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, "needs the schema of the chunks, or a sample"),
        ({"schema": pa.schema([])}, "the schema has no column"),
        ({"schema": SCHEMA.append(pa.field("a", pa.int8()))}, 'more than one column "a"'),
        ({"schema": SCHEMA.append(pa.field("dead_letter", pa.int8()))}, 'column "dead_letter" has a reserved name'),
        ({"schema": SCHEMA.remove(1)}, 'column "a" is missing'),
        ({"schema": SCHEMA, "columns": ["nope"]}, 'there is no column "nope"'),
        ({"schema": SCHEMA, "max_failure_rate": 2}, "max_failure_rate must be a number from 0 to 1, not 2"),
        ({"schema": SCHEMA, "preprocess": [len]}, "preprocess takes names of functions, as module:function"),
        ({"schema": SCHEMA, "preprocess": "nowhere:f"}, 'preprocess "nowhere:f" cannot be imported'),
    ],
)
def test_wrong_use_is_refused_before_the_pipeline_runs(model: ModelDir, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        _ = Score(model, **arguments).plan


def test_a_broken_model_is_refused_before_the_pipeline_runs(tmp_path: Path) -> None:
    inputs = [{"name": "x", "columns": ["a"]}]  # one column, of which the second is asked for
    model = ModelDir.save(Broken(), tmp_path / "model", task="regression", inputs=inputs)
    with pytest.raises(BrokenModelError, match="no row can be scored"):
        _ = Score(model, SCHEMA).plan


class Broken(Sum):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, 1]
