"""`run`: the stages for real, from the example's tables to a report; what is skipped, and what is refused before anything runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from deadlines import WAIT_SECONDS

from pipelines import cli, run
from pipelines.jobs.stages import PipelineConfig, Stage, is_done, read_stamp, stages

EXAMPLE = Path(__file__).parents[2] / "examples" / "breast_cancer"

pytestmark = pytest.mark.slow(25)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs the commands of the stages in this process, which saves their imports; gives the names of those that ran."""
    ran: list[str] = []

    def call(stage: Stage, more: dict[str, bool]) -> int:
        ran.append(stage.name + "".join(f" {name}" for name in more))
        return cli.main([stage.name, *stage.arguments(**more)])

    monkeypatch.setattr(run, "_call", call)
    return ran


def write_config(folder: Path, **changes: Any) -> Path:
    content = yaml.safe_load((EXAMPLE / "config.yaml").read_text())
    content["output"] = str(folder / "out")
    content["prepare"] |= {"input": str(folder / "known.parquet"), "model": str(folder / "model.yaml")}
    content["score"]["input"] = str(folder / "new.parquet")
    content["train"]["epochs"] = 3
    content["evaluate"]["fail_below"] = ["accuracy=0.6"]
    for name, value in changes.items():
        content[name] = value if not isinstance(value, dict) else content.get(name, {}) | value
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump({name: value for name, value in content.items() if value is not None}))
    return file


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tables")
    command = [sys.executable, str(EXAMPLE / "tables.py"), str(folder)]
    subprocess.run(command, check=True, timeout=WAIT_SECONDS)
    return folder


@pytest.fixture
def folder(tables: Path, tmp_path: Path) -> Path:
    for file in (*tables.iterdir(), EXAMPLE / "model.yaml"):
        shutil.copy(file, tmp_path)
    return tmp_path


def main(file: Path, *flags: str) -> int:
    return run.main([f"--config={file}", *flags])


def test_from_tables_to_a_report(folder: Path, in_process: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    file = write_config(folder)
    assert main(file) == 0
    assert in_process == ["prepare", "train", "score", "evaluate"]
    shown = capsys.readouterr().out
    assert f"report  {folder}/out/evaluation/report.html" in shown
    rows = {line.split()[0]: line.split() for line in shown.splitlines()[-8:] if line}
    assert rows["prepare"][1:2] + rows["prepare"][3:4] == ["ran", "469"]
    assert rows["score"][3:5] == ["98", "2"]
    metrics = json.loads((folder / "out/evaluation/metrics.json").read_text())
    assert rows["evaluate"][3:] == ["98", "accuracy", f"{metrics['accuracy']:.4g}"]
    assert metrics["accuracy"] >= 0.6
    assert "log_loss" in metrics  # from the probabilities
    assert "mean_radius" in metrics["drift"]  # against the fingerprint of the training
    assert pq.read_table(folder / "out/scored/predictions").num_rows == 98

    # Nothing has changed.
    assert main(file) == 0
    assert len(in_process) == 4
    assert capsys.readouterr().out.count("skipped") == 4
    # Another limit concerns the evaluation alone. It is not reached, which is the exit code of the run, this time and the next.
    write_config(folder, evaluate={"fail_below": ["accuracy=0.6", "roc_auc=1.01"]})
    for _ in range(2):
        assert main(file) == 3
        assert in_process[4:] == ["evaluate overwrite"]
        out, err = capsys.readouterr()
        assert "exit code 3" in out
        assert "report.html" in out
        assert "stage evaluate ended with exit code 3" in err
        del in_process[4:]
    # Other rows to score concern the later stages.
    write_config(folder)
    pq.write_table(pq.read_table(folder / "new.parquet").slice(0, 60), folder / "new.parquet")
    assert main(file) == 0
    assert in_process[4:] == ["score overwrite", "evaluate overwrite"]
    assert json.loads((folder / "out/evaluation/metrics.json").read_text())["rows"] == 58
    # A changed feature concerns all stages: training and scoring compute it alike.
    del in_process[:]
    before = json.loads((folder / "out/scored/report.json").read_text())["model"]["version"]
    text = (folder / "model.yaml").read_text()
    (folder / "model.yaml").write_text(text.replace("worst_radius / mean_radius", "worst_radius - mean_radius"))
    assert main(file) == 0
    assert [name.split()[0] for name in in_process] == ["prepare", "train", "score", "evaluate"]
    assert json.loads((folder / "out/scored/report.json").read_text())["model"]["version"] != before
    for written in ("out/prepared/prepared.json", "out/model/model.yaml"):
        features = yaml.safe_load((folder / written).read_text())["features"]
        assert features["growth"] == "worst_radius - mean_radius"
    # One stage, or some, also without a change.
    del in_process[:]
    assert main(file, "--only=score", "--force") == 0
    assert main(file, "--from=evaluate", "--force") == 0
    assert in_process == ["score overwrite", "evaluate overwrite"]


def test_what_a_stage_depends_on(folder: Path) -> None:
    def keys(**changes: Any) -> dict[str, str]:
        return {each.name: each.key() for each in stages(PipelineConfig.open(str(write_config(folder, **changes))))}

    def changed(before: dict[str, str], after: dict[str, str]) -> list[str]:
        return [name for name in before if before[name] != after[name]]

    first = keys()
    assert keys() == first
    assert changed(first, keys(prepare={"seed": 1})) == ["prepare"]
    assert changed(first, keys(train={"seed": 1})) == ["train"]
    os.utime(folder / "known.parquet", (1, 1))
    assert changed(first, touched := keys()) == ["prepare"]
    (folder / "code").mkdir()
    (folder / "code/made.py").write_text("x = 1")
    assert changed(touched, keys()) == ["prepare", "train"]
    # Of a table it is not known whether it has changed.
    table = keys(prepare={"input": "bigquery:project.dataset.table"})
    assert table["prepare"] == ""
    assert keys(score={"model": "credit@champion"})["score"] == ""
    stage = stages(PipelineConfig.open(str(folder / "config.yaml")))[0]
    assert not is_done(stage, "", {"key": "", "result": None})


def test_an_interrupted_training_goes_on(folder: Path, in_process: list[str]) -> None:
    file = write_config(folder, train={"epochs": 2}, score=None, evaluate=None)
    assert main(file) == 0
    train = stages(PipelineConfig.open(str(file)))[1]
    stamp = read_stamp(train)
    train.stamp_file.write_text(json.dumps({"key": stamp["key"]}))  # as where it was killed
    shutil.rmtree(train.output)
    del in_process[:]
    assert main(file) == 0
    assert in_process == ["train resume"]
    assert read_stamp(train)["result"]
    # A result that someone has changed would be made again.
    assert is_done(train, train.key(), read_stamp(train))
    with (Path(train.output) / "model.yaml").open("a") as model:
        model.write("threshold: 0.4\n")
    assert not is_done(train, train.key(), read_stamp(train))


def test_a_stage_that_fails(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """In a process of its own, as users run it: its line is shown, its exit code is that of the run, and no stage follows."""
    file = write_config(folder, prepare={"label": "diagnosys"})
    assert main(file) == 2
    out, err = capfd.readouterr()
    assert 'did you mean "diagnosis"?' in err
    assert "stage prepare ended with exit code 2" in err
    assert "exit code 2" in out
    assert not (folder / "out/model").exists()


@pytest.mark.parametrize("flags", [(), ("--force",)])
def test_what_no_run_has_written_is_never_replaced(folder: Path, in_process: list[str], flags: tuple[str, ...]) -> None:
    theirs = folder / "out/prepared/prepared.json"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("{}")
    file = write_config(folder, train=None, score=None, evaluate=None)
    assert [main(file, *flags), main(file, *flags)] == [2, 2]
    assert in_process == ["prepare", "prepare"]
    assert theirs.read_text() == "{}"


def test_stages_alone(folder: Path) -> None:
    file = folder / "config.yaml"
    file.write_text("output: out/\nscore: {input: a.parquet, model: m, preprocess: [a:b, c:d]}\nevaluate: {label: y}\n")
    score, evaluate = stages(PipelineConfig.open(str(file)))
    assert score.arguments(overwrite=True) == [
        "--output=out/scored", "--input=a.parquet", "--model=m", "--preprocess=a:b", "--preprocess=c:d",
        "--probabilities=true", "--overwrite=true",
    ]  # fmt: skip
    assert evaluate.arguments() == ["--output=out/evaluation", "--label=y", "--input=out/scored"]


def test_refused_before_anything_runs(folder: Path, in_process: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    def refused(content: str | None = None, *flags: str, **changes: Any) -> str:
        file = write_config(folder, **changes)
        if content is not None:
            file.write_text(content)
        capsys.readouterr()
        assert main(file, *flags) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1, err
        return err

    assert "is not YAML" in refused("output: {")
    assert "is not YAML" in refused("[" * 2000)
    assert "must be a mapping" in refused("- a")
    assert 'field "output" is missing' in refused("score: {input: a}")
    assert 'unknown field "evalute"; there are: output, prepare' in refused("output: a\nevalute: {}")
    assert "has no stage" in refused("output: a")
    assert 'field "score": must be a mapping' in refused("output: a\nscore: 3")
    assert 'field "prepare.input" must be text, a number' in refused("output: a\nprepare: {input: {a: 1}}")
    assert f"output {folder}/model.yaml/a cannot be written" in refused(output=f"{folder}/model.yaml/a")
    assert "output must be a local folder" in refused(output="gs://bucket/out")
    assert 'evaluate: --fail_below there is no metric "acuracy"' in refused(evaluate={"fail_below": ["acuracy=1"]})
    assert "train: --epochs must be a whole number" in refused(train={"epochs": "many"})
    assert "score: unknown option --prob" in refused(score={"prob": True})
    assert "prepare: --sample and --sample_rows exclude each other" in refused(
        prepare={"sample": 0.5, "sample_rows": 9}
    )
    assert "--only=train: " in refused(None, "--only=train", train=None, score=None, evaluate=None)
    assert "exclude each other" in refused(None, "--only=train", "--from=train")
    assert main(folder / "none.yaml") == 2
    assert in_process == []
    assert not (folder / "out").exists()


def test_help_is_light() -> None:
    code = (
        "import sys\nfrom pipelines import run\n"
        "try:\n    run.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'apache_beam') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=WAIT_SECONDS
    )
    assert done.stdout.endswith("[]\n")
    assert "--only" in done.stdout
