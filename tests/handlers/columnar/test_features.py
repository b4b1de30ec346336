"""SQL features: what they compute, and that nothing but their own row is let in."""

import decimal

import pyarrow as pa
import pytest
from test_chains import FULL, TYPES, rows_of

from handlers.columnar.features import check_features, feature_columns, feature_step
from handlers.errors import UsageError


def features(batch: pa.RecordBatch, **expressions: str) -> pa.RecordBatch:
    check_features(expressions, batch)
    rows, failures = feature_step(expressions).run(rows_of(batch))
    assert not failures
    return rows.batch


class TestFeatures:
    batch = pa.record_batch({"a": [1.0, 2.0, 4.0], "n": [1, 2, 3], "s": ["x", None, "z"]})

    def test_expressions(self) -> None:
        found = features(self.batch, half="a / 2", text="upper(s)", big="case when n > 1 then 1 else 0 end")
        assert found.column("half").to_pylist() == [0.5, 1, 2]
        assert found.column("text").to_pylist() == ["X", None, "Z"]
        assert found.schema.field("text").type == pa.string()
        assert found.column("big").to_pylist() == [0, 1, 1]
        assert found.select(["a", "n", "s"]) == self.batch

    def test_a_feature_uses_an_earlier_one(self) -> None:
        assert features(self.batch, b="a + 1", c="b * 2").column("c").to_pylist() == [4, 6, 10]
        assert feature_columns({"b": "a + 1", "c": "b * n"}) == {"a", "n"}
        assert feature_columns({"a": "a + 1", "c": "a * n"}) == {"a", "n"}

    def test_a_feature_takes_the_place_of_a_column(self) -> None:
        found = features(self.batch, a="a * 10")
        assert found.schema.names == ["a", "n", "s"]
        assert found.column("a").to_pylist() == [10, 20, 40]

    def test_a_constant(self) -> None:
        found = features(self.batch, one="1", word="'w'")
        assert found.column("one").to_pylist() == [1, 1, 1]
        assert found.column("word").to_pylist() == ["w", "w", "w"]

    @pytest.mark.parametrize(
        "text",
        ["round(a, 1)", "n % 2", "n in (1, 2)", "a between 1 and 2", "s like 'x%'", "coalesce(s, '')", "abs(-a)"],
    )
    def test_what_looks_at_its_own_row_is_accepted(self, text: str) -> None:
        features(self.batch, f=text)

    @pytest.mark.parametrize(
        "text",
        [
            "sum(a)",
            "sum(a) over ()",
            "a - avg(a)",
            "count(*)",
            "max(n)",
            "row_number() over (order by a)",
            "lag(a) over (order by n)",
            "first_value(n) over (partition by a order by n)",
            "avg(a) over (partition by n)",
            "max(n) over (partition by s)",
            "first(a)",
            "case when a > 1000000 then sum(a) else 0 end",
        ],
    )
    @pytest.mark.parametrize("rows", [0, 1, 3])
    def test_what_looks_at_other_rows_is_refused(self, text: str, rows: int) -> None:
        constant = pa.record_batch({"a": [1.0] * rows, "n": [1] * rows, "s": ["x"] * rows}).cast(self.batch.schema)
        with pytest.raises(UsageError, match='feature "f"'):
            check_features({"f": text}, constant)

    @pytest.mark.parametrize(
        "text",
        ["(select max(a) from t)", "a in (select n from t)", "read_csv('/etc/passwd')", "a +", "*", "a, n", "f()"],
    )
    def test_what_is_no_expression_is_refused(self, text: str) -> None:
        with pytest.raises(UsageError, match='feature "f"') as error:
            check_features({"f": text}, self.batch)
        assert "\n" not in str(error.value)

    def test_an_unknown_column(self) -> None:
        with pytest.raises(UsageError, match='feature "f" uses column "nope"'):
            check_features({"f": "nope + 1"}, self.batch)
        with pytest.raises(UsageError, match='feature "b" uses column "c"'):
            check_features({"b": "c + 1", "c": "a"}, self.batch)

    def test_a_value_that_fails_costs_its_row(self) -> None:
        batch = pa.record_batch({"s": ["1", "x", "3", None]})
        check_features({"f": "cast(s as double)"}, batch)
        rows, failures = feature_step({"f": "cast(s as double)"}).run(rows_of(batch))
        assert rows.batch.column("f").to_pylist() == [1, 3, None]
        assert [(row, failure.stage) for row, failure in failures.items()] == [(1, "features")]

    def test_a_feature_that_fails_in_every_row_is_no_aggregate(self) -> None:
        check_features({"f": "cast('x' as int)"}, self.batch)
        _, failures = feature_step({"f": "cast('x' as int)"}).run(rows_of(self.batch))
        assert len(failures) == 3

    def test_columns_that_features_do_not_use_may_be_of_any_type(self) -> None:
        batch = pa.record_batch({"a": [1], "d": pa.array([decimal.Decimal(1)], pa.decimal256(60, 0))})
        assert features(batch, f="a + 1").column("f").to_pylist() == [2]

    def test_columns_that_are_named_like_parts_of_expressions(self) -> None:
        batch = pa.record_batch({"Agg": [1], "Len": [2], "Over": ["Agg"]})
        assert features(batch, f='"Agg" + "Len"').column("f").to_pylist() == [3]
        assert features(batch, f="\"Over\" = 'Len'").column("f").to_pylist() == [False]

    def test_small_integers_do_not_wrap(self) -> None:
        batch = pa.record_batch({"u": pa.array([1, None], pa.uint8()), "i": pa.array([100, 2], pa.int8())})
        found = features(batch, less="u - 2", square="i * i")
        assert found.column("less").to_pylist() == [-1, None]
        assert found.column("square").to_pylist() == [10_000, 4]
        assert found.schema.field("u").type == pa.uint8()

    def test_no_rows(self) -> None:
        assert features(self.batch.slice(0, 0), f="a + 1").schema.field("f").type == pa.float64()

    def test_all_kinds_of_columns(self) -> None:
        names = [name for name in TYPES.names if name not in ("time", "none", "st")]
        batch = pa.RecordBatch.from_pylist([FULL, dict.fromkeys(FULL), FULL], schema=TYPES).select(names)
        for name in names:
            assert features(batch, f=f"{name} is null").column("f").to_pylist() == [False, True, False]
