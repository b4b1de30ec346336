"""What a model directory is trusted with: its version, its code, its files."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
import torch
import yaml
from small_models import Linear, Save

from handlers.errors import UsageError
from handlers.model import loading
from handlers.model.directory import ModelDir
from handlers.model.trust import Trust
from handlers.nets import Mlp

NO_CODE = Trust(code=False)


def change(model: ModelDir, **fields: object) -> None:
    file = Path(model.path) / "model.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | fields))


class TestVersion:
    def test_the_one_that_is_pinned(self, save: Save) -> None:
        model = save()
        assert model.digest.startswith(model.version)
        for pinned in (model.version, model.digest[:40], model.digest):
            assert ModelDir(model.path, Trust(version=pinned)).version == model.version

    def test_the_digest_is_what_the_documentation_says(self, save: Save) -> None:
        model = save()
        lines = [
            f"{hashlib.sha256((Path(model.path) / name).read_bytes()).hexdigest()}  {name}\n"
            for name in ("model.yaml", "weights.safetensors")
        ]
        assert model.digest == hashlib.sha256("".join(lines).encode()).hexdigest()

    def test_any_other_is_refused(self, save: Save) -> None:
        model = save()
        wrong = "0" * 12
        with pytest.raises(UsageError, match=rf"has version {model.version}, not {wrong} \(--model_version\)"):
            ModelDir(model.path, Trust(version=wrong))
        long = model.digest[:63] + ("0" if model.digest[63] != "0" else "1")
        with pytest.raises(UsageError, match=rf"has version {model.digest}, not {long}"):
            ModelDir(model.path, Trust(version=long))

    @pytest.mark.parametrize("version", ["", "abc", "0" * 11, "0" * 65, "G" * 12, "A" * 12])
    def test_what_is_none(self, version: str) -> None:
        with pytest.raises(UsageError, match="must be 12 to 64 hexadecimal digits"):
            Trust(version=version)


class TestOwnCode:
    def test_an_export_and_a_class_of_torch(self, save: Save) -> None:
        export = save(format="torch_export", example=(torch.zeros(2, 2),), inputs=[])
        assert ModelDir(export.path, NO_CODE).load()
        plain = save(
            torch.nn.Linear(2, 2), architecture="torch.nn:Linear", arguments={"in_features": 2, "out_features": 2}
        )
        assert ModelDir(plain.path, NO_CODE).load()
        arguments = {"outputs": 2, "numeric": {"x": {"width": 2}}}
        trained = save(Mlp(**arguments), architecture="handlers.nets:Mlp", arguments=arguments)
        assert ModelDir(trained.path, NO_CODE).load()

    @pytest.mark.parametrize(
        ("fields", "what"),
        [
            ({"architecture": "small_models:Linear"}, "architecture: small_models:Linear"),
            ({"architecture": "subprocess:run", "arguments": {"args": "true"}}, "architecture: subprocess:run"),
            ({"architecture": "torch.nn:modules.module.torch.hub.load"}, "architecture: torch.nn:modules"),
            ({"architecture": "torch.nn.modules:Linear"}, "architecture: torch.nn.modules:Linear"),
            ({"architecture": "handlers.nets:Mlp.load_state_dict"}, "architecture: handlers.nets:Mlp.load_state_dict"),
            ({"preprocess": ["m:f"]}, "preprocess: m:f"),
            ({"postprocess": ["m:f"]}, "postprocess: m:f"),
        ],
    )
    def test_fields_that_run_code(self, save: Save, fields: dict[str, object], what: str) -> None:
        model = save(
            torch.nn.Linear(2, 2), architecture="torch.nn:Linear", arguments={"in_features": 2, "out_features": 2}
        )
        ModelDir(model.path, NO_CODE)
        change(model, **fields)
        ModelDir(model.path)
        with pytest.raises(UsageError, match=rf"brings code of its own \({what}.*--no_model_code") as error:
            ModelDir(model.path, NO_CODE)
        assert "\n" not in str(error.value)

    def test_a_loader_a_module_and_torchscript(self, save: Save) -> None:
        model = save(format="torch_export", example=(torch.zeros(2, 2),), inputs=[])
        (Path(model.path) / "code" / "deep").mkdir(parents=True)
        (Path(model.path) / "code" / "deep" / "x.py").touch()
        with pytest.raises(UsageError, match=r"\(code/deep/x.py\)"):
            ModelDir(model.path, NO_CODE)
        file = Path(save().path) / "model.yaml"
        file.write_text("name: m\nloader: small_models:loaded\ninputs: [{name: x}]\n")
        with pytest.raises(UsageError, match=r"\(loader: small_models:loaded\)"):
            ModelDir(file.parent, NO_CODE)
        script = save(format="torchscript", inputs=[])
        for path in (script.path, Path(script.path) / "model.pt"):
            with pytest.raises(UsageError, match=r"\(a TorchScript program\)"):
                ModelDir(path, NO_CODE)


class TestWhatTheVersionProves:
    """No file that a model is made of may be left out of it."""

    @pytest.mark.parametrize("name", [".weights.safetensors", ".hidden/w.safetensors", "__pycache__/w.safetensors"])
    def test_hidden_weights(self, save: Save, name: str) -> None:
        model = save()
        target = Path(model.path) / name
        target.parent.mkdir(exist_ok=True)
        (Path(model.path) / "weights.safetensors").rename(target)
        change(model, weights=name, sha256="0" * 64)
        with pytest.raises(UsageError, match="is hidden, and hidden files are not part of a model's version"):
            ModelDir(model.path)

    def test_files_behind_a_link_to_a_folder(self, save: Save, tmp_path: Path) -> None:
        model = save()
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "module.py").write_text("ONE = 1\n")
        (Path(model.path) / "code").symlink_to(outside)
        linked = ModelDir(model.path).version
        assert linked != model.version
        (outside / "module.py").write_text("ONE = 2\n")
        assert ModelDir(model.path).version != linked
        with pytest.raises(UsageError, match=r"brings code of its own \(code/module.py\)"):
            ModelDir(model.path, NO_CODE)

    def test_a_link_that_leads_back(self, save: Save) -> None:
        model = save()
        (Path(model.path) / "again").symlink_to(model.path)
        with pytest.raises(UsageError, match="a link to a folder that it holds already"):
            ModelDir(model.path)


@pytest.mark.parametrize("swap", ["replaced", "written", "and back"])
def test_weights_that_are_swapped_between_check_and_load(
    save: Save, monkeypatch: pytest.MonkeyPatch, swap: str
) -> None:
    model = save()
    weights = Path(model.path) / "weights.safetensors"
    good = weights.read_bytes()
    evil = Path(save(Other()).path) / "weights.safetensors"
    load = loading.load_model

    def swapped(*args: object) -> object:
        before = weights.stat()
        if swap == "written":
            weights.write_bytes(evil.read_bytes())
        else:
            weights.rename(weights.with_name(".kept"))
            weights.write_bytes(evil.read_bytes())
        os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
        loaded = load(*args)  # type: ignore[arg-type]
        if swap == "and back":
            weights.with_name(".kept").rename(weights)
            assert weights.read_bytes() == good
        return loaded

    model.load()
    monkeypatch.setattr(loading, "load_model", swapped)
    with pytest.raises(UsageError, match="was written to while it was loaded"):
        model.load()


class Other(Linear):
    def __init__(self) -> None:
        super().__init__()
        torch.nn.init.ones_(self.layer.weight)
