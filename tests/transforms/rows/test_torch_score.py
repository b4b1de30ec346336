"""`TorchScore`: Beam rows in, Beam rows with a schema out, and the rows that could not be scored."""

import datetime
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple, Optional

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.testing.util import assert_that
from apache_beam.transforms.window import FixedWindows, GlobalWindow, TimestampedValue
from apache_beam.typehints.schemas import named_fields_from_element_type
from apache_beam.utils.timestamp import Timestamp
from small_models import Sum

from handlers import ModelDir
from handlers.errors import UsageError
from torchbeam import ModelRegistry, TorchScore, score
from transforms.rows.fields import Field
from transforms.rows.torch_score import _CHUNK_BYTES, _CHUNK_ROWS, _ToChunks


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelDir:
    folder = tmp_path_factory.mktemp("sum") / "model"
    return ModelDir.save(Sum(), folder, task="regression", inputs=[{"name": "x", "columns": ["a", "b"]}])


class Inner(NamedTuple):
    when: Timestamp
    tags: Sequence[str]


class Order(NamedTuple):
    id: int
    a: Optional[float]  # noqa: UP045 - Beam reads it
    b: np.float32
    name: str
    day: datetime.date
    at: Timestamp
    price: Decimal
    inner: Inner
    anything: Any


def order(id: int, a: Any, anything: Any = None) -> Order:
    at = Timestamp(micros=1_600_000_000_123_456 + id)
    inner = Inner(at, [f"t{id}", "u"])
    return Order(id, a, np.float32(0.5), f"n{id}", datetime.date(2026, 1, 2), at, Decimal("12.50"), inner, anything)


def check(expected: list[Any]) -> Callable[[list[Any]], None]:
    def matcher(got: list[Any]) -> None:
        assert sorted(got, key=repr) == sorted(expected, key=repr), got

    return matcher


def test_types_go_through(model: ModelDir) -> None:
    orders = [order(0, 1.0, "text"), order(1, 2.0, {"k": [1]}), order(2, None), order(3, 13.0)]
    transform = TorchScore(model, columns=["*"], error_handling={"output": "errors", "__line__": 7})
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        outputs = pipeline | beam.Create(orders).with_output_types(Order) | transform
        assert set(outputs) == {"good", "errors"}
        types = dict(named_fields_from_element_type(outputs["good"].element_type))
        assert list(types) == [*Order._fields, "prediction", "model_version"]
        assert types["at"] == Optional[Timestamp]  # noqa: UP045
        assert types["b"] == Optional[np.float32]  # noqa: UP045
        assert types["anything"] == Optional[str]  # noqa: UP045
        # A shuffle encodes the rows by their schema.
        good = outputs["good"] | beam.Reshuffle() | beam.Map(_flat)
        expected = [
            (0, 1.0, 0.5, "n0", orders[0].day, orders[0].at, Decimal("12.5"), orders[0].at, ["t0", "u"], "text", 1.5),
            (
                1,
                2.0,
                0.5,
                "n1",
                orders[1].day,
                orders[1].at,
                Decimal("12.5"),
                orders[1].at,
                ["t1", "u"],
                '{"k": [1]}',
                2.5,
            ),
        ]
        assert_that(good, check(expected), "good")
        errors = outputs["errors"] | "R" >> beam.Reshuffle()
        dead = errors | beam.Map(lambda row: (row.element.id, row.element.inner.tags[0], row.stage, row.type, row.msg))
        found = [
            (2, "t2", "encode", "NullValue", 'column "a" holds null; the model input "x" needs float32'),
            (3, "t3", "forward", "RuntimeError", "cannot take 13"),
        ]
        assert_that(dead, check(found), "dead")
        versions = errors | "V" >> beam.Map(lambda row: (row.model_version, row.raw))
        assert_that(versions, check([(model.version, None)] * 2), "versions")


def _flat(row: Any) -> tuple[Any, ...]:
    return (*row[:7], row.inner.when, list(row.inner.tags), row.anything, row.prediction)


def test_the_numbers_of_score(model: ModelDir) -> None:
    """More rows than a chunk, of which every tenth is bad: predictions and reasons of `torchbeam.score`."""
    rows = [{"id": id_, "a": None if id_ % 10 == 3 else id_ / 8, "b": 1.0} for id_ in range(2 * _CHUNK_ROWS + 5)]
    expected = score(model, rows)
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        created = pipeline | beam.Create(rows)
        typed = created | beam.Select(id=lambda row: row["id"], a=_a, b=lambda row: row["b"]).with_output_types(Row3)
        outputs = typed | TorchScore(model.path, columns="id", error_handling={"output": "bad"})
        good = outputs["good"] | beam.Map(lambda row: (row.id, row.prediction))
        assert_that(good, check([(row["id"], row["prediction"]) for row in expected.predictions]), "good")
        bad = outputs["bad"] | beam.Map(lambda row: (row.element.id, row.element.a, row.stage, row.type, row.msg))
        letters = [(row["id"], row["a"], row["dead_letter"]) for row in expected.dead_letters]
        reasons = [(id_, a, each["stage"], each["type"], each["message"]) for id_, a, each in letters]
        assert len(reasons) == 202  # those of id 3, 13, …, 2003, and of id 104, where a is 13
        assert_that(bad, check(reasons), "bad")


class Row3(NamedTuple):
    id: int
    a: Optional[float]  # noqa: UP045
    b: float


def _a(row: dict[str, Any]) -> Any:
    return row["a"]


class Loose(NamedTuple):
    id: int
    a: Any
    b: float


def test_values_that_do_not_fit_their_fields(model: ModelDir) -> None:
    rows = [Loose(0, 1, 1.0), Loose(1, 2.5, 1.0), Loose(2, "x", 1.0), Loose(3.5, 1, 1.0), Loose(4, 2**53 + 1, 1.0)]  # type: ignore[arg-type]
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        created = pipeline | beam.Create(rows).with_output_types(Loose)
        outputs = created | TorchScore(model, columns=["id"], error_handling={"output": "bad"})
        good = outputs["good"] | beam.Map(lambda row: (row.id, row.prediction))
        assert_that(good, check([(0, 2.0), (1, 3.5)]), "good")
        bad = outputs["bad"] | beam.Reshuffle() | beam.Map(lambda row: (row.element.id, row.stage, row.raw))
        expected = [
            (2, "read", '{"id": 2, "a": "x", "b": 1.0}'),
            (None, "read", '{"id": 3.5, "a": 1, "b": 1.0}'),
            (4, "read", '{"id": 4, "a": 9007199254740993, "b": 1.0}'),
        ]
        assert_that(bad, check(expected), "bad")


def test_windows_are_kept(model: ModelDir) -> None:
    class Window(beam.DoFn):
        def process(self, row: Any, window: Any = beam.DoFn.WindowParam) -> Any:
            yield int(window.start), row.id, row.prediction

    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        rows = pipeline | beam.Create([(Row3(1, 1.0, 1.0), 1), (Row3(2, 2.0, 1.0), 2), (Row3(3, 3.0, 1.0), 11)])
        windowed = rows | beam.MapTuple(TimestampedValue).with_output_types(Row3) | beam.WindowInto(FixedWindows(10))
        good = windowed | TorchScore(model)
        assert_that(good | beam.ParDo(Window()), check([(0, 1, 2.0), (0, 2, 3.0), (10, 3, 4.0)]), reify_windows=False)


def test_without_error_handling_a_bad_row_fails_the_pipeline(model: ModelDir) -> None:
    pipeline = beam.Pipeline(runner=FnApiRunner())
    _ = pipeline | beam.Create([Row3(1, 1.0, 1.0), Row3(2, None, 1.0)]) | TorchScore(model)
    with pytest.raises(
        Exception,
        match=r'^a row was not scored: column "a" holds null.* \(encode, NullValue\); give TorchScore error_handling',
    ):
        pipeline.run()


def test_a_name_of_the_registry(model: ModelDir, tmp_path: Path) -> None:
    registry = ModelRegistry(tmp_path / "models")
    registry.push(model.path, "sum")
    registry.promote("sum@1", "champion")
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        rows = pipeline | beam.Create([Row3(1, 1.0, 1.0)])
        good = rows | TorchScore("sum@champion", registry=str(tmp_path / "models"), model_version=model.digest)
        assert_that(good | beam.Map(lambda row: (row.id, row.prediction)), check([(1, 2.0)]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"error_handling": "errors"}, r"error_handling must be \{output: NAME\}"),
        ({"error_handling": {"output": "good"}}, 'not "good"'),
        ({"error_handling": {"output": "e", "threshold": 1}}, "error_handling must be"),
        ({"probabilities": "yes"}, "probabilities must be true or false, not 'yes'"),
        ({"device": "tpu"}, "tpu"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": "many"}, "batch_size must be a number of rows, not 'many'"),
        ({"model": 3}, "model must be a path or a name in the registry, not 3"),
        ({"model_version": "0" * 12}, "has version"),
    ],
)
def test_wrong_settings(model: ModelDir, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TorchScore(**{"model": model.path} | settings)


def test_an_open_model_has_its_trust_already(model: ModelDir) -> None:
    with pytest.raises(UsageError, match="this model is open"):
        TorchScore(model, no_model_code=True)


def test_long_rows_are_few_in_a_chunk() -> None:
    fields = [Field("text", pa.string(), str, False, None), Field("id", pa.int64(), np.int64, False, None)]
    maker = _ToChunks(fields)
    maker.start_bundle()
    window = GlobalWindow()
    rows = [beam.Row(text="x" * (_CHUNK_BYTES // 2), id=1), beam.Row(text=None, id=2)] * 3
    sizes = [chunk.value.num_rows for row in rows for chunk in maker.process(row, window)]
    assert sizes == [3]  # two long ones and the one between them
    assert [chunk.value.num_rows for chunk in maker.finish_bundle()] == [3]


def test_elements_without_a_schema(model: ModelDir) -> None:
    pipeline = beam.Pipeline(runner=FnApiRunner())
    with pytest.raises(UsageError, match="takes rows with a schema"):
        _ = pipeline | beam.Create([{"a": 1.0, "b": 2.0}]) | TorchScore(model)
    with pytest.raises(UsageError, match='"b"'):
        _ = pipeline | "Rows" >> beam.Create([beam.Row(a=1.0)]) | "Score" >> TorchScore(model)
