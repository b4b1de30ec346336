"""The doctor, on models, tables and options that are well and on those that are not."""

from __future__ import annotations

import io
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from apache_beam.io.localfilesystem import LocalFileSystem
from poisoned_table import Table
from rich.console import Console

from handlers.errors import UsageError
from pipelines import doctor, score
from pipelines.checks.checkup import Checkup, Finding, State


class RemoteFileSystem(LocalFileSystem):
    """A remote file system whose `doctored:///a/b` is the local `/a/b`; nothing can be written below `locked`."""

    @classmethod
    def scheme(cls) -> str:
        return "doctored"

    def create(self, path: str, *args: Any, **kwargs: Any) -> Any:
        if "/locked/" in path:
            raise PermissionError("403 Forbidden")
        return super().create(path.removeprefix("doctored://"), *args, **kwargs)

    def match(self, patterns: list[str], limits: list[int] | None = None) -> Any:
        return super().match([pattern.removeprefix("doctored://") for pattern in patterns], limits)

    def delete(self, paths: list[str]) -> None:
        super().delete([path.removeprefix("doctored://") for path in paths])


# By name of the check: how it went, and what was said.
Lines = dict[str, tuple[str, str]]
Examine = Callable[..., tuple[int, Lines]]


@pytest.fixture
def examine(capsys: pytest.CaptureFixture[str]) -> Examine:
    """Runs the command; gives its exit code and its lines."""

    def call(*arguments: str, **named: object) -> tuple[int, Lines]:
        code = doctor.main([*(f"--{name}={value}" for name, value in named.items()), *arguments])
        captured = capsys.readouterr()
        assert captured.err == ""
        *lines, blank, _ = captured.out.splitlines()
        assert blank == ""
        parts = [line.split(maxsplit=2) for line in lines]
        return code, {name: (state, text) for state, name, text in parts}

    return call


@pytest.fixture
def good_rows(poisoned: Table, tmp_path: Path) -> Path:
    """500 rows with nothing wrong."""
    good = [row for row in range(2_000) if row not in poisoned.poison and row not in poisoned.dropped][:500]
    pq.write_table(poisoned.table.take(pa.array(good)), tmp_path / "good.parquet")
    return tmp_path / "good.parquet"


@pytest.fixture
def copy(model: Path, tmp_path: Path) -> Path:
    """A model directory to spoil."""
    return Path(shutil.copytree(model, tmp_path / "copy"))


def change(model: Path, **fields: object) -> None:
    file = model / "model.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | fields))


def states(lines: Lines) -> dict[str, str]:
    return {name: state for name, (state, _) in lines.items()}


class TestAllIsWell:
    def test_every_check_is_ok(self, examine: Examine, good_rows: Path, model: Path, tmp_path: Path) -> None:
        before = sorted(tmp_path.rglob("*"))
        code, lines = examine(input=good_rows, model=model, output=tmp_path / "out" / "below")
        assert code == 0
        assert set(states(lines).values()) == {"ok"}, lines
        assert f"torch {torch.__version__.split('+')[0]}" in lines["versions"][1]
        assert f"1 parquet file of {good_rows.stat().st_size / 1000:.0f} kB, 500 rows" in lines["input"][1]
        assert "of the first 500 rows 500 are scored" in lines["rows"][1]
        assert sorted(tmp_path.rglob("*")) == before

    def test_nothing_given(self, examine: Examine) -> None:
        code, lines = examine()
        assert code == 0
        assert lines["model"] == ("skipped", "no --model was given")
        assert lines["rows"] == ("skipped", "no --model was given")
        assert lines["output"] == ("skipped", "no --output was given")

    def test_export_without_an_input_answers_zeros(self, examine: Examine, tmp_path: Path) -> None:
        program = torch.export.export(torch.nn.Linear(3, 2).eval(), (torch.zeros(4, 3),))
        torch.export.save(program, tmp_path / "bare.pt2")
        code, lines = examine(model=tmp_path / "bare.pt2")
        assert code == 0
        assert "8 parameters" in lines["weights"][1]
        assert lines["rows"] == ("ok", "the model scores rows of zeros")

    def test_table_without_rows(self, examine: Examine, model: Path, poisoned: Table, tmp_path: Path) -> None:
        pq.write_table(poisoned.table.slice(0, 0), tmp_path / "empty.parquet")
        code, lines = examine(model=model, input=tmp_path / "empty.parquet")
        assert code == 0
        assert lines["input"][0] == "warning"
        assert lines["rows"] == ("ok", "the model scores rows of zeros")


class TestProblems:
    def test_rows_that_would_be_dead_letters(self, examine: Examine, poisoned: Table, model: Path) -> None:
        code, lines = examine(input=poisoned.folder, model=model)
        first = [row for row in range(1_000) if row in poisoned.poison]
        dropped = [row for row in range(1_000) if row in poisoned.dropped]
        assert code == 0
        state, text = lines["rows"]
        assert state == "warning"
        scored = 1_000 - len(first) - len(dropped)
        assert f"of the first 1,000 rows {scored:,} are scored, {len(dropped)} dropped, {len(first)} would be" in text

    def test_damaged_weights(self, examine: Examine, copy: Path, good_rows: Path) -> None:
        change(copy, sha256="0" * 64)
        code, lines = examine(model=copy, input=good_rows)
        assert code == 2
        assert lines["model"][0] == "problem"
        assert "sha256" in lines["model"][1]
        assert lines["input"][0] == "ok"
        assert [lines[name] for name in ("weights", "columns")] == [("skipped", 'needs "model"')] * 2

    @pytest.mark.parametrize(
        "code", ["raise RuntimeError('out of order')", "import sys; sys.exit(7)", "import no_such"]
    )
    def test_code_that_cannot_be_imported(self, examine: Examine, tmp_path: Path, copy: Path, code: str) -> None:
        module = f"net_{abs(hash(code))}"
        (copy / "code").mkdir(exist_ok=True)
        (copy / "code" / f"{module}.py").write_text(code)
        change(copy, architecture=f"{module}:Net")
        found, lines = examine(model=copy)
        assert found == 2
        assert lines["weights"][0] == "problem"

    def test_missing_column(self, examine: Examine, copy: Path, good_rows: Path) -> None:
        change(copy, inputs=[{"name": "x", "columns": ["amount", "income"]}])
        code, lines = examine(model=copy, input=good_rows)
        assert code == 2
        assert lines["columns"][0] == "problem"
        assert '"income" is missing' in lines["columns"][1]
        assert lines["rows"] == ("skipped", 'needs "columns"')

    def test_input_that_is_not_there(self, examine: Examine, tmp_path: Path, model: Path) -> None:
        code, lines = examine(model=model, input=tmp_path / "nothing-*.parquet")
        assert code == 2
        assert "no file matches" in lines["input"][1]
        assert lines["columns"] == ("skipped", 'needs "input"')

    def test_output_below_a_file(self, examine: Examine, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        code, lines = examine(output=tmp_path / "file" / "out")
        assert code == 2
        assert lines["output"][0] == "problem"

    def test_remote_output(self, examine: Examine, tmp_path: Path) -> None:
        code, lines = examine(output=f"doctored://{tmp_path}/out")
        assert code == 0
        assert lines["output"][0] == "ok"
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
        code, lines = examine(output=f"doctored://{tmp_path}/locked/out")
        assert code == 2
        assert "403 Forbidden; check your access to it" in lines["output"][1]

    def test_output_in_the_model(self, examine: Examine, model: Path, good_rows: Path) -> None:
        code, lines = examine(model=model, input=good_rows, output=model / "scored")
        assert code == 2
        assert "is in the model" in lines["output"][1]

    def test_stores_that_do_not_answer(self, examine: Examine) -> None:
        code, lines = examine("--s3_endpoint_url=http://127.0.0.1:1", model="s3://bucket/model", input="s3://bucket/in")
        assert code == 2
        assert "cannot be reached" in lines["stores"][1]
        assert lines["model"] == lines["input"] == ("skipped", 'needs "stores"')

    def test_credentials(self, examine: Examine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("NO_GCE_CHECK", "true")
        code, lines = examine("--runner=DataflowRunner")
        assert code == 2
        assert "there are no Google credentials here" in lines["credentials"][1]

    def test_finished_run_in_the_way(
        self, examine: Examine, tmp_path: Path, model: Path, good_rows: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        output = tmp_path / "out"
        assert score.main([f"--input={good_rows}", f"--model={model}", f"--output={output}"]) == 0
        capsys.readouterr()
        code, lines = examine(output=output)
        assert code == 2
        assert "finished run" in lines["output"][1]
        assert examine("--overwrite", output=output)[0] == 0

    def test_gpu_that_is_not_there(self, examine: Examine) -> None:
        if torch.cuda.is_available():
            pytest.skip("this machine has a GPU")
        code, lines = examine(device="cuda")
        assert code == 2
        assert "sees no GPU" in lines["device"][1]

    def test_unknown_option(self, examine: Examine) -> None:
        code, lines = examine("--no_such_option=1")
        assert code == 2
        assert "--no_such_option" in lines["runner"][1]

    def test_wrong_value_is_told_before_any_check(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert doctor.main(["--batch_size=-3"]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "--batch_size" in captured.err


class TestIgnoredOptions:
    @pytest.mark.parametrize(
        ("runner", "argument", "way_out"),
        [
            ("SparkRunner", "--accelerator=type:nvidia-l4;count:1", "spark.executor.resource.gpu.amount"),
            ("SparkRunner", "--min_ram=16GB", "spark.executor.memory"),
            ("SparkRunner", "--num_workers=5", "spark.cores.max"),
            ("FnApiRunner", "--min_ram=16GB", "--runner=DataflowRunner"),
            ("FnApiRunner", "--spark_master_url=local[2]", "--runner=SparkRunner"),
            ("SparkRunner", "--direct_num_workers=4", "--runner=FnApiRunner"),
        ],
    )
    def test_are_told(self, examine: Examine, runner: str, argument: str, way_out: str) -> None:
        _, lines = examine(argument, runner=runner)
        state, text = lines["options"]
        assert state == "warning"
        assert text.startswith(f"{argument.split('=')[0]} is ignored by {runner}; ")
        assert way_out in text

    def test_heeded_ones_are_not(self, examine: Examine) -> None:
        assert examine("--spark_master_url=local[2]", runner="SparkRunner")[1]["options"][0] == "ok"
        assert examine("--direct_num_workers=1", runner="DirectRunner")[1]["options"][0] == "ok"

    def test_score_tells_them_too(
        self, good_rows: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        arguments = [f"--input={good_rows}", f"--model={model}", f"--output={tmp_path / 'out'}", "--min_ram=1GB"]
        assert score.main(arguments) == 0
        assert "torchbeam score: warning: --min_ram is ignored by FnApiRunner" in capsys.readouterr().err


class TestSpark:
    def test_no_java(self, examine: Examine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.delenv("JAVA_HOME", raising=False)
        code, lines = examine(runner="SparkRunner")
        assert code == 2
        assert lines["java"][0] == "problem"
        assert "install Java 17" in lines["java"][1]

    def test_no_master(self, examine: Examine) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        code, lines = examine(runner="SparkRunner", spark_master_url=f"spark://127.0.0.1:{port}")
        assert code == 2
        assert "refuses connections" in lines["master"][1]
        assert lines["cores"] == ("skipped", 'needs "master"')

    def test_local_path_with_other_machines(self, examine: Examine, good_rows: Path) -> None:
        url = "spark://no-such-host.invalid:7077"
        code, lines = examine(runner="SparkRunner", spark_master_url=url, input=good_rows)
        assert code == 2
        assert "--shared_filesystem" in lines["paths"][1]
        assert "not a known host" in lines["master"][1]

    def test_streaming(self, examine: Examine) -> None:
        code, lines = examine("--streaming", runner="SparkRunner")
        assert code == 2
        assert lines["streaming"][0] == "problem"


class TestCheckup:
    def test_outcomes_and_what_depends_on_them(self, capsys: pytest.CaptureFixture[str]) -> None:
        checkup = Checkup()
        good = checkup.check("good", lambda: Finding("is well", 7))
        assert good.value == 7
        bad = checkup.check("bad", lambda: Finding("never", 1 // 0))
        checkup.check("after", lambda: Finding("is well", bad.value))
        checkup.check("wrong", _refuse)
        assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
            ["ok", "good", "is", "well"],
            ["problem", "bad", "ZeroDivisionError:", "integer", "division", "or", "modulo", "by", "zero"],
            ["skipped", "after", "needs", '"bad"'],
            ["problem", "wrong", "say", "what", "else"],
        ]
        assert checkup.counts == {State.OK: 1, State.PROBLEM: 2, State.SKIPPED: 1}

    def test_table_in_a_terminal(self) -> None:
        screen = io.StringIO()
        checkup = Checkup(console=Console(file=screen, force_terminal=True, width=50, no_color=True))
        checkup.check("long", lambda: Finding("a text that is longer than the line of the terminal", None))
        lines = [line.rstrip() for line in screen.getvalue().splitlines()]
        assert len(lines) == 2
        assert lines[1].startswith(" " * 24)


def _refuse() -> Finding[None]:
    raise UsageError("say what else")
