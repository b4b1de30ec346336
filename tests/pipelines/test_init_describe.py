"""`init` and `describe`: a directory of Hugging Face's becomes a model directory, and every directory tells what it is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from handlers.model.directory import ModelDir
from pipelines import cli

sys.path.append(str(Path(__file__).parents[1] / "handlers"))
import text_models


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    target = tmp_path / "hub"
    text_models.classifier().save_pretrained(target)
    text_models.tokenizer().save_pretrained(target)
    return target


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = cli.main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_a_copy_with_a_model_yaml(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "models" / "reviews"
    code, out, _ = run(
        capsys, "init", f"--from={folder}", f"--output={target}", "--name=reviews", "--columns=title,body"
    )
    assert code == 0
    model = ModelDir(target)
    assert model.version in out
    assert (model.spec.name, model.spec.inputs[0].columns) == ("reviews", ("title", "body"))
    assert "labels" in (target / "model.yaml").read_text()
    code, _, err = run(capsys, "init", f"--from={folder}", f"--output={target}")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "--overwrite" in err
    assert run(capsys, "init", f"--from={folder}", f"--output={target}", "--overwrite")[0] == 0


def test_in_place(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "init", f"--from={folder}", f"--output={folder}")[0] == 0
    assert ModelDir(folder).spec.task == "classification"


@pytest.mark.parametrize("change", ["nothing", "a file", "not empty", "unknown", "no task"])
def test_wrong_use(folder: Path, tmp_path: Path, change: str, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "new"
    arguments = [f"--from={folder}", f"--output={target}"]
    if change == "nothing":
        arguments[0] = f"--from={tmp_path / 'nowhere'}"
    elif change == "a file":
        arguments[0] = f"--from={folder / 'config.json'}"
    elif change == "not empty":
        target.mkdir()
        (target / "notes.txt").write_text("mine")
    elif change == "unknown":
        arguments.append("--colour=red")
    else:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "architectures": ["BertModel"]}))
    code, _, err = run(capsys, "init", *arguments)
    assert (code, len(err.splitlines())) == (2, 1), err
    assert not (target / "model.yaml").exists()


class TestDescribe:
    def test_a_transformer(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        code, out, _ = run(capsys, "describe", f"--model={folder}", "--json")
        found = json.loads(out)
        module = text_models.classifier()
        assert code == 0
        assert found["parameters"] == sum(each.numel() for each in module.parameters())
        assert sum(found["parameters_by_module"].values()) == found["parameters"]
        assert found["labels"] == list(text_models.LABELS.values())
        assert found["outputs"] == [{"name": "logits", "dtype": "float32", "shape": [3]}]
        assert found["flops_per_row"] > 0
        code, out, _ = run(capsys, "describe", f"--model={folder}")
        assert f"{found['parameters']:,}" in out

    def test_the_cost_of_a_linear_layer(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        layer = torch.nn.Sequential(torch.nn.Linear(20, 5))
        ModelDir.save(layer, tmp_path / "m", format="torch_export", example=(torch.zeros(2, 20),))
        found = json.loads(run(capsys, "describe", f"--model={tmp_path / 'm'}", "--json")[1])
        assert found["flops_per_row"] == 2 * 20 * 5
        assert found["inputs"][0]["shape"] == [20]

    def test_what_a_broken_directory_lacks(
        self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "empty").mkdir()
        for broken, why in ((tmp_path / "empty", "has no model.yaml"), (tmp_path / "nowhere", "does not exist")):
            code, out, err = run(capsys, "describe", f"--model={broken}")
            assert (code, out, len(err.splitlines())) == (2, "", 1)
            assert why in err
        (folder / "model.safetensors").unlink()
        assert "it has no weights" in run(capsys, "describe", f"--model={folder}")[2]

    def test_verbose_shows_where_a_module_fails(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (folder / "config.json").write_text("{")
        plain = run(capsys, "describe", f"--model={folder}")
        verbose = run(capsys, "describe", f"--model={folder}", "--verbose")
        assert (plain[0], verbose[0]) == (2, 2)
        assert verbose[2].splitlines()[-1] == plain[2].rstrip()

    def test_numpy_is_imported_before_torch(self) -> None:
        code = (
            "import sys\n"
            "class Watch:\n"
            "    def find_spec(self, name, path=None, target=None):\n"
            "        assert name != 'torch' or 'numpy' in sys.modules, 'Ctrl-C is lost while torch imports numpy'\n"
            "sys.meta_path.insert(0, Watch())\n"
            "import pipelines.describe\n"
            "import handlers.model.summary\n"
            "assert 'torch' in sys.modules"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def test_help_names_no_options_of_beam(self, capsys: pytest.CaptureFixture[str]) -> None:
        for command in ("init", "describe"):
            with pytest.raises(SystemExit) as end:
                cli.main([command, "--help"])
            assert end.value.code == 0
            shown = capsys.readouterr().out
            assert "--verbose" in shown
            assert "Beam" not in shown


@pytest.mark.parametrize("command", ["init", "describe"])
def test_an_unexpected_error_is_one_line(
    folder: Path, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(f"pipelines.{command}.ModelDir", fail)
    flags = {"init": [f"--from={folder}", f"--output={folder}"], "describe": [f"--model={folder}"]}[command]
    code, out, err = run(capsys, command, *flags)
    assert (code, out) == (1, "")
    assert err == f"torchbeam {command}: error: ZeroDivisionError: by zero; --verbose shows where\n"
