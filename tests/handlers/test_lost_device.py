"""A device that is lost to its process: a worker leaves, so that its runner starts another; elsewhere it is an error."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from handlers import ModelDir

pytestmark = pytest.mark.slow(15)

MODEL = """
import torch

class Fragile(torch.nn.Module):
    def __init__(self, features: int = 1):
        super().__init__()
        self.layer = torch.nn.Linear(features, 1)

    def forward(self, x):
        if (x == 13).any():
            raise torch.AcceleratorError("CUDA error: device-side assert triggered")
        return self.layer(x)
"""
ELEMENTS = """
import sys, torch
from handlers import ModelDir, TorchModelHandler
handler = TorchModelHandler(ModelDir(sys.argv[1]))
bad = torch.tensor([13.0])
"""
COLUMNS = """
import sys, pyarrow as pa
from handlers import ColumnarModelHandler, ModelDir, Predictor
from handlers.columnar.chunks import with_provenance
from handlers.columnar.plan import Chain
from handlers.columnar.planning import make_plan
model = ModelDir(sys.argv[1])
chunk = lambda value: with_provenance(pa.record_batch({"a": [value]}), "in.csv", 0)
handler = ColumnarModelHandler(model, make_plan(model, Predictor(model.load()), chunk(1.0), Chain.of(model.spec), ("*",)))
bad = chunk(13.0)
"""
RUN = """
model = handler.load_model()
print("loaded", flush=True)
list(handler.run_inference([bad], model))
print("went on")
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fragile")
    (folder / "fragile_net.py").write_text(MODEL)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        from fragile_net import Fragile  # type: ignore[import-not-found]

        inputs = [{"name": "x", "columns": ["a"]}]
        ModelDir.save(Fragile(), folder / "model", task="regression", inputs=inputs, code=[folder / "fragile_net.py"])
    return folder / "model"


def run(program: str, model: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    others = {name: value for name, value in os.environ.items() if name != "WORKER_ID"}
    command = [sys.executable, "-c", program + RUN, str(model)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=others | environment)


@pytest.mark.parametrize("program", [ELEMENTS, COLUMNS], ids=["elements", "columns"])
def test_a_worker_leaves(program: str, model: Path) -> None:
    done = run(program, model, WORKER_ID="1-1")
    assert (done.returncode, done.stdout) == (70, "loaded\n"), done.stderr
    assert "the accelerator is lost; this worker process ends" in done.stderr
    assert "CUDA error: device-side assert triggered" in done.stderr


def test_any_other_process_sees_the_error(model: Path) -> None:
    done = run(ELEMENTS, model)
    assert (done.returncode, done.stdout) == (1, "loaded\n"), done.stderr
    assert (
        "DeviceLostError: cpu is lost to this process: CUDA error: device-side assert" in done.stderr.splitlines()[-1]
    )
