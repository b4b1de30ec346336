"""Several models in one run of the command: outputs, accounts, dead letters, and the line for every wrong use."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import torch

from handlers import ModelDir
from pipelines import doctor, score
from pipelines.jobs.models import open_models, with_models
from pipelines.jobs.options import ScoreOptions
from transforms.registry.registry import ModelRegistry

pytestmark = pytest.mark.slow(15)

ROWS = 3_000
BAD = {"small": 17, "large": 1_234}  # ids of rows on which a model fails
TROUBLE = 13.0


class Net(torch.nn.Module):
    """Logits i·x + y of `classes` classes; raises for rows that hold `trouble`."""

    def __init__(self, classes: int = 2, trouble: float = TROUBLE) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.arange(float(classes)))
        self.trouble = trouble

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if (x == self.trouble).any():
            raise ValueError("trouble")
        return x[:, :1] * self.weight + x[:, 1:]


def save(folder: Path, classes: int, trouble: float) -> ModelDir:
    return ModelDir.save(
        Net(classes, trouble),
        folder,
        task="classification",
        labels=[f"c{index}" for index in range(classes)],
        arguments={"classes": classes, "trouble": trouble},
        inputs=[{"name": "x", "columns": ["x", "y"]}],
    )


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table in two files, and two models, each of which fails on a row."""
    folder = tmp_path_factory.mktemp("several")
    save(folder / "models" / "small", 2, TROUBLE)
    save(folder / "models" / "large", 3, TROUBLE + 1)
    random = np.random.default_rng(5)
    y = random.normal(size=ROWS)
    y[BAD["small"]], y[BAD["large"]] = TROUBLE, TROUBLE + 1
    table = pa.table({"id": range(ROWS), "x": random.normal(size=ROWS) * 2, "y": y})
    (folder / "in").mkdir()
    pq.write_table(table.slice(0, 1_000), folder / "in" / "1.parquet")
    pq.write_table(table.slice(1_000), folder / "in" / "2.parquet")
    return folder


def write(folder: Path, text: str, name: str = "models.yaml") -> Path:
    (folder / name).write_text(text)
    return folder / name


def run(here: Path, output: Path, *arguments: object) -> int:
    return score.main([f"--input={here / 'in'}", f"--output={output}", *map(str, arguments)])


def read(folder: Path) -> pa.Table:
    return ds.dataset(sorted(folder.glob("part-*.parquet"))).to_table().sort_by("id")


def report(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / "report.json").read_text())
    return found


def counts(output: Path, name: str = "") -> tuple[int, ...]:
    found = report(output)
    if not name:
        return tuple(found[f"rows_{what}"] for what in ("read", "scored", "dropped", "dead"))
    each = found["models"][name]
    return tuple(each[f"rows_{what}"] for what in ("in", "scored", "dropped", "dead", "skipped"))


@pytest.fixture(scope="module")
def alone(here: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, pa.Table]:
    """What each model answers in a run of its own, by its name."""
    found = {}
    for name in BAD:
        output = tmp_path_factory.mktemp("alone") / name
        assert run(here, output, f"--model={here / 'models' / name}") == 0
        found[name] = read(output / "predictions")
    return found


class TestTwoModels:
    def test_named_on_the_command_line(self, here: Path, alone: dict[str, pa.Table], tmp_path: Path) -> None:
        models = [f"--model={name}={here / 'models' / name}" for name in BAD]
        assert run(here, tmp_path / "out", *models) == 0
        assert counts(tmp_path / "out") == (ROWS, ROWS - 2, 0, 2)
        assert counts(tmp_path / "out", "small") == (ROWS, ROWS - 1, 0, 1, 0)
        assert counts(tmp_path / "out", "large") == (ROWS - 1, ROWS - 2, 0, 1, 0)
        found = read(tmp_path / "out" / "predictions")
        good = [row for row in range(ROWS) if row not in BAD.values()]
        assert found["id"].to_pylist() == good
        for name, expected in alone.items():
            expected = expected.filter(~np.isin(expected["id"], list(BAD.values())))
            assert found[f"{name}_predicted_class"].equals(expected["predicted_class"])
            assert np.abs(found[f"{name}_confidence"].to_numpy() - expected["confidence"].to_numpy()).max() <= 1e-6
            assert found[f"{name}_model_version"].equals(expected["model_version"])
        letters = read(tmp_path / "out" / "dead_letters")
        assert letters["id"].to_pylist() == list(BAD.values())
        assert [each["model"] for each in letters["dead_letter"].to_pylist()] == list(BAD)
        found_report = report(tmp_path / "out")
        assert found_report["model"]["name"] == "small, large"
        assert found_report["models"]["small"]["version"] == ModelDir(here / "models" / "small").version
        assert found_report["models"]["small"]["dead_by_error"] == {"forward/ValueError": 1}

        # Dead letters are scored again, by several models or by one.
        again = f"--input={tmp_path / 'out' / 'dead_letters'}"
        assert score.main([again, f"--output={tmp_path / 'again'}", *models]) == 3
        assert counts(tmp_path / "again") == (2, 0, 0, 2)
        assert score.main([again, f"--output={tmp_path / 'one'}", models[1].replace("large=", "")]) == 0
        assert read(tmp_path / "one" / "predictions")["id"].to_pylist() == [BAD["small"]]

    def test_one_named_model_is_a_run_of_one_model(
        self, here: Path, alone: dict[str, pa.Table], tmp_path: Path
    ) -> None:
        file = write(here, "models: [{name: small, model: models/small, device: cpu, batch_size: 100}]", "one.yaml")
        for argument in (f"--model=small={here / 'models' / 'small'}", f"--models={file}"):
            assert run(here, tmp_path / "out", argument, "--overwrite") == 0
            assert read(tmp_path / "out" / "predictions").schema.equals(alone["small"].schema)
            assert "models" not in report(tmp_path / "out")

    def test_cascade_of_two_steps(self, here: Path, alone: dict[str, pa.Table], tmp_path: Path) -> None:
        file = write(
            here,
            "models:\n"
            "  - {name: small, model: models/small, on_failure: continue}\n"
            "  - {name: large, model: models/large, when: small_confidence < 0.8 or small_confidence is null,\n"
            "     on_failure: continue, hints: {min_ram: 1GB}}\n",
        )
        assert run(here, tmp_path / "out", f"--models={file}", "--output_format=jsonl") == 0
        lines = [
            json.loads(line)
            for part in (tmp_path / "out" / "predictions").glob("*.jsonl")
            for line in part.read_text().splitlines()
        ]
        by_id = {
            name: dict(zip(table["id"].to_pylist(), table["confidence"].to_pylist(), strict=True))
            for name, table in alone.items()
        }
        assert len(lines) == counts(tmp_path / "out")[1]
        asked = 0
        for row in lines:
            first = by_id["small"].get(row["id"])
            wanted = first is None or first < 0.8
            asked += wanted
            expected = by_id["large"].get(row["id"]) if wanted else None
            for mine, other in ((row.get("small_confidence"), first), (row.get("large_confidence"), expected)):
                assert mine == other if other is None else abs(mine - other) <= 1e-6
        unsure = by_id["small"].get(BAD["large"], 1) < 0.8
        assert counts(tmp_path / "out") == (ROWS, ROWS, 0, 0)
        assert counts(tmp_path / "out", "large") == (ROWS, asked - unsure, 0, int(unsure), ROWS - asked)

    def test_split(self, here: Path, tmp_path: Path) -> None:
        file = write(
            here,
            "models:\n  - {name: small, model: models/small}\n  - {name: large, model: models/large}\n"
            "split: {by: id, small: 0.5, large: 0.5}\n",
            "split.yaml",
        )
        assert run(here, tmp_path / "out", f"--models={file}", "--columns=id") == 0
        found = read(tmp_path / "out" / "predictions")
        chosen = np.array(found["model"].to_pylist())
        for name in BAD:
            assert (found[f"{name}_confidence"].is_valid().to_numpy() == (chosen == name)).all()
            assert 1_300 < (chosen == name).sum() < 1_700


@pytest.mark.parametrize("output_format", ["jsonl", "avro", "csv"])
def test_dead_letters_of_every_format_are_scored_again(here: Path, tmp_path: Path, output_format: str) -> None:
    models = [f"--model={name}={here / 'models' / name}" for name in BAD]
    assert run(here, tmp_path / "out", *models, f"--output_format={output_format}", "--columns=id") == 0
    one = f"--model={here / 'models' / 'large'}"
    assert score.main([f"--input={tmp_path / 'out' / 'dead_letters'}", one, f"--output={tmp_path / 'again'}"]) == 0
    assert read(tmp_path / "again" / "predictions")["id"].to_pylist() == [BAD["small"]]
    (letter,) = read(tmp_path / "again" / "dead_letters")["dead_letter"].to_pylist()
    assert letter["source"] == str(here / "in" / "2.parquet")
    assert letter["stage"] == "forward"


class TestCompare:
    def test_files(self, here: Path, alone: dict[str, pa.Table], tmp_path: Path) -> None:
        models = "models:\n  - {name: small, model: models/small}\n  - {name: large, model: models/large}\n"
        file = write(here, f"{models}compare: [large, small]\n", "compare.yaml")
        output = tmp_path / "out"
        assert run(here, output, f"--models={file}", "--columns=id,x") == 0
        found = json.loads((output / "comparison.json").read_text())
        joined = alone["large"].join(alone["small"], "id", join_type="inner", right_suffix="_small").to_pandas()
        same = joined["predicted_class"] == joined["predicted_class_small"]
        assert (found["rows"], found["rows_equal"]) == (ROWS - 2, same.sum())
        assert (found["rows_only_first"], found["rows_only_second"]) == (0, 0)
        assert found["confusion"]["labels"] == ["c0", "c1", "c2"]
        assert np.sum(found["confusion"]["counts"]) == ROWS - 2
        assert np.trace(found["confusion"]["counts"]) == same.sum()
        difference = (joined["confidence"] - joined["confidence_small"]).astype(float)
        assert found["difference"]["mean"] == pytest.approx(difference.mean(), abs=1e-7)
        assert found["models"]["large"]["rows_dead"] == 1
        assert found["models"]["large"]["parameter_bytes"] == 12
        assert found["models"]["small"]["seconds"] == report(output)["models"]["small"]["seconds"]
        assert {"id", "x"} < set(found["columns"])
        assert len(found["rows_that_differ_most"]) == 50
        assert "large and small</h1>" in (output / "comparison.html").read_text()

        # A run that replaces it and compares nothing leaves no comparison of other rows behind.
        assert run(here, output, f"--models={write(here, models)}", "--limit=10", "--overwrite") == 0
        assert not list(output.glob("comparison.*"))

    def test_with_a_split(self, here: Path, tmp_path: Path) -> None:
        models = "models:\n  - {name: small, model: models/small}\n  - {name: large, model: models/large}\n"
        text = f"{models}split: {{by: id, small: 0.5, large: 0.5}}\ncompare: [small, large]\n"
        assert run(here, tmp_path / "out", f"--models={write(here, text)}") == 0
        found = json.loads((tmp_path / "out" / "comparison.json").read_text())
        assert (found["rows"], found["agreement"], found["difference"]) == (0, None, None)
        assert found["rows_only_first"] + found["rows_only_second"] == counts(tmp_path / "out")[1]

    @pytest.mark.parametrize(
        ("task", "expected"),
        [
            ("regression", 'model "small" is of task classification and "other" of task regression'),
            ("raw", 'model "small" is of task classification and "other" of task raw'),
        ],
    )
    def test_refused(
        self, here: Path, tmp_path: Path, task: str, expected: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        inputs = [{"name": "x", "columns": ["x", "y"]}]
        ModelDir.save(Net(), tmp_path / "other", task=task, inputs=inputs)
        models = f"[{{name: small, model: models/small}}, {{name: other, model: {tmp_path / 'other'}}}]"
        text = f"models: {models}\ncompare: [small, other]"
        assert run(here, tmp_path / "out", f"--models={write(here, text)}") == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert expected in line


@pytest.fixture(scope="module")
def keys(here: Path) -> list[str | None]:
    """A table with a column of keys, some of which have a model."""
    keys = [(None, "small", "large", "other", "../models/small", "")[row % 6] for row in range(ROWS)]
    table = ds.dataset(here / "in").to_table().append_column("key", pa.array(keys))
    (here / "keyed").mkdir()
    pq.write_table(table, here / "keyed" / "in.parquet")
    save(here / "by_key" / "small", 2, TROUBLE)
    save(here / "by_key" / "large", 2, TROUBLE + 1)
    (here / "by_key" / "_draft").mkdir()
    return keys


class TestByKey:
    def score(self, here: Path, output: Path, by_key: str) -> int:
        text = f"models: [{{name: local, by_key: {{column: key, models: 'by_key/{{key}}', {by_key}}}}}]"
        file = write(here, text, "by_key.yaml")
        return score.main([f"--input={here / 'keyed'}", f"--models={file}", f"--output={output}", "--overwrite"])

    def test_default(self, here: Path, keys: list[str | None], tmp_path: Path) -> None:
        assert self.score(here, tmp_path / "out", "default: models/small, memory: 8B") == 0
        found = read(tmp_path / "out" / "predictions")
        versions = {key: ModelDir(here / "by_key" / key).version for key in ("small", "large")}
        default = ModelDir(here / "models" / "small").version
        expected = [versions.get(keys[row] or "", default) for row in found["id"].to_pylist()]
        assert found["model_version"].to_pylist() == expected
        assert found.schema.names[-3:] == ["predicted_class", "confidence", "model_version"]
        local = report(tmp_path / "out")["models"]["local"]
        assert (local["by_key"], local["models"], local["peak_bytes"]) == ("key", 2, 8)
        assert local["loads"] == 3

    def test_no_default(self, here: Path, keys: list[str | None], tmp_path: Path) -> None:
        assert self.score(here, tmp_path / "out", "memory: 1MB") == 0
        known = {row for row, key in enumerate(keys) if key in ("small", "large")}
        assert set(read(tmp_path / "out" / "predictions")["id"].to_pylist()) == known - {BAD["small"], BAD["large"]} | {
            row for name, row in BAD.items() if row in known and keys[row] != name
        }
        found = report(tmp_path / "out")
        assert found["dead_by_error"]["by_key/UnknownKey"] == ROWS - len(known)

    @pytest.mark.parametrize("form", ["names", "mapping"])
    def test_registry(self, here: Path, keys: list[str | None], tmp_path: Path, form: str) -> None:
        """Names are resolved once; a model without the alias is left out of a pattern."""
        registry = ModelRegistry(tmp_path / "registry")
        for key, classes in (("small", 2), ("large", 2), ("other", 2)):
            for trouble in (TROUBLE, TROUBLE + 1):
                registry.push(save(tmp_path / f"{key}{trouble}", classes, trouble), f"net-{key}")
        registry.promote("net-small@1", "champion")
        registry.promote("net-large@2", "champion")
        models = "'net-{key}@champion'" if form == "names" else "{small: net-small@champion, large: net-large@2}"
        file = write(tmp_path, f"models: [{{name: local, by_key: {{column: key, models: {models}}}}}]")
        flags = [f"--input={here / 'keyed'}", f"--models={file}", f"--registry={registry.folder}"]
        options, spec = with_models(ScoreOptions.parse([*flags, f"--output={tmp_path / 'out'}"], score.COMMAND))
        registry.promote("net-small@2", "champion")  # changes nothing in the run that has begun
        assert spec is not None
        (settings,) = open_models(options, spec).settings
        assert settings.by_key is not None
        assert settings.by_key.models == {
            "small": f"{registry.folder}/net-small/1",
            "large": f"{registry.folder}/net-large/2",
        }
        registry.rollback("net-small", "champion")

        assert score.main([*flags, f"--output={tmp_path / 'out'}"]) == 0
        found = read(tmp_path / "out" / "predictions")
        versions = {key: registry.open(f"net-{key}@{number}").version for key, number in (("small", 1), ("large", 2))}
        assert found["model_version"].to_pylist() == [versions[str(keys[row])] for row in found["id"].to_pylist()]
        local = report(tmp_path / "out")["models"]["local"]
        assert local["registry"] == {"small": "net-small@1", "large": "net-large@2"}
        known = [row for row, key in enumerate(keys) if key in versions]
        assert report(tmp_path / "out")["dead_by_error"]["by_key/UnknownKey"] == ROWS - len(known)

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("by_key: {column: key, models: 'net-{key}@champion'}", "name it with --registry=DIR"),
            ("by_key: {column: key, models: {small: net@3}}", "name its folder with --registry=DIR"),
            ("by_key: {column: key, models: {small: nowhere}}", "nowhere does not exist"),
            ("by_key: {column: nothing, models: 'by_key/{nothing}'}", 'there is no column "nothing"'),
            ("by_key: {column: key, models: 'nowhere/{key}'}", "nowhere, the folder of by_key, cannot be listed"),
            ("by_key: {column: key, models: 'keyed/{key}'}", "by_key, has no folders of models"),
            ("by_key: {column: key, models: 'by_key/{key}', default: nowhere}", "nowhere does not exist"),
            ("by_key: {column: key, models: 'by_key/{key}', memory: 1B}", "more than memory (1 bytes)"),
        ],
    )
    def test_refused(
        self,
        here: Path,
        keys: list[str | None],
        tmp_path: Path,
        text: str,
        expected: str,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        file = write(here, f"models: [{{name: local, {text}}}]", "wrong.yaml")
        assert score.main([f"--input={here / 'keyed'}", f"--models={file}", f"--output={tmp_path / 'out'}"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("torchbeam score: error: ")
        assert 'model "local"' in line
        assert expected in line


class TestWrongUse:
    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            ((), "--model (or --models)"),
            (("--model=a", "--model=b"), "--model is given twice; name the models"),
            (("--model=a", "--models=m.yaml"), "--model=DIR and --models do not go together"),
            (("--model=s=a", "--models=m.yaml"), "--model=NAME=DIR and --models do not go together"),
            (("--model=s=a", "--model", "b"), "--model=DIR and --model=NAME=DIR do not go together"),
            (("--model=s=a", "--model", "s=b"), 'two models have the name "s"'),
            (("--model=s=nowhere", "--model=t=nowhere"), 'model "s": --model nowhere does not exist'),
            (("--models=nowhere.yaml",), "--models nowhere.yaml cannot be read"),
            (("--models={here}",), "cannot be read"),
            (("--models={here}/in/1.parquet",), "cannot be read"),
            (("{two}", "--preprocess=a:b"), "--preprocess is for one model, and there are 2"),
            (("{two}", "--model_version=0123456789ab"), "--model_version is for one model"),
            (("{two}", "--columns=nothing"), 'no column "nothing"'),
            (("{two}", "--output={here}/models/small/x"), "is in the model"),
        ],
    )
    def test_one_line(
        self, here: Path, tmp_path: Path, arguments: tuple[str, ...], expected: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        two = [f"--model={name}={here}/models/{name}" for name in BAD]
        given = [
            part for each in arguments for part in (two if each == "{two}" else [each.replace("{here}", str(here))])
        ]
        given += [] if any(each.startswith("--output") for each in given) else [f"--output={tmp_path / 'out'}"]
        assert score.main([f"--input={here / 'in'}", *given]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert expected in line
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("models: [{name: small, model: nowhere}, {name: large, model: models/large}]", "/nowhere does not exist"),
            (
                "models: [{name: small, model: models/small}, {name: large, model: models/large, when: nothing > 1}]",
                'when of model "large": there is no column "nothing"',
            ),
            (
                "models: [{name: small, model: models/small}, {name: large, model: models/large, version: 0123456789ab}]",
                "not 0123456789ab (--model_version)",
            ),
            ("models: [{name: small, model: models/small, wen: x}]", 'unknown field "wen" of model "small"'),
        ],
    )
    def test_in_the_file(
        self, here: Path, tmp_path: Path, text: str, expected: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(here, tmp_path / "out", f"--models={write(here, text, 'wrong.yaml')}") == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert expected in line


class TestDoctor:
    def examine(self, here: Path, output: Path, text: str) -> tuple[int, dict[str, tuple[str, str]]]:
        """The exit code, and for each check its outcome and its line."""
        file = write(here, text, "doctor.yaml")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            code = doctor.main([f"--input={here / 'in'}", f"--models={file}", f"--output={output}"])
        lines = [line.split(maxsplit=2) for line in printed.getvalue().partition("\n\n")[0].splitlines()]
        return code, {line[1]: (line[0], line[2]) for line in lines}

    def test_good(self, here: Path, tmp_path: Path) -> None:
        text = (
            "models:\n  - {name: small, model: models/small}\n"
            "  - {name: large, model: models/large, when: small_confidence < 0.8, hints: {min_ram: 1GB}}\n"
        )
        code, found = self.examine(here, tmp_path / "out", text)
        assert code == 0
        versions = [ModelDir(here / "models" / name).version for name in BAD]
        assert found["models"] == ("ok", f"small (small, version {versions[0]}), large (large, version {versions[1]})")
        assert found["options"][0] == "warning"  # the runner ignores the hints
        assert found["columns"][1].startswith("2 steps; the output gets small_predicted_class, small_confidence")
        assert "of the first 1,000 rows 999 are scored (small scores 999, large scores" in found["rows"][1]
        assert "1 would be dead letters (1 forward/ValueError)" in found["rows"][1]
        assert found["output"][0] == "ok"
        assert not (tmp_path / "out").exists()

    def test_one_model(self, here: Path, tmp_path: Path) -> None:
        code, found = self.examine(here, tmp_path / "out", "models: [{name: small, model: models/small}]")
        assert (code, found["model"][0], found["weights"][0]) == (0, "ok", "ok")

    @pytest.mark.parametrize(
        ("text", "check", "expected"),
        [
            ("models: [{name: a, model: nowhere}, {name: b, model: models/large}]", "models", 'model "a"'),
            ("models: [{name: a}]", "models", "give either model"),
            (
                "models: [{name: a, model: models/small}, {name: b, model: models/large, when: c > 1}]",
                "columns",
                'there is no column "c"',
            ),
        ],
    )
    def test_problems(self, here: Path, tmp_path: Path, text: str, check: str, expected: str) -> None:
        code, found = self.examine(here, tmp_path / "out", text)
        assert (code, found[check][0]) == (2, "problem")
        assert expected in found[check][1]
        assert found["rows"][0] == "skipped"
        assert found["input"][0] == found["output"][0] == "ok"


@pytest.mark.parametrize(
    "text",
    [
        "models: [{name: a, model: models/small}, {name: b, model: models/large, when: a_confidence < x}]\ncompare: [a, b]",
        "models: [{name: a, model: models/small}, {name: b, model: models/large}]\nsplit: {by: id, a: 0.5, b: 0.5}",
        "models: [{name: a, model: models/small}, {name: b, model: models/large, inputs_from: a}]",
        "models: [{name: a, by_key: {column: key, models: 'models/{key}'}}]",
    ],
)
def test_files_without_columns_are_a_run_of_no_rows(here: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "empty.csv").write_text("")
    arguments = [f"--input={tmp_path / 'empty.csv'}", f"--models={write(here, text)}", f"--output={tmp_path / 'out'}"]
    assert score.main(arguments) == 0
    assert counts(tmp_path / "out") == (0, 0, 0, 0)
