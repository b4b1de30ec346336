"""Model directories: written, read back, checked and distinguished by their contents."""

import hashlib
import importlib
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import small_models
import torch
from small_models import Save

from handlers.encode.specs import input_spec
from handlers.errors import UsageError
from handlers.model.directory import ModelDir
from handlers.model.files import TAG, TAG_TEXT
from handlers.model.trust import Trust
from handlers.predict.predictor import Predictor

X = torch.tensor([[0.0, 1.0], [2.0, -1.0]])


def refusal(path: Path | str) -> str:
    with pytest.raises(UsageError) as error:
        ModelDir(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def names_in(folder: Path | str) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


class TestReading:
    def test_what_is_not_there(self, tmp_path: Path) -> None:
        assert f"--model {tmp_path / 'nowhere'} does not exist" in refusal(tmp_path / "nowhere")

    def test_a_folder_without_model_yaml(self, tmp_path: Path) -> None:
        assert "has no model.yaml" in refusal(tmp_path)

    def test_model_yaml_that_is_no_text(self, tmp_path: Path) -> None:
        (tmp_path / "model.yaml").write_bytes(b"\xff\xfe\x00")
        assert "model.yaml cannot be read" in refusal(tmp_path)
        (tmp_path / "model.yaml").write_text("name: [")
        assert f"{tmp_path}/model.yaml is not YAML" in refusal(tmp_path)

    def test_missing_weights(self, save: Save) -> None:
        model = save()
        (Path(model.path) / "weights.safetensors").unlink()
        assert "has no file weights.safetensors" in refusal(model.path)

    def test_changed_weights(self, save: Save) -> None:
        weights = Path(save().path) / "weights.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
        assert "has sha256" in refusal(weights.parent)

    def test_weights_through_a_link_outside(self, save: Save, tmp_path: Path) -> None:
        """A link is the file that it names; the hash covers its contents."""
        weights = Path(save().path) / "weights.safetensors"
        shutil.move(weights, tmp_path / "elsewhere")
        weights.symlink_to(tmp_path / "elsewhere")
        assert ModelDir(weights.parent).load()
        weights.unlink()
        weights.symlink_to(tmp_path / "nowhere")
        assert "has no file weights.safetensors" in refusal(weights.parent)

    @pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
    def test_what_may_not_be_read(self, save: Save) -> None:
        weights = Path(save().path) / "weights.safetensors"
        weights.chmod(0)
        assert "cannot be read" in refusal(weights.parent)

    def test_files_that_are_no_models(self, tmp_path: Path) -> None:
        (tmp_path / "m.pt2").write_text("hello")
        assert "neither a model directory nor a .pt2 or TorchScript file" in refusal(tmp_path / "m.pt2")
        with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
            archive.writestr("../code/x", "y")
        torch.save(small_models.Linear().state_dict(), tmp_path / "weights.pt")
        assert "holds weights or a pickled module, not a program" in refusal(tmp_path / "weights.pt")


class TestSaving:
    def test_what_is_written(self, save: Save) -> None:
        model = save(
            small_models.Linear(3),
            task="classification",
            labels=("a", "b", "c"),
            arguments={"classes": 3},
            features={"c": "a + b"},
            inputs=[input_spec(name="x", columns=("a", "b"), fill=0)],
        )
        assert names_in(model.path) == ["model.yaml", "weights.safetensors"]
        spec = ModelDir(model.path).spec
        assert spec.architecture == "small_models:Linear"
        assert spec.labels == ("a", "b", "c")
        assert spec.inputs == (input_spec(name="x", columns=("a", "b"), fill=0),)
        weights = (Path(model.path) / "weights.safetensors").read_bytes()
        assert spec.sha256 == hashlib.sha256(weights).hexdigest()

    def test_values_that_are_false(self, save: Save) -> None:
        inputs = [
            input_spec(name="x", columns=("a",), fill=0, shape=()),
            input_spec(name="y", encoder="categorical", num_categories=2, unknown=0),
        ]
        assert save(inputs=inputs).spec.inputs == tuple(inputs)

    def test_what_would_be_no_valid_model(self, save: Save) -> None:
        with pytest.raises(UsageError, match='unknown field "lables"'):
            save(lables=["a"])
        with pytest.raises(UsageError, match="inputs is missing"):
            save(inputs=[])

    def test_a_class_that_nobody_can_import(self, save: Save) -> None:
        class Local(small_models.Linear):
            pass

        with pytest.raises(UsageError, match="Local is defined inside a function"):
            save(Local())
        lonely = type("Lonely", (small_models.Linear,), {"__module__": "__main__"})
        with pytest.raises(UsageError, match="Lonely is defined in the script that runs"):
            save(lonely())

    def test_a_place_that_holds_something_else(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(UsageError, match="is there and is not a model directory"):
            ModelDir.save(small_models.Linear(), tmp_path, inputs=[{"name": "x"}])
        with pytest.raises(UsageError, match="is there and is not a model directory"):
            ModelDir.save(small_models.Linear(), tmp_path / "notes.txt", inputs=[{"name": "x"}])
        assert names_in(tmp_path) == ["notes.txt"]

    def test_over_an_older_model(self, tmp_path: Path) -> None:
        (tmp_path / "helper.py").write_text("")
        first = ModelDir.save(
            small_models.Linear(),
            tmp_path / "m",
            inputs=[{"name": "x"}],
            format="state_dict",
            code=[tmp_path / "helper.py"],
        )
        again = ModelDir.save(small_models.Linear(), tmp_path / "m", inputs=[{"name": "x"}])
        assert names_in(again.path) == ["model.yaml", "weights.safetensors"]
        assert again.version != first.version


class TestVersion:
    def test_it_is_that_of_the_contents(self, save: Save, tmp_path: Path) -> None:
        model = save(name="same")
        assert len(model.version) == 12
        shutil.copytree(model.path, tmp_path / "copy")
        assert ModelDir(tmp_path / "copy").version == model.version
        lines = "".join(
            f"{hashlib.sha256((Path(model.path) / name).read_bytes()).hexdigest()}  {name}\n"
            for name in ("model.yaml", "weights.safetensors")
        )
        assert model.version == hashlib.sha256(lines.encode()).hexdigest()[:12]

    @pytest.mark.parametrize(
        "change",
        [
            lambda path: (path / "model.yaml").open("a").write("\n# a comment\n"),
            lambda path: (path / "more.txt").write_text("x"),
            lambda path: (path / "code").mkdir() or (path / "code" / "rows.py").write_text("x = 1"),
        ],
    )
    def test_any_change_changes_it(self, save: Save, change: Callable[[Path], object]) -> None:
        model = save()
        change(Path(model.path))
        assert ModelDir(model.path).version != model.version

    def test_caches_and_hidden_files_do_not(self, save: Save) -> None:
        model = save()
        for name in (".DS_Store", "code/__pycache__/rows.cpython-311.pyc"):
            (Path(model.path) / name).parent.mkdir(parents=True, exist_ok=True)
            (Path(model.path) / name).write_text("x")
        assert ModelDir(model.path).version == model.version

    def test_a_model_that_changed_after_the_run_began(self, save: Save) -> None:
        model = pickle.loads(pickle.dumps(save()))
        (Path(model.path) / "more.txt").write_text("x")
        with pytest.raises(UsageError, match="changed after the run began"):
            model.load()
        shutil.rmtree(model.path)
        with pytest.raises(UsageError, match="is not on this worker"):
            model.load()

    def test_it_travels_small(self, save: Save) -> None:
        model = save()
        pickled = pickle.dumps(model)
        assert len(pickled) < 2000
        assert pickle.loads(pickled).version == model.version


CODE = """
import os
import torch

THREADS_AT_IMPORT = os.environ.get("TORCHBEAM_TEST")

class Net(torch.nn.Module):
    def __init__(self, factor=1.0):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(float(factor)))

    def forward(self, x):
        return x * self.factor

def load(folder):
    assert os.environ["TORCHBEAM_TEST"] == "yes"
    return Net(3.0)
"""


class TestCode:
    """The user's own modules travel in code/ and are found where nothing of the user's is installed."""

    def elsewhere(self, folder: Path, program: str) -> str:
        """What a fresh process with another folder prints."""
        root = Path(__file__).parents[3]
        run = subprocess.run(
            [sys.executable, "-c", program],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(root)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stderr
        return run.stdout.strip()

    def test_an_architecture_in_code_only(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        source = tmp_path / "source" / "travelling"
        source.mkdir(parents=True)
        (source / "__init__.py").write_text("")
        (source / "nets.py").write_text(CODE)
        monkeypatch.syspath_prepend(source.parent)
        module = importlib.import_module("travelling.nets").Net(2.0)
        env_vars = {"TORCHBEAM_TEST": "yes"}
        trust = Trust(allow_env=tuple(env_vars))
        model = ModelDir.save(
            module, tmp_path / "m", inputs=[{"name": "x"}], code=[source], env_vars=env_vars, trust=trust
        )
        shutil.rmtree(source.parent)
        score = f"""
from handlers import ModelDir, Predictor, Trust
import torch
model = ModelDir({model.path!r}, {trust!r})
print(model.version)
print(Predictor(model.load()).predict({{"x": torch.tensor([[1.5]])}}).outputs["output"].item())
from travelling import nets
print(nets.THREADS_AT_IMPORT)
"""
        assert self.elsewhere(tmp_path, score).split() == [model.version, "3.0", "yes"]

    def test_a_loader_and_env_vars(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TORCHBEAM_TEST", "no")
        (tmp_path / "m" / "code").mkdir(parents=True)
        (tmp_path / "m" / "code" / "travelling_loader.py").write_text(CODE)
        (tmp_path / "m" / "model.yaml").write_text(
            "name: m\nloader: travelling_loader:load\ninputs: [{name: x}]\nenv_vars: {TORCHBEAM_TEST: 'yes'}\n"
        )
        prediction = Predictor(ModelDir(tmp_path / "m", Trust(allow_env=("TORCHBEAM_TEST",))).load()).predict(
            {"x": torch.tensor([[1.5]])}
        )
        assert prediction.tensors["output"].item() == 4.5

    def test_reading_a_model_imports_no_torch(self, save: Save) -> None:
        program = f"import sys; from handlers import ModelDir; ModelDir({save().path!r}); print('torch' in sys.modules)"
        assert self.elsewhere(Path.cwd(), program) == "False"


def test_bare_and_relative_paths(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save()
    monkeypatch.chdir(Path(model.path).parent)
    relative = ModelDir(Path(model.path).name)
    assert relative.version == model.version
    expected = small_models.Linear()(X)
    assert torch.allclose(Predictor(relative.load()).predict({"x": X}).tensors["output"], expected, atol=1e-6)
    monkeypatch.chdir("/")
    assert relative.load(), "a relative path is settled where it was opened"


def test_the_work_of_a_training_is_not_part_of_the_version(save: Save) -> None:
    model = save()
    folder = Path(model.path)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints/last.ckpt").write_bytes(b"state")
    assert ModelDir(folder).version != model.version  # a folder of that name alone counts
    (folder / "checkpoints" / TAG).write_text(TAG_TEXT)
    assert ModelDir(folder).version == model.version
    (folder / "code").mkdir()
    (folder / "code" / TAG).write_text(TAG_TEXT)
    (folder / "code/net.py").write_text("")
    assert ModelDir(folder).version != model.version  # no other folder can be left out
