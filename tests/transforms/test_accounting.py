import pickle
from dataclasses import dataclass

import apache_beam as beam
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that, equal_to

from handlers.errors import AccountingError, TorchbeamError
from transforms.accounting import Counts, FileOutcome, FileOutcomes, report, total


@dataclass(frozen=True)
class Record:
    path: str
    rows: int
    dead: int
    error: str | None
    whole: bool = False


ONE = Counts(
    rows_read=10, rows_scored=7, rows_dropped=1, rows_dead=2, files_read=1, dead_by_error={"encode/ValueError": 2}
)
TWO = Counts(rows_read=5, rows_dead=5, files_dead=1, dead_by_error={"encode/ValueError": 1, "read/BadRow": 4})
BOTH = Counts(
    rows_read=15,
    rows_scored=7,
    rows_dropped=1,
    rows_dead=7,
    files_read=1,
    files_dead=1,
    dead_by_error={"encode/ValueError": 3, "read/BadRow": 4},
)


def test_counts_add_up() -> None:
    assert ONE + TWO == BOTH
    assert ONE + Counts() == ONE
    assert ONE.dead_by_error == {"encode/ValueError": 2}
    assert pickle.loads(pickle.dumps(BOTH)) == BOTH


def test_counts_are_combined_in_a_pipeline() -> None:
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        added = pipeline | beam.Create([ONE, TWO, ONE]) | beam.CombineGlobally(total)
        assert_that(added, equal_to([BOTH + ONE]))


def test_of_nothing_the_counts_are_zero() -> None:
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        added = pipeline | beam.Create([]) | beam.CombineGlobally(total)
        assert_that(added, equal_to([Counts()]))


def test_the_report_has_the_shape_of_the_contract() -> None:
    found = report(BOTH, model_name="credit", model_version="abc123", runner="FnApiRunner", seconds=2.5)

    assert found.pop("finished_at").endswith("+00:00")
    assert isinstance(found.pop("torchbeam"), str)
    assert found == {
        "rows_read": 15,
        "rows_scored": 7,
        "rows_dropped": 1,
        "rows_dead": 7,
        "files_read": 1,
        "files_dead": 1,
        "model": {"name": "credit", "version": "abc123"},
        "runner": "FnApiRunner",
        "seconds": 2.5,
        "rows_per_second": 6.0,
        "dead_by_error": {"read/BadRow": 4, "encode/ValueError": 3},
        "failure_rate": 7 / 15,
    }


def test_the_report_of_nothing_divides_by_nothing() -> None:
    found = report(Counts(), model_name="m", model_version="v", runner="r", seconds=0.0)

    assert (found["rows_per_second"], found["failure_rate"]) == (0.0, 0.0)


def test_a_lost_row_is_an_error_that_names_the_numbers() -> None:
    with pytest.raises(
        AccountingError, match=r"16 rows were read, but 14 scored \+ 0 dropped \+ 1 dead = 15"
    ) as caught:
        report(
            Counts(rows_read=16, rows_scored=14, rows_dead=1), model_name="m", model_version="v", runner="r", seconds=1
        )
    assert isinstance(caught.value, TorchbeamError)


def test_a_file_with_one_broken_split_is_dead_and_its_rows_are_those_of_all_splits() -> None:
    records = [
        Record("b.csv", 100, 3, None),
        Record("a.csv", 10, 0, None),
        Record("b.csv", 50, 0, "block 7 is damaged"),
        Record("b.csv", 5, 0, "block 9 is damaged"),
        Record("c.csv", 0, 0, ""),
        Record("d.csv", 7, 0, None, whole=True),
        Record("e.csv", 1, 0, "it ends within a row", whole=True),
    ]
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        # In groups of any size, and the splits of a file in several of them.
        outcomes = pipeline | beam.Create([records[:2], [], records[2:]]) | FileOutcomes()
        counts = outcomes.counts | beam.CombineGlobally(total)
        failed = outcomes.failed | beam.Map(FileOutcome.failed)
        assert_that(counts, equal_to([Counts(rows_read=173, files_read=2, files_dead=3)]), label="counts")
        assert_that(
            failed,
            equal_to(
                [
                    {"path": "b.csv", "error": "block 7 is damaged", "rows": 155},
                    {"path": "c.csv", "error": "", "rows": 0},
                    {"path": "e.csv", "error": "it ends within a row", "rows": 1},
                ]
            ),
            label="failed",
        )
