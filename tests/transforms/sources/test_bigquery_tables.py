"""Runs whose output is a table of BigQuery, against a server that loads what it is told to load."""

import datetime
import json
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fake_bigquery import FakeBigQuery, serve_storage
from fake_bigquery_tables import FakeTables, serve_tables

from handlers import ModelDir
from handlers.columnar.chunks import dead_letter_schema
from handlers.errors import AccountingError, ServiceError, TorchbeamError, UsageError
from pipelines import score
from transforms.accounting import Counts
from transforms.sinks import bigquery_tables
from transforms.sinks.bigquery_tables import Tables, load, loadable, plan_tables, table_schema
from transforms.sinks.publish import Publication, publish_run
from transforms.sinks.temporary import temporary_folder
from transforms.sinks.write import Part, Writer, write_empty
from transforms.sources.formats import bigquery

TABLE = "my-project.shop.scored"
DEAD = f"{TABLE}_dead_letters"
ROWS = 100
BAD = (3, 60, 61)

Score = Callable[..., tuple[int, str]]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTables]:
    made = FakeTables({"my-project.shop"})
    monkeypatch.delenv("GOOGLE_CLOUD_PROJECT", raising=False)
    with serve_tables(made) as address:
        monkeypatch.setenv("BIGQUERY_EMULATOR_HOST", address)
        yield made


@pytest.fixture(scope="module")
def net() -> torch.nn.Linear:
    torch.manual_seed(3)
    return torch.nn.Linear(1, 1)


@pytest.fixture(scope="module")
def model(net: torch.nn.Linear, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "m"
    inputs = [{"name": "input", "columns": ["a"]}]
    ModelDir.save(net, folder, task="regression", inputs=inputs, arguments={"in_features": 1, "out_features": 1})
    return folder


def rows(bad: tuple[int, ...] = BAD) -> pa.Table:
    return pa.table(
        {
            "id": pa.array(range(ROWS), pa.int32()),
            "a": pa.array([None if row in bad else row / 7 for row in range(ROWS)]),
            "tags": pa.array([[f"t{row}", "x"] for row in range(ROWS)]),
            "at": pa.array([1_700_000_000_000_000 + row for row in range(ROWS)], pa.timestamp("us", "UTC")),
        }
    )


@pytest.fixture
def run(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Score:
    """Scores into the table; gives the exit code and what was said on stderr, or on stdout where nothing was."""

    def call(*others: str, table: pa.Table | None = None, **replaced: object) -> tuple[int, str]:
        pq.write_table(rows() if table is None else table, tmp_path / "in.parquet")
        named = {
            "input": tmp_path / "in.parquet",
            "model": model,
            "output": f"bigquery:{TABLE}",
            "temp_location": tmp_path / "temp",
            "report": tmp_path / "report.json",
        } | replaced
        code = score.main([*(f"--{name}={value}" for name, value in named.items() if value is not None), *others])
        captured = capsys.readouterr()
        return code, captured.err or captured.out

    return call


def expected(net: torch.nn.Linear, values: list[float]) -> list[float]:
    with torch.inference_mode():
        return net(torch.tensor(values).reshape(-1, 1)).flatten().tolist()  # type: ignore[no-any-return]


def dispositions(fake: FakeTables) -> list[str]:
    return [job["configuration"]["load"]["writeDisposition"] for job in fake.jobs.values()]


class TestRuns:
    def test_a_run_goes_to_its_tables(
        self, fake: FakeTables, run: Score, net: Any, model: Path, tmp_path: Path
    ) -> None:
        fake.statuses = [("GET", 503, True), ("POST", 503, True)]  # each asked again
        code, said = run()
        assert code == 0, said
        assert f"predictions  bigquery:{TABLE}\n" in said
        assert f"dead letters bigquery:{DEAD} (" in said

        good = [row for row in rows().to_pylist() if row["id"] not in BAD]
        scored = fake.tables[TABLE].sort_by("id").to_pylist()
        answers = [row.pop("prediction") for row in scored]
        assert {row.pop("model_version") for row in scored} == {ModelDir(model).version}
        assert scored == good
        assert answers == pytest.approx(expected(net, [row["a"] for row in good]), abs=1e-6)

        dead = fake.tables[DEAD].sort_by("id").to_pylist()
        assert [(row["id"], row["a"], row["tags"][0]) for row in dead] == [(row, None, f"t{row}") for row in BAD]
        assert [row["dead_letter"]["row"] for row in dead] == list(BAD)
        assert {row["dead_letter"]["type"] for row in dead} == {"NullValue"}

        found = json.loads((tmp_path / "report.json").read_text())
        assert [found[f"rows_{what}"] for what in ("read", "scored", "dropped", "dead")] == [ROWS, ROWS - 3, 0, 3]
        assert sorted(fake.jobs) == [
            f"torchbeam-{found['run_id']}-{what}-0" for what in ("dead_letters", "predictions")
        ]
        assert dispositions(fake) == ["WRITE_EMPTY"] * 2
        assert not (tmp_path / "temp").exists()  # the run had made it
        types = {each["name"]: (each["type"], each["mode"]) for each in fake.schemas[TABLE]}
        assert types == {
            "id": ("INT64", "NULLABLE"),
            "a": ("FLOAT64", "NULLABLE"),
            "tags": ("STRING", "REPEATED"),
            "at": ("TIMESTAMP", "NULLABLE"),
            "prediction": ("FLOAT64", "NULLABLE"),
            "model_version": ("STRING", "NULLABLE"),
        }

    def test_rows_are_replaced_where_asked(self, fake: FakeTables, run: Score, tmp_path: Path) -> None:
        assert run()[0] == 0
        assert run() == (2, f"torchbeam score: error: --report {tmp_path / 'report.json'} is of a finished run; name "
                         "another, or replace it with --overwrite\n")  # fmt: skip
        code, said = run(report=tmp_path / "other.json")
        assert (code, len(said.splitlines())) == (2, 1)
        assert f"{TABLE} has rows; name another table, or replace the rows with --overwrite" in said

        good = rows(bad=()).slice(0, 10)
        code, said = run("--overwrite", table=good)
        assert code == 0, said
        assert fake.tables[TABLE].num_rows == 10
        assert fake.tables[DEAD].num_rows == 0
        assert dispositions(fake)[2:] == ["WRITE_TRUNCATE"] * 2

    def test_a_run_of_no_rows_makes_its_tables(self, fake: FakeTables, run: Score) -> None:
        code, said = run(table=rows().slice(0, 0))
        assert code == 0, said
        assert fake.tables[TABLE].num_rows == fake.tables[DEAD].num_rows == 0
        assert "dead_letter" in fake.tables[DEAD].schema.names

    def test_an_empty_table_is_filled(self, fake: FakeTables, run: Score, tmp_path: Path) -> None:
        assert run(table=rows().slice(0, 0))[0] == 0
        code, said = run(report=tmp_path / "other.json")
        assert code == 0, said
        assert (fake.tables[TABLE].num_rows, fake.tables[DEAD].num_rows) == (ROWS - 3, 3)

    def test_files_that_cannot_be_read_are_listed_beside_the_report(
        self, fake: FakeTables, run: Score, tmp_path: Path
    ) -> None:
        (tmp_path / "in").mkdir()
        pq.write_table(rows(), tmp_path / "in" / "a.parquet")
        (tmp_path / "in" / "b.parquet").write_bytes(b"PAR1 broken")
        code, said = run(input=tmp_path / "in")
        assert code == 0, said
        listed = tmp_path / "report.failed_files.jsonl"
        assert f"failed files {listed}" in said
        assert json.loads(listed.read_text())["path"].endswith("b.parquet")
        assert fake.tables[TABLE].num_rows == ROWS - 3

    def test_a_load_that_fails_fails_the_run(self, fake: FakeTables, run: Score, tmp_path: Path) -> None:
        fake.refuse = {DEAD: "Invalid value in column id"}
        code, said = run()
        assert (code, len(said.splitlines())) == (1, 1)
        assert said.startswith(
            f"torchbeam score: error: bigquery:{DEAD} could not be loaded: 400 Invalid value in column id"
        )
        assert fake.tables == {}
        assert not (tmp_path / "report.json").exists()
        assert not (tmp_path / "temp").exists()  # the run had made it

    def test_a_report_of_an_earlier_run_is_gone_where_the_load_fails(
        self, fake: FakeTables, run: Score, tmp_path: Path
    ) -> None:
        assert run()[0] == 0
        fake.refuse = {TABLE: "Quota exceeded"}
        assert run("--overwrite")[0] == 1
        assert not (tmp_path / "report.json").exists()

    def test_dead_letters_are_scored_again(
        self, fake: FakeTables, run: Score, net: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert run()[0] == 0
        mended = fake.tables[DEAD].to_pylist()
        for row in mended:
            row["a"] = float(row["id"])
        storage = FakeBigQuery({DEAD: pa.Table.from_pylist(mended, schema=fake.tables[DEAD].schema)})
        server, address = serve_storage(storage)
        monkeypatch.setenv("BIGQUERY_STORAGE_EMULATOR_HOST", address)
        try:
            again = {"output": f"bigquery:{TABLE}_again", "report": tmp_path / "again.json"}
            code, said = run(input=f"bigquery:{DEAD}", **again)
        finally:
            server.stop(None)
            bigquery._read_client_of.cache_clear()
        assert code == 0, said
        scored = fake.tables[f"{TABLE}_again"].sort_by("id")
        assert scored.schema.names == fake.tables[TABLE].schema.names
        assert scored["id"].to_pylist() == list(BAD)
        assert scored["prediction"].to_pylist() == pytest.approx(expected(net, [float(row) for row in BAD]), abs=1e-6)


class TestRefusals:
    """One line, before anything is read or written."""

    @pytest.mark.parametrize(
        ("replaced", "message"),
        [
            ({"output": "bigquery:shop.scored"}, "write bigquery:project.dataset.table"),
            ({"output": "bigquery:p.d.t$20240501"}, "write bigquery:project.dataset.table"),
            ({"output": "bigquery:my-project.none.scored"}, "404 .*Not found: Dataset my-project:none; check the name"),
            ({"report": None}, "needs --report=FILE"),
            ({"temp_location": None}, "needs --temp_location=gs://bucket/folder"),
            ({"output_format": "avro"}, "is loaded from Parquet; leave out --output_format=avro"),
        ],
    )
    def test_wrong_usage(self, fake: FakeTables, run: Score, replaced: dict[str, Any], message: str) -> None:
        self.check(fake, run, message, **replaced)

    def test_local_files_are_for_other_servers_only(
        self, fake: FakeTables, run: Score, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("BIGQUERY_EMULATOR_HOST")
        self.check(fake, run, "needs --temp_location=gs://")

    def test_no_permission(self, fake: FakeTables, run: Score) -> None:
        fake.statuses = [("/datasets/shop", 403, True)]
        self.check(fake, run, f"--output=bigquery:{TABLE} cannot be written: 403 .*roles")

    def test_views(self, fake: FakeTables, run: Score) -> None:
        fake.tables[TABLE] = rows().slice(0, 0)
        fake.views = {TABLE}
        self.check(fake, run, f"{TABLE} is a view, not a table")

    def test_an_empty_table_of_other_columns(self, fake: FakeTables, run: Score) -> None:
        assert run(table=rows().slice(0, 0))[0] == 0
        fake.jobs.clear()
        there = fake.schemas[DEAD]
        fake.schemas[DEAD] = there[1:]
        again = {"report": "other.json"}
        self.check(fake, run, f'{DEAD} exists and has no column "id"; change or drop it', **again)
        fake.schemas[DEAD] = [there[0] | {"type": "STRING"}, *there[1:]]
        self.check(fake, run, 'its column "id" is NULLABLE STRING, not NULLABLE INT64', **again)
        letter = there[-1] | {"fields": there[-1]["fields"][1:]}
        fake.schemas[DEAD] = [*there[:-1], letter]
        self.check(fake, run, 'has no column "dead_letter.stage"', **again)

    def test_columns_that_it_cannot_hold(self, fake: FakeTables, run: Score) -> None:
        odd = rows().append_column("unit price", pa.array(range(ROWS)))
        self.check(fake, run, 'BigQuery cannot hold the column "unit price": its name must have', table=odd)

    def test_no_server(self, fake: FakeTables, run: Score, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("transforms.bigquery.BEFORE_RUN", 2)
        with serve_tables(FakeTables(set())) as gone:
            pass
        monkeypatch.setenv("BIGQUERY_EMULATOR_HOST", gone)
        self.check(fake, run, "cannot be written: .*onnection")

    @staticmethod
    def check(fake: FakeTables, run: Score, message: str, **replaced: Any) -> None:
        code, said = run(**replaced)
        assert (code, len(said.splitlines())) == (2, 1), said
        with pytest.raises(UsageError, match=message):
            raise UsageError(said)
        assert fake.jobs == {}


class TestRetries:
    """The last step of a run may be carried out again, from wherever it broke off."""

    SCHEMA = pa.schema([("n", pa.int64())])

    @pytest.fixture
    def publication(self, fake: FakeTables, tmp_path: Path) -> Publication:
        return Publication(
            output=str(tmp_path / "temp"),
            run_id="r1",
            predictions=self.SCHEMA,
            dead_letters=dead_letter_schema(self.SCHEMA),
            report_path=str(tmp_path / "report.json"),
            tables=plan_tables(f"bigquery:{TABLE}", overwrite=False),
        )

    def parts(self, publication: Publication, *sizes: int) -> list[Part]:
        folder = Path(temporary_folder(publication.output, "r1")) / "predictions"
        folder.mkdir(parents=True)
        made = [Part(str(folder / f"part-{number}.parquet"), size) for number, size in enumerate(sizes)]
        for part in made:
            pq.write_table(pa.table({"n": range(part.rows)}, schema=self.SCHEMA), part.path)
        return made

    def test_nothing_is_loaded_twice(self, fake: FakeTables, publication: Publication) -> None:
        parts, counts = self.parts(publication, 3, 4), Counts(rows_read=7, rows_scored=7)
        # The first attempt ends when the job is done but not answered; the files are still there.
        fake.statuses = [("GET /bigquery/v2/projects/my-project/jobs/", 400, True)]
        fake.statuses += [("POST", 503, False)]
        with pytest.raises(ServiceError, match="could not be loaded: 400"):
            publish_run(publication, parts, [], [], counts)
        assert not Path(publication.report_file).exists()
        for _ in range(2):  # and once more after the whole was done, when the files are gone
            publish_run(publication, parts, [], [], counts)
            assert fake.tables[TABLE]["n"].to_pylist() == [0, 1, 2, 0, 1, 2, 3]
            assert json.loads(Path(publication.report_file).read_text())["rows_scored"] == 7
            assert not any(Path(publication.output).iterdir())
        assert sorted(fake.jobs) == ["torchbeam-r1-dead_letters-0", "torchbeam-r1-predictions-0"]

    def test_a_job_that_failed_is_followed_by_another(self, fake: FakeTables, publication: Publication) -> None:
        (part,), counts = self.parts(publication, 3), Counts(rows_read=3, rows_scored=3)
        fake.refuse = {TABLE: "something went wrong"}
        for _ in range(2):
            with pytest.raises(ServiceError, match="something went wrong"):
                publish_run(publication, [part], [], [], counts)
        fake.refuse = {}
        publish_run(publication, [part], [], [], counts)
        assert fake.tables[TABLE]["n"].to_pylist() == [0, 1, 2]
        assert [name for name in sorted(fake.jobs) if "predictions" in name] == [
            "torchbeam-r1-predictions-0",
            "torchbeam-r1-predictions-0-again-1",
            "torchbeam-r1-predictions-0-again-2",
        ]

    def test_rows_that_are_not_those_of_the_run_are_told(self, fake: FakeTables, publication: Publication) -> None:
        (part,) = self.parts(publication, 3)
        pq.write_table(pa.table({"n": [1]}, schema=self.SCHEMA), part.path)
        with pytest.raises(AccountingError, match=f"3 rows were to be loaded into {TABLE}, but BigQuery reports 1"):
            publish_run(publication, [part], [], [], Counts(rows_read=3, rows_scored=3))
        assert not Path(publication.report_file).exists()

    def test_more_files_than_a_job_takes(
        self, fake: FakeTables, publication: Publication, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(bigquery_tables, "JOB_FILES", 2)
        parts = self.parts(publication, 1, 2, 3)
        publish_run(publication, parts, [], [], Counts(rows_read=6, rows_scored=6))
        assert fake.tables[TABLE]["n"].to_pylist() == [0, 0, 1, 0, 1, 2]
        assert dispositions(fake) == ["WRITE_EMPTY", "WRITE_EMPTY", "WRITE_APPEND"]


class TestTypes:
    def test_every_type(self, fake: FakeTables, tmp_path: Path) -> None:
        day, clock = datetime.date(2024, 5, 1), datetime.time(1, 2, 3, 4)
        local = datetime.datetime(2024, 5, 1, 1)
        record = pa.struct([("n", pa.int16()), ("words", pa.list_(pa.string()))])
        columns: dict[str, tuple[pa.DataType, Any, str]] = {
            "i8": (pa.int8(), -3, "INT64"),
            "u32": (pa.uint32(), 2**32 - 1, "INT64"),
            "i64": (pa.int64(), 2**53 + 1, "INT64"),
            "f32": (pa.float32(), 0.5, "FLOAT64"),
            "f64": (pa.float64(), 0.1, "FLOAT64"),
            "flag": (pa.bool_(), True, "BOOL"),
            "text": (pa.string(), "Größe", "STRING"),
            "large": (pa.large_string(), "x", "STRING"),
            "coded": (pa.dictionary(pa.int32(), pa.string()), "x", "STRING"),
            "raw": (pa.binary(), b"\0\xff", "BYTES"),
            "fixed": (pa.binary(2), b"ab", "BYTES"),
            "day": (pa.date32(), day, "DATE"),
            "clock": (pa.time64("us"), clock, "TIME"),
            "local": (pa.timestamp("ms"), local, "DATETIME"),
            "at": (pa.timestamp("us", "UTC"), local.replace(tzinfo=datetime.UTC), "TIMESTAMP"),
            "money": (pa.decimal128(12, 2), Decimal("-1.25"), "NUMERIC"),
            "big": (pa.decimal256(60, 30), Decimal("1.5"), "BIGNUMERIC"),
            "list": (pa.list_(pa.float32()), [0.5, 1.5], "FLOAT64"),
            "vector": (pa.list_(pa.float32(), 2), [0.5, 1.5], "FLOAT64"),
            "record": (record, {"n": 1, "words": ["a"]}, "RECORD"),
            "records": (pa.list_(record), [{"n": 1, "words": []}], "RECORD"),
        }
        schema = pa.schema([(name, kind) for name, (kind, _, _) in columns.items()])
        row = {name: value for name, (_, value, _) in columns.items()}
        made = table_schema(schema)
        assert [name for _, _, name in columns.values()] == [each.field_type for each in made]
        assert {each.name for each in made if each.mode == "REPEATED"} == {"list", "vector", "records"}
        write_empty(str(tmp_path / "empty.parquet"), schema, "parquet")
        batch = pa.Table.from_pylist([row], schema=schema)
        pq.write_table(batch, tmp_path / "row.parquet")
        files = [str(tmp_path / "empty.parquet"), str(tmp_path / "row.parquet")]
        assert load(Tables(TABLE, "my-project", "EU"), TABLE, "job", schema, files) == 1
        assert fake.tables[TABLE].to_pylist() == [row]

    def test_types_that_are_cast_first(self, fake: FakeTables, tmp_path: Path) -> None:
        local = datetime.datetime(2024, 5, 1, 1, 2, 3, 4)
        inner = pa.struct([("at", pa.timestamp("ns", "UTC")), ("ids", pa.list_(pa.uint64()))])
        schema = pa.schema(
            [
                ("local", pa.timestamp("ns")),
                ("clock", pa.time64("ns")),
                ("id", pa.uint64()),
                ("half", pa.float16()),
                ("inner", inner),
                ("vector", pa.list_(pa.float16(), 2)),
                ("n", pa.int64()),
            ]
        )
        row = {
            "local": local,
            "clock": local.time(),
            "id": 2**64 - 1,
            "half": 0.5,
            "inner": {"at": local.replace(tzinfo=datetime.UTC), "ids": [2**63]},
            "vector": [0.5, 1.5],
            "n": 1,
        }
        batch = pa.RecordBatch.from_pylist([row, dict.fromkeys(row)], schema=schema)
        columns = loadable(schema)
        writer = Writer(str(tmp_path), columns, "parquet")
        writer.write(batch)
        (part,) = writer.finish()
        assert load(Tables(TABLE, "my-project", "EU"), TABLE, "job", columns, [part.path]) == 2
        types = {each["name"]: each["type"] for each in fake.schemas[TABLE]}
        assert types | {"inner": ""} == {
            "local": "DATETIME",
            "clock": "TIME",
            "id": "NUMERIC",
            "half": "FLOAT64",
            "inner": "",
            "vector": "FLOAT64",
            "n": "INT64",
        }
        loaded = fake.tables[TABLE].to_pylist()
        assert loaded[0] == row
        assert set(loaded[1].values()) == {None}

    def test_a_part_of_a_microsecond_is_not_lost_in_silence(self, tmp_path: Path) -> None:
        schema = pa.schema([("at", pa.timestamp("ns"))])
        writer = Writer(str(tmp_path), loadable(schema), "parquet")
        with pytest.raises(TorchbeamError, match="would lose data"):
            writer.write(pa.record_batch({"at": pa.array([1], pa.timestamp("ns"))}))
        writer.abandon()

    @pytest.mark.parametrize(
        "kind",
        [
            pa.null(),
            pa.duration("s"),
            pa.decimal256(76, 0),
            pa.list_(pa.list_(pa.int64())),
            pa.map_(pa.string(), pa.int64()),
            pa.struct([]),
        ],
        ids=str,
    )
    def test_types_that_it_has_not(self, kind: pa.DataType) -> None:
        with pytest.raises(UsageError, match=r'BigQuery cannot hold the column "x": BigQuery has no type for'):
            table_schema(loadable(pa.schema([("x", kind)])))
        with pytest.raises(UsageError, match=r'the column "r\.x"'):
            table_schema(loadable(pa.schema([("r", pa.struct([("x", kind)]))])))

    @pytest.mark.parametrize("name", ["unit price", "größe", "1st", "a-b", "_PARTITIONTIME", "_table_x", "x" * 301, ""])
    def test_names_that_it_does_not_take(self, name: str) -> None:
        with pytest.raises(UsageError, match="its name must have only letters"):
            table_schema(pa.schema([(name, pa.int64())]))

    def test_names_that_differ_by_case(self) -> None:
        with pytest.raises(UsageError, match='column "ID": the name is not unique'):
            table_schema(pa.schema([("id", pa.int64()), ("ID", pa.int64())]))
