"""Wrong usage: one line on stderr that names the thing, exit code 2, nothing written."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from poisoned_table import Table, save_model

from handlers.errors import UsageError
from handlers.version import __version__
from pipelines import cli, runners, score
from pipelines.command.options import RunOptions
from pipelines.jobs import scoring as score_job
from pipelines.jobs.options import ScoreOptions

Refused = Callable[..., str]


@pytest.fixture
def copy(model: Path, tmp_path: Path) -> Path:
    """A model directory to spoil."""
    return Path(shutil.copytree(model, tmp_path / "copy"))


@pytest.fixture
def refused(poisoned: Table, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs the command, which must refuse, and gives the line that it says."""

    def call(*arguments: str, **replaced: object) -> str:
        output = tmp_path / "out"
        named = {"input": poisoned.folder, "model": model, "output": output} | replaced
        code = score.main([*(f"--{name}={value}" for name, value in named.items()), *arguments])
        captured = capsys.readouterr()
        assert code == 2, captured.err
        assert captured.out == ""
        (line,) = captured.err.splitlines()
        assert line.startswith("torchbeam score: error: ")
        assert not output.exists()
        return line

    return call


def change(model: Path, **fields: object) -> None:
    file = model / "model.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | fields))


class TestBigQuery:
    def test_a_table_as_output_needs_a_report_and_a_place_for_files(self, refused: Refused) -> None:
        assert "--output=bigquery:p.d.t needs --report=FILE" in refused(output="bigquery:p.d.t")
        line = refused(output="bigquery:p.d.t", report="r.json", temp_location="/tmp")
        assert "--output=bigquery:p.d.t needs --temp_location=gs://bucket/folder" in line
        assert not Path("bigquery:p.d.t").exists()

    def test_a_table_is_within_reach_of_all_workers(self) -> None:
        runners.check_paths(RunOptions("DataflowRunner"), [], ["bigquery:p.d.t", "gs://bucket/out"])
        with pytest.raises(UsageError, match=r'"in\.csv" is a local path'):
            runners.check_paths(RunOptions("DataflowRunner"), [], ["bigquery:p.d.t", "in.csv"])

    def test_what_is_neither_table_nor_query(self, refused: Refused) -> None:
        assert "write bigquery:project.dataset.table" in refused(input="bigquery:orders")


class TestModels:
    def test_pickled_model(self, refused: Refused, copy: Path) -> None:
        torch.save(torch.nn.Linear(2, 2), copy / "weights.pt")
        spec = yaml.safe_load((copy / "model.yaml").read_text())
        del spec["sha256"]
        (copy / "model.yaml").write_text(yaml.safe_dump(spec | {"format": "state_dict", "weights": "weights.pt"}))
        assert "ModelDir.save" in refused(model=copy)

    def test_wrong_sha256(self, refused: Refused, copy: Path) -> None:
        change(copy, sha256="0" * 64)
        assert "sha256" in refused(model=copy)

    def test_unknown_field(self, refused: Refused, copy: Path) -> None:
        change(copy, colour="red")
        assert 'unknown field "colour"' in refused(model=copy)

    def test_missing_column(self, refused: Refused, copy: Path) -> None:
        change(copy, inputs=[{"name": "x", "columns": ["amount", "income"]}])
        line = refused(model=copy)
        assert '"income" is missing' in line
        assert "f_0" in line

    @pytest.mark.parametrize(
        "expression", ["sum(f_1)", "f_1 - avg(f_1) over ()", "row_number() over (order by f_1)", "count(*)"]
    )
    def test_feature_over_other_rows(self, refused: Refused, copy: Path, expression: str) -> None:
        change(copy, features={"g": expression})
        assert 'feature "g"' in refused(model=copy)

    def test_unreadable_model(self, refused: Refused, tmp_path: Path) -> None:
        assert "does not exist" in refused(model=tmp_path / "nowhere")
        (tmp_path / "junk.pt2").write_bytes(b"junk")
        assert "junk.pt2" in refused(model=tmp_path / "junk.pt2")
        (tmp_path / "folder").mkdir()
        assert "model.yaml" in refused(model=tmp_path / "folder")

    def test_function_that_is_not_there(self, refused: Refused) -> None:
        assert "nowhere:function" in refused("--preprocess=nowhere:function")
        assert "no_such" in refused("--postprocess=poison_rows:no_such")
        assert "module:function" in refused("--postprocess=poison_rows")

    def test_gpu_that_is_not_there(self, refused: Refused) -> None:
        if torch.cuda.is_available():
            pytest.skip("this machine has a GPU")
        assert "sees no GPU" in refused("--device=cuda")
        assert "not one of auto" in refused("--device=tpu")


class TestOptions:
    @pytest.mark.parametrize(
        ("argument", "named"),
        [
            ("--batch_size=-3", "--batch_size"),
            ("--batch_size=many", "--batch_size"),
            ("--limit=0", "--limit"),
            ("--max_failure_rate=1.5", "--max_failure_rate"),
            ("--precision=int4", "--precision"),
            ("--output_format=xml", "--output_format"),
            ("--columns=nothing_like_it", "nothing_like_it"),
            ("--colums=id", "--columns"),
            ("--no_such_option=1", "--no_such_option"),
            ("--runner=NoSuchRunner", "NoSuchRunner"),
            ("--min_ram=4", "--min_ram"),
            ("--chunk_bytes=64", '--chunk_bytes "64" has no unit; write it with one, as 64MB'),
            ("--chunk_bytes=much", '--chunk_bytes "much" is no amount of memory; write it as 64MB'),
            ("--chunk_bytes=64mb", '--chunk_bytes "64mb" has the unknown unit "mb"; write one of KB, MB'),
            ("--chunk_bytes=1KB", '--chunk_bytes "1KB" is too small; write 1MB to 1GB'),
            ("--chunk_bytes=2GiB", '--chunk_bytes "2GiB" is too large; write 1MB to 1GB'),
            ("--overwrite=perhaps", "--overwrite"),
            ("stray", "stray"),
            ("--report=", "--report is empty"),
            ("--input=twice", "--input is given twice"),
            ("--runner=os.path", "os.path"),
            ("--runner=apache_beam.Pipeline", "is a Pipeline, not a runner of Beam"),
            ("--direct_num_workers=abc", "--direct_num_workers: invalid int value: 'abc'"),
            ("--direct_num_workers=-1", "--direct_num_workers must be"),
            ("--direct_running_mode=foo", "--direct_running_mode: invalid choice"),
            ("--profile_cpu", "--profile_cpu needs --profile_location"),
            ("--report=https://host/report.json", "paths of https:// are not read here"),
            ("--report=gs://", "--report gs:// names no bucket"),
        ],
    )
    def test_wrong_value(self, refused: Refused, argument: str, named: str) -> None:
        assert named in refused(argument)

    @pytest.mark.parametrize("name", ["input", "model", "output"])
    def test_empty_value(self, refused: Refused, name: str) -> None:
        assert f"--{name} is empty" in refused(**{name: ""})

    def test_missing_required(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert score.main(["--input=x"]) == 2
        assert "--model" in capsys.readouterr().err

    def test_local_paths_with_other_machines(self, refused: Refused) -> None:
        assert "--shared_filesystem" in refused("--runner=SparkRunner", "--spark_master_url=spark://host:7077")

    @pytest.mark.parametrize(
        ("runner", "argument"),
        [
            ("SparkRunner", "--spark_master_url=local[2]"),
            ("SparkRunner", "--spark_master_url=spark://127.0.0.1:7077"),
            ("SparkRunner", "--spark_master_url=spark://localhost:7077,127.0.0.2:7077"),
            ("SparkRunner", "--spark_master_url=spark://[::1]:7077"),
            ("FlinkRunner", "--flink_master=localhost:8081"),
            ("FlinkRunner", "--flink_master=[::1]:8081"),
        ],
    )
    def test_local_paths_with_a_master_that_only_this_machine_reaches(self, runner: str, argument: str) -> None:
        runners.check_paths(RunOptions(runner), [argument], ["in.csv"])

    @pytest.mark.parametrize(
        ("runner", "argument"),
        [
            ("SparkRunner", "--spark_master_url=spark://localhost:7077,host:7077"),
            ("SparkRunner", f"--spark_master_url=spark://{socket.gethostname()}:7077"),
            ("SparkRunner", "--spark_master_url=spark://localhost.example.com:7077"),
            ("SparkRunner", "--spark_master_url=spark://0.0.0.0:7077"),
            ("SparkRunner", "--spark_master_url=yarn"),
            ("FlinkRunner", "--flink_master=local.example.com:8081"),
            ("FlinkRunner", "--flink_master=[2001:db8::1]:8081"),
            ("DataflowRunner", "--dataflow_endpoint=http://localhost.example.com:80"),
            ("DataflowRunner", "--temp_location=/tmp"),
        ],
    )
    def test_local_paths_with_a_master_that_others_reach(self, runner: str, argument: str) -> None:
        with pytest.raises(UsageError, match="workers are on other machines"):
            runners.check_paths(RunOptions(runner), [argument], ["in.csv"])

    def test_local_paths_with_a_stand_in_for_dataflow(self) -> None:
        arguments = ["--dataflow_endpoint=http://localhost:8080", "--temp_location=/tmp"]
        runners.check_paths(RunOptions("DataflowRunner"), arguments, ["in.csv"])
        arguments[1] = "--temp_location=gs://bucket/tmp"
        with pytest.raises(UsageError, match="workers are on other machines"):
            runners.check_paths(RunOptions("DataflowRunner"), arguments, ["in.csv"])

    def test_csv_cannot_hold_lists(self, refused: Refused) -> None:
        assert "column vec" in refused("--output_format=csv")

    def test_model_copies_reach_the_workers(self) -> None:
        options = ScoreOptions.parse(["--input=x", "--model=x", "--output=x", "--model_copies=3"], score.COMMAND)
        assert score_job.placement(options.model).copies == 3


class TestOutputs:
    """What a run writes never takes the place of what it reads, nor of what is not its own."""

    def test_the_report_is_a_file_of_the_input(self, refused: Refused, poisoned: Table, tmp_path: Path) -> None:
        table = tmp_path / "in.parquet"
        pq.write_table(poisoned.table.slice(0, 10), table)
        before = table.read_bytes()
        assert f"--report {table} exists" in refused(input=table, report=table)
        assert "not a report of a run" in refused("--overwrite", input=table, report=table)
        assert table.read_bytes() == before

    def test_outputs_in_the_model(self, refused: Refused, copy: Path) -> None:
        assert "is in the model" in refused(model=copy, output=copy / "scored")
        assert "is in the model" in refused(model=copy, report=copy / "report.json")
        assert "not a report of a run" in refused("--overwrite", model=copy, report=copy / "model.yaml")

    def test_the_input_is_a_run_in_the_output(
        self, poisoned: Table, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        pq.write_table(poisoned.table.slice(0, 2000), tmp_path / "in.parquet")
        run = [f"--model={model}", f"--output={tmp_path / 'run'}", "--overwrite"]
        assert score.main([f"--input={tmp_path / 'in.parquet'}", *run]) == 0
        before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
        capsys.readouterr()
        for source in ("run/dead_letters", "run/predictions", "run"):
            assert score.main([f"--input={tmp_path / source}", "--input_format=parquet", *run]) == 2
            assert "is part of a run in --output" in capsys.readouterr().err
        assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before

    @pytest.mark.parametrize("name", ["report.json", "failed_files.jsonl", "predictions"])
    def test_what_is_in_the_way(
        self, poisoned: Table, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
    ) -> None:
        there = tmp_path / "out" / name
        there.parent.mkdir()
        there.touch() if name == "predictions" else there.mkdir()
        flags = [f"--input={poisoned.folder}", f"--model={model}", f"--output={tmp_path / 'out'}", "--overwrite"]
        assert score.main(flags) == 2
        assert f"{there} is " in capsys.readouterr().err

    def test_a_link_to_nothing(self, refused: Refused, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(tmp_path / "gone")
        assert "link is not a folder" in refused(output=tmp_path / "link")


class TestInputs:
    def test_no_input(self, refused: Refused, tmp_path: Path) -> None:
        assert "nothing-*.parquet" in refused(input=tmp_path / "nothing-*.parquet")

    def test_unknown_extension(self, refused: Refused, tmp_path: Path) -> None:
        (tmp_path / "x.xyz").write_text("1")
        assert "--input_format" in refused(input=tmp_path / "x.xyz")

    def test_only_broken_files(self, refused: Refused, tmp_path: Path) -> None:
        (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
        assert "a.parquet" in refused(input=tmp_path / "a.parquet")

    def test_column_that_predictions_have_too(self, refused: Refused, tmp_path: Path, poisoned: Table) -> None:
        table = poisoned.table.slice(0, 10).append_column("confidence", pa.array([0.5] * 10))
        pq.write_table(table, tmp_path / "x.parquet")
        line = refused(input=tmp_path / "x.parquet")
        assert '"confidence"' in line
        assert "--columns" in line


def _export(linear: torch.nn.Module, path: Path) -> None:
    program = torch.export.export(linear, (torch.zeros(4, 3),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    torch.export.save(program, path)


def _script(linear: torch.nn.Module, path: Path) -> None:
    torch.jit.script(linear).save(path)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize(("save", "name"), [(_export, "bare.pt2"), (_script, "bare.pt")])
def test_bare_file_takes_the_columns_of_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], save: Callable[[torch.nn.Module, Path], None], name: str
) -> None:
    """A file that holds a program, and a table with as many columns of numbers as it takes: no model.yaml is needed."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(3, 2).eval()
    save(linear, tmp_path / name)
    # TorchScript does not tell how many columns it takes, so that the table has no others.
    table = pa.table({"name": ["p", "q"], "a": [1.0, 2.0], "b": [3, 4], "c": [5.0, -6.0]})
    pq.write_table(table, tmp_path / "in.parquet")
    arguments = [f"--input={tmp_path / 'in.parquet'}", f"--model={tmp_path / name}"]
    assert score.main([*arguments, f"--output={tmp_path / 'out'}"]) == 0, capsys.readouterr().err
    found = pq.read_table(tmp_path / "out" / "predictions")
    expected = linear(torch.tensor([[1.0, 3, 5], [2, 4, -6]])).detach().numpy()
    assert abs(found["output"].combine_chunks().flatten().to_numpy().reshape(2, 2) - expected).max() <= 1e-6
    assert found["name"].to_pylist() == ["p", "q"]


def test_model_directory_that_is_saved_over_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("three years of work")
    with pytest.raises(Exception, match="not a model directory"):
        save_model(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_help_imports_neither_torch_nor_beam() -> None:
    code = (
        "import sys\nfrom pipelines import score\ntry: score.main(['--help'])\nexcept SystemExit as e: assert e.code == 0\n"
        "heavy = {'torch', 'apache_beam', 'pyarrow', 'pandas'} & set(sys.modules)\nassert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--max_failure_rate" in done.stdout


def test_console_script(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    assert "score" in capsys.readouterr().out
    assert cli.main(["sing"]) == 2
    assert '"sing"' in capsys.readouterr().err
    assert cli.main(["scor"]) == 2
    assert 'unknown command "scor"; did you mean "score"?' in capsys.readouterr().err
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"torchbeam {__version__}\n"
    for name, option in {"describe": "--model", "init": "--from", "run": "--config"}.items():
        assert cli.main([name, "models/churn"]) == 2
        assert f'unexpected argument "models/churn"; write {option}=' in capsys.readouterr().err
    assert cli.main(["score", "--input=x"]) == 2
