"""`.pt2` archives in the layouts of every supported torch, with code wherever code can be: nothing of it is run."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from handlers.errors import UsageError
from handlers.model.directory import ModelDir
from handlers.predict.predictor import Predictor

X = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])


class Net(torch.nn.Module):
    """x·w + c, with a weight, a buffer and a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor([2.0, 3.0]))
        self.register_buffer("b", torch.tensor([1.0, 1.0]))
        self.k = torch.tensor([0.5, 0.5])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.w + self.b + self.k


class Evil:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.mark,)


Members = dict[str, bytes]


def current() -> Members:
    """The members of an archive of the torch that is installed, below its root."""
    exported = torch.export.export(Net(), (X,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    torch.export.save(exported, stream := io.BytesIO())
    with zipfile.ZipFile(stream) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def of_2_8(members: Members) -> Members:
    """As 2.8 wrote them: weights and constants are one pickled state_dict each."""
    kept = {name: content for name, content in members.items() if not name.startswith(("data/weights/", "data/const"))}
    return kept | {
        "data/weights/model.pt": saved({"w": Net().w, "b": Net().b}),
        "data/constants/model.pt": saved({"k": Net().k}),
    }


def saved(value: Any) -> bytes:
    torch.save(value, stream := io.BytesIO())
    return stream.getvalue()


def write(file: Path, members: Members, beside: Members | None = None) -> Path:
    """An archive of these members; those of `beside` lie beside its root."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(f"package/{name}", content)
        for name, content in (beside or {}).items():
            archive.writestr(name, content)
    return file


def program(members: Members, change: Callable[[dict[str, Any]], object]) -> Members:
    """The members with a changed program."""
    found = json.loads(members["models/model.json"])
    change(found)
    return members | {"models/model.json": json.dumps(found).encode()}


def payload(members: Members, kind: str, entry: dict[str, Any]) -> Members:
    """The members with one more entry among the weights or constants."""
    name = f"data/{kind}/model_{kind}_config.json"
    config = json.loads(members[name])
    config["config"]["evil"] = {"is_param": False, "use_pickle": True, "tensor_meta": None} | entry
    return members | {name: json.dumps(config).encode()}


# How 2.9 to 2.15 lay an archive out, beside the pickles of 2.8: constants that are objects of C++ since 2.9, and of Python
# since 2.13.
LAYOUTS: dict[str, Callable[[Members], Members]] = {
    "2.8": of_2_8,
    **{f"2.{minor}": lambda members: members for minor in range(9, 16)},
}
TENSORS = [version for version in LAYOUTS if version != "2.8"]


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "code-was-run"


@pytest.fixture
def evil(mark: Path) -> bytes:
    return saved((Evil(str(mark)),))


@pytest.fixture
def refused(tmp_path: Path, mark: Path) -> Callable[..., str]:
    """Loads an archive, which must be refused, and gives the reason."""

    def load(members: Members, beside: Members | None = None) -> str:
        with pytest.raises(UsageError) as error:
            ModelDir(write(tmp_path / "m.pt2", members, beside)).load()
        assert not mark.exists()
        assert "\n" not in str(error.value)
        return str(error.value)

    return load


@pytest.mark.parametrize("version", LAYOUTS)
class TestLayouts:
    def test_a_good_one_answers(self, version: str, tmp_path: Path) -> None:
        model = ModelDir(write(tmp_path / "m.pt2", LAYOUTS[version](current())))
        expected = X * torch.tensor([2.0, 3.0]) + 1.5
        assert torch.equal(Predictor(model.load()).predict({"x": X}).tensors["output"], expected)

    def test_code_in_sample_inputs(self, version: str, refused: Callable[..., str], evil: bytes) -> None:
        members = LAYOUTS[version](current()) | {"data/sample_inputs/model.pt": evil}
        assert "it holds pickled code" in refused(members)

    @pytest.mark.parametrize("kind", ["weights", "constants"])
    def test_code_in_a_state_dict(self, version: str, kind: str, refused: Callable[..., str], evil: bytes) -> None:
        """Of 2.8, which every later torch still reads in place of the tensors."""
        assert "it holds pickled code" in refused(LAYOUTS[version](current()) | {f"data/{kind}/model.pt": evil})

    @pytest.mark.parametrize("name", ["custom_obj_0", "opaque_obj_0"])
    def test_objects(self, version: str, name: str, refused: Callable[..., str], mark: Path) -> None:
        members = LAYOUTS[version](current())
        content = {f"data/constants/{name}": pickle.dumps(Evil(str(mark)))}
        assert f"data/constants/{name}): it holds pickled code" in refused(members | content), "named or not"
        if version != "2.8":
            assert "it holds pickled code" in refused(payload(members, "constants", {"path_name": name}) | content)

    def test_a_second_program_beside_it(self, version: str, refused: Callable[..., str], evil: bytes) -> None:
        """In the layout before 2.8, which torch falls back to where the first one cannot be read."""
        second = {"version": b"8.0", "serialized_exported_program.json": b"{}", "serialized_example_inputs.pt": evil}
        reason = refused(LAYOUTS[version](current()), second)
        assert "is not in a subdirectory" in reason or "it holds files other than those of one program" in reason
        broken = LAYOUTS[version](current()) | {"archive_version": b"1"}
        refused(broken, second)

    @pytest.mark.parametrize(
        "member",
        [
            "data/executorch/m.pte",
            "data/mtia/m",
            "xl_model_weights/model_param_config",
            "data/weights/evil.pkl",
            "data/new_in_3_0/x",
            "models/model.py",
            "models/model/x.json",
        ],
    )
    def test_what_is_not_known(self, version: str, member: str, refused: Callable[..., str], evil: bytes) -> None:
        assert f"what {member!r} in it is, is not known" in refused(LAYOUTS[version](current()) | {member: evil})

    @pytest.mark.parametrize("member", ["data/aotinductor/model/m.so", "extra/x.so"])
    def test_compiled_code(self, version: str, member: str, refused: Callable[..., str]) -> None:
        assert "compiled code" in refused(LAYOUTS[version](current()) | {member: b"\x7fELF"})

    @pytest.mark.parametrize(("member", "content"), [("archive_version", b"1"), ("archive_format", b"pt3")])
    def test_another_format(self, version: str, member: str, content: bytes, refused: Callable[..., str]) -> None:
        assert f"its {member} is not known" in refused(LAYOUTS[version](current()) | {member: content})


@pytest.mark.parametrize("version", TENSORS)
@pytest.mark.parametrize(("kind", "path"), [("weights", "weight_9"), ("constants", "tensor_9")])
def test_a_tensor_said_to_be_pickled(
    version: str, kind: str, path: str, refused: Callable[..., str], evil: bytes
) -> None:
    members = payload(LAYOUTS[version](current()), kind, {"path_name": path}) | {f"data/{kind}/{path}": evil}
    assert "it holds pickled code" in refused(members)
    elsewhere = payload(LAYOUTS[version](current()), kind, {"path_name": "../sample_inputs/model.pt"})
    assert "is not known" in refused(elsewhere)


def first_node(found: dict[str, Any]) -> dict[str, Any]:
    node: dict[str, Any] = found["graph_module"]["graph"]["nodes"][0]
    return node


class TestPrograms:
    """Text in a program that torch evaluates, calls or makes source of."""

    def test_the_evil_is_real(self, tmp_path: Path, mark: Path) -> None:
        """Of plain torch: guards are executed."""
        guard = f"__import__('os').mkdir('{mark}') or True"
        file = write(tmp_path / "g.pt2", program(current(), lambda found: found.update(guards_code=[guard])))
        torch.export.load(file).module()(X)
        assert mark.exists()

    def text_argument(self, mark: Path) -> list[dict[str, Any]]:
        return [{"name": "path", "arg": {"as_string": str(mark)}, "kind": 1}]

    @pytest.mark.parametrize(
        "target",
        [
            "torch.serialization.os.mkdir",
            "torch.hub.load",
            "torch.load",
            "torch.ops.load_library",
            "torch.ops.aten.from_file.default",
            "torch.ops.aten.save.default",
            "torch.ops.image.write_file.default",
            "torch.ops.unknown_library.f.default",
            "torch.ops.higher_order.call_torchbind",
            "torch.ops.higher_order.triton_kernel_wrapper_mutation",
            "torch.ops.aten.add.__class__.mro",
            "_operator.attrgetter",
            "_operator.call",
            "math.pi.real",
            "#extension",
            "builtins.eval",
        ],
    )
    @pytest.mark.parametrize("operator", [False, True])
    def test_calls(self, target: str, operator: bool, refused: Callable[..., str], mark: Path) -> None:
        def change(found: dict[str, Any]) -> None:
            if operator:
                first_node(found)["inputs"][0]["arg"] = {"as_operator": target}
            else:
                first_node(found).update(target=target, inputs=self.text_argument(mark))

        assert f"it calls {target!r}, which is not a known operator on tensors" in refused(program(current(), change))

    @pytest.mark.parametrize(
        "guard",
        [
            "__import__('os').mkdir('{}') or True",
            "L['x'].size()[0].__class__",
            "L['x'].size()[0] >= 2) or __import__('os').mkdir('{}') or (True",
            "True # ",
            "open('{}', 'w')",
            "(lambda: 1)()",
            "[1 for _ in ()]",
            "L['x\"); import os'].size()[0] == 1",
        ],
    )
    def test_guards(self, guard: str, refused: Callable[..., str], mark: Path) -> None:
        text = guard.replace("{}", str(mark))
        assert "is not a comparison of sizes" in refused(
            program(current(), lambda found: found.update(guards_code=[text]))
        )

    def test_guards_of_sizes(self, tmp_path: Path) -> None:
        guards = ["L['x'].size()[0] >= 2", "L['x'].size()[1] == 2 and not L['x'].size()[0] == 7"]
        file = write(tmp_path / "m.pt2", program(current(), lambda found: found.update(guards_code=guards)))
        module = ModelDir(file).load().module
        assert module(X).shape == (3, 2)
        with pytest.raises(AssertionError, match="Guard failed"):
            module(X[:1])

    @pytest.mark.parametrize("name", ["x=__import__('os').mkdir('m')", "x: print(1)", 'x"y', "x\ny"])
    def test_names(self, name: str, tmp_path: Path, refused: Callable[..., str]) -> None:
        """The names of inputs are written into the source of `forward`, where defaults are evaluated."""
        everywhere = current()["models/model.json"].replace(b'"x"', json.dumps(name).encode())
        assert "is not a plain name" in refused(current() | {"models/model.json": everywhere})

    @pytest.mark.parametrize(
        ("kind", "context"),
        [
            ("collections.defaultdict", {"default_factory_module": "os", "default_factory_name": "getcwd"}),
            ("builtins.dict", [{"__enum__": True, "fqn": "antigravity:X", "name": "Y"}]),
            ("builtins.dict", ["x', print(1)"]),
        ],
    )
    def test_structures(self, kind: str, context: Any, refused: Callable[..., str]) -> None:
        def change(found: dict[str, Any]) -> None:
            spec = [1, {"type": kind, "context": json.dumps(context), "children_spec": []}]
            found["graph_module"]["module_call_graph"][0]["signature"]["out_spec"] = json.dumps(spec)

        assert "in the structure of its inputs or outputs" in refused(program(current(), change))
