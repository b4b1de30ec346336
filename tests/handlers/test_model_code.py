"""Modules in `code/`: two versions of a model in one process, each with its own."""

from __future__ import annotations

import importlib
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import apache_beam as beam
import cloudpickle
import pyarrow as pa
import pytest
import torch
from apache_beam.ml.inference.base import KeyedModelHandler, KeyModelMapping, RunInference
from apache_beam.testing.util import assert_that, equal_to

from handlers.columnar.chains import Rows, function_step
from handlers.elements.handler import TorchModelHandler
from handlers.errors import UsageError
from handlers.model.directory import ModelDir
from handlers.model_code import ModelCode, import_function
from handlers.predict.predictor import Predictor

ROOT = Path(__file__).parents[2]

INIT = "from credit_v.rows import FACTOR\n"
NETS = """
import credit_v.rows as rows_module
import credit_v.rows
import torch
from credit_v import FACTOR
from credit_v.rows import clean
from . import rows

assert credit_v.rows is rows is rows_module
assert credit_v.FACTOR == FACTOR

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(float(FACTOR)))

    def forward(self, x):
        return x * self.factor

def load(folder):
    return torch.jit.script(Net())

def late(row: dict) -> dict:
    from credit_v.rows import FACTOR as factor
    import credit_v_helper
    assert __import__("credit_v_helper") is credit_v_helper
    return row | {"late": factor * credit_v_helper.ONE}
"""
ROWS = """
from dataclasses import dataclass

FACTOR = %d

@dataclass
class Row:
    value: int

def clean(row: dict) -> dict:
    return row | {"a": row["a"] * FACTOR}

def closure():
    return lambda value: value * FACTOR
"""

Write = Callable[..., ModelDir]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A model directory whose code multiplies by `factor`, in the package credit_v."""

    def make(factor: int, name: str = "", architecture: str = "credit_v.nets:Net") -> ModelDir:
        folder = tmp_path / (name or f"m{factor}")
        package = folder / "code" / "credit_v"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(INIT)
        (package / "nets.py").write_text(NETS)
        (package / "rows.py").write_text(ROWS % factor)
        (folder / "code" / "credit_v_helper.py").write_text("ONE = 1\n")
        (folder / "model.yaml").write_text(
            "name: m\nloader: credit_v.nets:load\ninputs: [{name: x, columns: [a]}]\nenv_vars: {}\n"
            if architecture == "loader"
            else f"name: m\nformat: state_dict\nweights: w.pt\narchitecture: {architecture}\n"
            "inputs: [{name: x, columns: [a]}]\npreprocess: [credit_v.rows:clean, credit_v.nets:late]\n"
        )
        torch.save({"factor": torch.tensor(float(factor))}, folder / "w.pt")
        return ModelDir(folder)

    return make


def answer(model: ModelDir) -> float:
    return Predictor(model.load()).predict({"x": torch.tensor([[1.5]])}).tensors["output"].item()


def test_two_versions_side_by_side(write: Write) -> None:
    old, new = write(2), write(3)
    assert (answer(old), answer(new), answer(old)) == (3.0, 4.5, 3.0)
    cleaned = []
    for model in (old, new):
        steps = [function_step(name, "preprocess", model.code()) for name in model.spec.preprocess]
        rows = Rows(pa.RecordBatch.from_pylist([{"a": 10}]), torch.arange(1).numpy())
        for step in steps:
            rows, failures = step.run(rows)
            assert not failures
        cleaned.append(rows.batch.to_pylist())
    assert cleaned == [[{"a": 20, "late": 2}], [{"a": 30, "late": 3}]]


def test_torchscript_of_a_class_in_code(write: Write) -> None:
    assert (answer(write(4, "s4", "loader")), answer(write(5, "s5", "loader"))) == (6.0, 7.5)


def test_equal_code_is_shared(write: Write) -> None:
    one, same = write(6), write(6, "same")
    function = "credit_v.rows:clean"
    assert import_function(function, "x", one.code()) is import_function(function, "x", same.code())


def test_a_changed_module_is_another_version(write: Write) -> None:
    model = write(7)
    assert answer(model) == 10.5
    (Path(model.path) / "code" / "credit_v" / "rows.py").write_text(ROWS % 8)
    torch.save({"factor": torch.tensor(8.0)}, Path(model.path) / "w.pt")
    assert answer(ModelDir(model.path)) == 12.0
    with pytest.raises(UsageError, match="changed after the run began"):
        model.load()


def test_plain_names(write: Write) -> None:
    """For the user's own code, as long as it is clear whose module is meant."""
    first = write(9)
    first.load()
    for name in ("credit_v", "credit_v.rows", "credit_v_helper"):
        sys.modules.pop(name, None)
    others = [code for code in _codes_with("credit_v") if code.namespace != first.code().namespace]
    for code in others:  # of the other tests in this process
        _forget(code)
    rows = importlib.import_module("credit_v.rows")
    assert rows.FACTOR == 9
    assert rows is sys.modules[first.code().full_name("credit_v.rows")]
    assert rows.__spec__.name == rows.__name__ == first.code().full_name("credit_v.rows")
    second = write(10)
    second.load()
    with pytest.raises(ImportError, match=r'module "credit_v" is in code/ of 2 models .* different contents'):
        importlib.import_module("credit_v.rows")
    assert rows.clean({"a": 1}) == {"a": 9}


def test_installed_modules_of_the_same_name(tmp_path: Path) -> None:
    """Inside code/ its own comes first, outside the installed one."""
    code = tmp_path / "code"
    code.mkdir()
    (code / "colorsys.py").write_text("WHO = 'mine'\n")
    (code / "who_v.py").write_text(
        "import colorsys\nimport json.decoder\ndef who(): return colorsys.WHO, json.decoder\n"
    )
    modules = _added(code)
    assert import_function("who_v:who", "x", modules)()[0] == "mine"
    assert not hasattr(importlib.import_module("colorsys"), "WHO")


def test_bytecode_beside_it_is_not_run_and_none_is_written(tmp_path: Path) -> None:
    """It is not part of the version, and Python would take it for the source if the times match."""
    import py_compile

    source = tmp_path / "compiled_v.py"
    source.write_text("def f(): return 'evil'\n")
    py_compile.compile(str(source), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    source.write_text("def f(): return 'good'\n")
    cached = sorted(tmp_path.rglob("*.pyc"))
    assert import_function("compiled_v:f", "x", _added(tmp_path))() == "good"
    assert sorted(tmp_path.rglob("*.pyc")) == cached
    assert len(cached) == 1


def test_a_module_that_is_swapped_between_check_and_import(tmp_path: Path) -> None:
    source = tmp_path / "swapped_v.py"
    source.write_text("def f(): return 1\n")
    modules = _added(tmp_path)
    source.write_text("raise SystemExit('run')\n")
    with pytest.raises(
        UsageError, match=r'"swapped_v:f" cannot be imported: ImportError: .*swapped_v.py was changed after'
    ):
        import_function("swapped_v:f", "loader", modules)


@pytest.mark.parametrize("dumps", [pickle.dumps, cloudpickle.dumps])
def test_functions_travel_to_another_process(write: Write, tmp_path: Path, dumps: Callable[..., bytes]) -> None:
    """Beside the handler that they belong to, as in `with_postprocess_fn`."""
    model = write(11)
    rows = importlib.import_module(model.code().full_name("credit_v.rows"))
    file = tmp_path / "pickled"
    file.write_bytes(dumps((TorchModelHandler(model), rows.clean, rows.Row(5), dumps)))
    program = (
        "import pickle, pathlib, sys\n"
        f"handler, clean, row, _ = pickle.loads(pathlib.Path({str(file)!r}).read_bytes())\n"
        "assert 'torch' in sys.modules\nprint(clean({'a': 1})['a'], row.value)"
    )
    assert _elsewhere(program, tmp_path) == "11 5"


def test_a_closure_travels_by_value(write: Write, tmp_path: Path) -> None:
    model = write(12)
    rows = importlib.import_module(model.code().full_name("credit_v.rows"))
    file = tmp_path / "pickled"
    file.write_bytes(cloudpickle.dumps(rows.closure()))
    program = f"import pickle, pathlib; print(pickle.loads(pathlib.Path({str(file)!r}).read_bytes())(2))"
    assert _elsewhere(program, tmp_path) == "24"


def test_code_that_nobody_has_opened(tmp_path: Path) -> None:
    program = "import handlers.model_code.c0123456789abcdef.credit"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "is code of a model that this process has not opened" in done.stderr


def test_a_class_of_code_is_saved_under_its_own_name(write: Write, tmp_path: Path) -> None:
    module = write(13).load().module
    code = [tmp_path / "m13" / "code" / name for name in ("credit_v", "credit_v_helper.py")]
    saved = ModelDir.save(module, tmp_path / "again", inputs=[{"name": "x"}], code=code)
    assert saved.spec.architecture == "credit_v.nets:Net"
    assert answer(saved) == 19.5


def test_both_in_one_pipeline(write: Write) -> None:
    handlers = [KeyModelMapping([key], TorchModelHandler(write(factor))) for key, factor in (("old", 14), ("new", 15))]
    with beam.Pipeline("FnApiRunner") as pipeline:
        results = (
            pipeline
            | beam.Create([("old", {"a": 1.0}), ("new", {"a": 1.0})])
            | RunInference(KeyedModelHandler(handlers))
            | beam.MapTuple(lambda key, result: (key, result.inference.item()))
        )
        assert_that(results, equal_to([("old", 14.0 * 14), ("new", 15.0 * 15)]))


def test_compiled(write: Write) -> None:
    old, new = write(16), write(17)
    compiled = [torch.compile(model.load().module, backend="eager") for model in (old, new)]
    assert [module(torch.tensor(2.0)).item() for module in compiled] == [32.0, 34.0]


def _added(folder: Path) -> ModelCode:
    from handlers.model import files

    inside = files.digests(folder)
    return ModelCode.add(files.digest_of(inside), folder, inside)


def _codes_with(top: str) -> list[ModelCode]:
    from handlers import model_code

    return [code for code in model_code._codes.values() if top in code.top_names]


def _forget(code: ModelCode) -> None:
    from handlers import model_code

    del model_code._codes[code.namespace]


def _elsewhere(program: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
