"""Weights are saved and loaded in every format with the answers of the live module, and no pickled code ever runs."""

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small_models
import torch
from small_models import Save

from handlers.errors import UsageError
from handlers.model.directory import ModelDir
from handlers.model.formats.modules import PICKLE_ADVICE
from handlers.predict.predictor import Predictor

EXAMPLE = (torch.randn(3, 2, generator=torch.Generator().manual_seed(0)),)
X = torch.tensor([[0.0, 1.0], [2.0, -1.0], [0.5, 0.25], [3.0, 3.0], [1.0, 1.0]])


def answers(model: ModelDir, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    prediction = Predictor(model.load()).predict(inputs)
    assert not prediction.failures, prediction.failures[0]
    return prediction.tensors


def fields_of(format: str) -> dict[str, Any]:
    fields: dict[str, Any] = {"format": format}
    if format == "torch_export":
        fields["example"] = EXAMPLE
    if format in ("safetensors", "state_dict"):
        fields["arguments"] = {"classes": 3}
    return fields


@pytest.mark.parametrize("format", ["safetensors", "state_dict", "torch_export", "torchscript"])
@pytest.mark.parametrize("kind", [small_models.Linear, small_models.Dropout])
def test_a_saved_model_answers_as_the_live_one(save: Save, format: str, kind: Callable[..., torch.nn.Module]) -> None:
    module = kind(classes=3)
    with torch.no_grad():
        module.layer.weight.mul_(1.25)  # type: ignore[union-attr, operator]
    model = save(module, **fields_of(format))
    assert module.training, "the live module goes on training after it was saved"
    expected = module.eval()(X)
    assert torch.allclose(answers(model, x=X)["output"], expected, atol=1e-6)
    assert torch.allclose(answers(ModelDir(model.path), anything=X)["output"], expected, atol=1e-6)


class TestExport:
    def export(
        self, folder: Path, module: torch.nn.Module, *args: Any, dynamic: bool = True, **kwargs: Any
    ) -> ModelDir:
        rows = {0: torch.export.Dim.DYNAMIC}
        shapes = (*(rows for _ in args), *(rows for _ in kwargs)) if dynamic else None
        program = torch.export.export(module, args, kwargs or None, dynamic_shapes=shapes)
        torch.export.save(program, folder / "m.pt2")
        return ModelDir(folder / "m.pt2")

    def test_a_bare_file_tells_its_inputs(self, tmp_path: Path) -> None:
        model = self.export(tmp_path, small_models.Linear(), *EXAMPLE)
        loaded = model.load()
        assert model.spec.name == "m"
        assert model.spec.format == "torch_export"
        assert [(info.name, info.dtype, info.shape) for info in loaded.inputs] == [("x", torch.float32, (2,))]
        assert loaded.rows is None
        assert torch.allclose(answers(model, x=X)["output"], small_models.Linear()(X), atol=1e-6)

    def test_a_fixed_batch(self, tmp_path: Path) -> None:
        model = self.export(tmp_path, small_models.Linear(), *EXAMPLE, dynamic=False)
        assert model.load().rows == 3
        assert torch.allclose(answers(model, x=X)["output"], small_models.Linear()(X), atol=1e-6)

    def test_several_inputs_go_by_name(self, tmp_path: Path) -> None:
        a, b = torch.randn(4, 1), torch.randn(4, 1)
        model = self.export(tmp_path, small_models.TwoInputs(), a, b)
        assert [info.name for info in model.load().inputs] == ["a", "b"]
        assert torch.allclose(answers(model, b=b, a=a)["output"], a - 2 * b)

    def test_inputs_by_keyword(self, tmp_path: Path) -> None:
        a, scale = torch.randn(4, 1), torch.randn(4, 1)
        model = self.export(tmp_path, small_models.KeywordInput(), a, scale=scale)
        assert model.load().keywords == {"scale"}
        assert torch.allclose(answers(model, scale=scale, a=a)["output"], a * scale)

    @pytest.mark.parametrize(("kind", "names"), [("dict", ["double", "square"]), ("tuple", ["output_0", "output_1"])])
    def test_several_outputs(self, tmp_path: Path, kind: str, names: list[str]) -> None:
        found = answers(self.export(tmp_path, small_models.Outputs(kind), *EXAMPLE), x=X)
        assert list(found) == names
        assert torch.equal(found[names[0]], 2 * X)
        assert torch.equal(found[names[1]], X * X)

    def test_tensors_inside_a_list_are_refused(self, tmp_path: Path) -> None:
        class OfAList(torch.nn.Module):
            def forward(self, both: list[torch.Tensor]) -> torch.Tensor:
                return both[0] + both[1]

        torch.export.save(torch.export.export(OfAList(), ([EXAMPLE[0], EXAMPLE[0]],)), tmp_path / "m.pt2")
        with pytest.raises(UsageError, match="tensors inside lists or mappings"):
            ModelDir(tmp_path / "m.pt2").load()

    @pytest.mark.parametrize("example", [None, (), (torch.zeros(1, 2),), (torch.tensor(1.0),)], ids=str)
    def test_an_example_must_be_given(self, save: Save, example: Any) -> None:
        with pytest.raises(UsageError, match="needs example: one tensor per input, with at least two rows"):
            save(format="torch_export", example=example)


class TestArchitecture:
    def test_tied_weights(self, save: Save) -> None:
        module = small_models.TiedWeights()
        assert torch.allclose(answers(save(module), x=X)["output"], module(X), atol=1e-6)

    @pytest.mark.parametrize("kind", ["named", "dict", "tuple"])
    def test_outputs_of_a_live_class(self, save: Save, kind: str) -> None:
        found = answers(save(small_models.Outputs(kind), arguments={"kind": kind}), x=X)
        assert list(found) == (["output_0", "output_1"] if kind == "tuple" else ["double", "square"])

    def test_several_inputs_and_keywords(self, save: Save) -> None:
        a, b = torch.randn(4, 1), torch.randn(4, 1)
        inputs = [{"name": "b"}, {"name": "a"}]
        assert torch.equal(answers(save(small_models.TwoInputs(), inputs=inputs), b=b, a=a)["output"], a - 2 * b)
        inputs = [{"name": "scale"}, {"name": "a"}]
        assert torch.equal(answers(save(small_models.KeywordInput(), inputs=inputs), scale=b, a=a)["output"], a * b)

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"architecture": "small_models:Missing"}, 'small_models has no "Missing"'),
            ({"architecture": "nowhere.models:Net"}, 'no module named "nowhere"'),
            ({"architecture": "small_models:not_a_module"}, "gives a str, not a torch.nn.Module"),
            ({"arguments": {"width": 3}}, "failed: TypeError"),
            ({"arguments": {"classes": 5}}, "does not fit architecture"),
            ({"architecture": "small_models:TiedWeights", "arguments": {}}, "does not fit architecture"),
        ],
        ids=str,
    )
    @pytest.mark.parametrize("format", ["safetensors", "state_dict"])
    def test_what_does_not_fit(self, save: Save, format: str, change: dict[str, Any], reason: str) -> None:
        model = save(small_models.Linear(3), format=format, arguments={"classes": 3})
        object.__setattr__(model, "spec", model.spec.model_copy(update=change))
        with pytest.raises(UsageError) as error:
            model.load()
        assert reason in str(error.value)
        assert "\n" not in str(error.value)


class TestLoader:
    def write(self, folder: Path, loader: str) -> ModelDir:
        (folder / "model.yaml").write_text(f"name: m\nloader: small_models:{loader}\ninputs: [{{name: x}}]\n")
        (folder / "factor.txt").write_text("2.5")
        return ModelDir(folder)

    def test_a_loader_reads_the_folder(self, tmp_path: Path) -> None:
        assert torch.equal(answers(self.write(tmp_path, "loaded"), x=X)["output"], X * 2.5)

    def test_what_it_raises_is_one_line(self, tmp_path: Path) -> None:
        with pytest.raises(
            UsageError, match='loader "small_models:fails_to_load" failed: OSError: the disk is on fire'
        ):
            self.write(tmp_path, "fails_to_load").load()

    def test_it_must_give_a_model(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="gave a int, which cannot be called"):
            self.write(tmp_path, "loads_nothing").load()


class Evil:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def rewritten(
    source: Path, target: Path, change: Callable[[str, bytes], bytes], extra: dict[str, bytes] | None = None
) -> Path:
    """A copy of an archive with changed members, and further ones beside them."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as new:
        root = old.namelist()[0].split("/")[0]
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
        for name, content in (extra or {}).items():
            new.writestr(f"{root}/{name}", content)
    return target


class TestPickles:
    @pytest.fixture
    def mark(self, tmp_path: Path) -> Path:
        return tmp_path / "code-was-run"

    @pytest.fixture
    def program(self, tmp_path: Path) -> Path:
        rows = torch.export.Dim.DYNAMIC
        exported = torch.export.export(small_models.Linear(), EXAMPLE, dynamic_shapes=({0: rows},))
        torch.export.save(exported, tmp_path / "good.pt2")
        return tmp_path / "good.pt2"

    def refused(self, file: Path, mark: Path) -> str:
        with pytest.raises(UsageError) as error:
            ModelDir(file).load()
        assert not mark.exists()
        assert "\n" not in str(error.value)
        return str(error.value)

    def test_the_evil_is_real(self, tmp_path: Path, mark: Path) -> None:
        torch.save(Evil(mark), tmp_path / "evil.pt")
        torch.load(tmp_path / "evil.pt", weights_only=False)
        assert mark.exists()

    def test_a_pickled_module_as_weights(self, save: Save) -> None:
        model = save(format="state_dict")
        torch.save(small_models.Linear(), Path(model.path) / "weights.pt")
        (Path(model.path) / "model.yaml").write_text(
            "name: m\nformat: state_dict\nweights: weights.pt\narchitecture: small_models:Linear\ninputs: [{name: x}]\n"
        )
        with pytest.raises(UsageError, match=r"is refused: .*save it again with ModelDir.save"):
            ModelDir(model.path).load()

    @pytest.mark.parametrize("legacy", [False, True])
    def test_a_pickled_module_as_a_bare_file(self, tmp_path: Path, mark: Path, legacy: bool) -> None:
        torch.save(small_models.Linear(), tmp_path / "m.pt", _use_new_zipfile_serialization=not legacy)
        reason = self.refused(tmp_path / "m.pt", mark)
        assert "ModelDir.save" in reason or "neither a model directory nor" in reason

    def test_code_in_a_state_dict(self, save: Save, mark: Path) -> None:
        model = save(format="state_dict")
        weights = Path(model.path) / "weights.pt"
        torch.save({"layer.weight": Evil(mark)}, weights)
        text = (Path(model.path) / "model.yaml").read_text()
        (Path(model.path) / "model.yaml").write_text(
            "".join(line for line in text.splitlines(True) if "sha256" not in line)
        )
        assert PICKLE_ADVICE in self.refused(Path(model.path), mark)

    def evil(self, mark: Path) -> bytes:
        torch.save((Evil(mark),), mark.parent / "evil.pt")
        return (mark.parent / "evil.pt").read_bytes()

    def test_code_in_sample_inputs(self, tmp_path: Path, program: Path, mark: Path) -> None:
        file = rewritten(
            program,
            tmp_path / "m.pt2",
            lambda name, content: self.evil(mark) if "sample_inputs" in name else content,
        )
        assert PICKLE_ADVICE in self.refused(file, mark)

    @pytest.mark.parametrize("kind", ["weights", "constants"])
    def test_code_in_a_tensor_said_to_be_pickled(self, tmp_path: Path, program: Path, mark: Path, kind: str) -> None:
        payload = {"path_name": "tensor_9", "is_param": False, "use_pickle": True, "tensor_meta": None}

        def change(name: str, content: bytes) -> bytes:
            if not name.endswith(f"_{kind}_config.json"):
                return content
            config = json.loads(content)
            config["config"]["evil"] = payload
            return json.dumps(config).encode()

        file = rewritten(program, tmp_path / "m.pt2", change, {f"data/{kind}/tensor_9": self.evil(mark)})
        assert PICKLE_ADVICE in self.refused(file, mark)

    @pytest.mark.parametrize("use_pickle", [True, False])
    def test_code_in_an_opaque_constant(self, tmp_path: Path, program: Path, mark: Path, use_pickle: bool) -> None:
        payload = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": use_pickle, "tensor_meta": None}

        def change(name: str, content: bytes) -> bytes:
            return json.dumps({"config": {"evil": payload}}).encode() if "constants_config" in name else content

        file = rewritten(program, tmp_path / "m.pt2", change, {"data/constants/opaque_obj_0": pickle.dumps(Evil(mark))})
        assert PICKLE_ADVICE in self.refused(file, mark)

    @pytest.mark.parametrize("member", ["data/weights/model.pt", "data/constants/model.pt"])
    def test_code_in_members_of_an_older_layout(self, tmp_path: Path, program: Path, mark: Path, member: str) -> None:
        file = rewritten(program, tmp_path / "m.pt2", lambda _, content: content, {member: self.evil(mark)})
        assert PICKLE_ADVICE in self.refused(file, mark)

    def test_code_in_a_symbolic_size(self, tmp_path: Path, program: Path, mark: Path) -> None:
        """torch hands sizes to sympy.sympify, which evaluates them."""

        def change(name: str, content: bytes) -> bytes:
            if not name.endswith("models/model.json"):
                return content
            code = f"__import__('os').mkdir('{mark}')"
            return json.dumps(
                json.loads(content, object_hook=lambda item: item | {"expr_str": code} if "expr_str" in item else item)
            ).encode()

        assert "is not arithmetic" in self.refused(rewritten(program, tmp_path / "m.pt2", change), mark)

    def test_compiled_code(self, tmp_path: Path, program: Path, mark: Path) -> None:
        extra = {"data/aotinductor/model/m.so": b"\x7fELF"}
        file = rewritten(program, tmp_path / "m.pt2", lambda _, content: content, extra)
        assert "compiled code" in self.refused(file, mark)

    def test_a_good_program_is_not_refused(self, tmp_path: Path, program: Path) -> None:
        file = rewritten(program, tmp_path / "m.pt2", lambda _, content: content)
        assert torch.allclose(answers(ModelDir(file), x=X)["output"], small_models.Linear()(X), atol=1e-6)
        assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ

    @pytest.mark.parametrize("suffix", [".pt2", ".pt"])
    def test_odd_files(self, tmp_path: Path, program: Path, mark: Path, suffix: str) -> None:
        file = tmp_path / f"odd{suffix}"
        whole = program.read_bytes()
        for content in (b"", b"not a zip", whole[: len(whole) // 2], b"PK\x05\x06" + bytes(18)):
            file.write_bytes(content)
            assert str(file) in self.refused(file, mark)
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("../../escaped.txt", "x")
            archive.writestr("archive_format", "pt2")
        assert str(file) in self.refused(file, mark)
        assert not (tmp_path.parent.parent / "escaped.txt").exists()


class TestTorchScript:
    def test_a_bare_file(self, tmp_path: Path) -> None:
        torch.jit.script(small_models.Linear()).save(str(tmp_path / "m.pt"))
        model = ModelDir(tmp_path / "m.pt")
        assert model.spec.format == "torchscript"
        assert [info.name for info in model.load().inputs] == ["x"]
        assert torch.allclose(answers(model, x=X)["output"], small_models.Linear()(X), atol=1e-6)

    def test_several_inputs(self, tmp_path: Path) -> None:
        torch.jit.script(small_models.TwoInputs()).save(str(tmp_path / "m.ts"))
        a, b = torch.randn(4, 1), torch.randn(4, 1)
        assert torch.equal(answers(ModelDir(tmp_path / "m.ts"), b=b, a=a)["output"], a - 2 * b)
