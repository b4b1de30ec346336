"""The example of a pipeline of one's own, and the one in docs/handlers.md, run as they are."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from deadlines import WAIT_SECONDS

from torchbeam import ModelDir

ROOT = Path(__file__).parents[2]
NET = """
import torch


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)

    def forward(self, x):
        return self.layer(x)
"""


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelDir:
    """Logits (a, b), so that the class is that of the larger one and its probability 1 / (1 + exp(-|a - b|))."""
    (tmp_path / "example_net.py").write_text(NET)
    monkeypatch.syspath_prepend(tmp_path)
    import example_net

    net = example_net.Net()
    net.load_state_dict({"layer.weight": torch.eye(2), "layer.bias": torch.zeros(2)})
    inputs = [{"name": "x", "columns": ["a", "b"]}]
    fields = {"task": "classification", "labels": ["a", "b"], "code": [tmp_path / "example_net.py"]}
    return ModelDir.save(net, tmp_path / "models" / "credit", inputs=inputs, **fields)


def run(code: list[str], folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, *code], capture_output=True, text=True, check=False, cwd=folder, timeout=WAIT_SECONDS
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_score_table(model: ModelDir, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "1.csv").write_text("id,a,b\n1,3,0\n2,oops,0\n3,0,0.5\n")
    (tmp_path / "data" / "2.csv").write_text("id,a,b\n4,,1\n5,1,1.5\n")
    (tmp_path / "data" / "3.csv").write_text("id,a\n6,1\n")
    out = run([str(ROOT / "examples/pipeline/score_table.py"), "data", model.path, "out"], tmp_path)
    assert "2 predictions have a confidence below 0.8" in out  # of |a - b|: 3 gives 0.95, 0.5 gives 0.62
    assert 'data/3.csv: 3.csv has no column "b"' in out
    rows = {row["id"]: row["predicted_class"] for row in pq.read_table(tmp_path / "out/predictions").to_pylist()}
    assert rows == {1: "a", 3: "b", 5: "b"}
    dead = pq.read_table(tmp_path / "out/dead_letters").to_pylist()
    assert {row["id"]: (row["dead_letter"]["stage"], row["dead_letter"]["row"]) for row in dead} == {
        2: ("read", 1),
        4: ("encode", 0),
    }
    counts = json.loads((tmp_path / "out/counts.json").read_text())
    assert (counts["rows_scored"], counts["rows_dead"]) == (3, 2)
    lines = [line.split("\t") for file in (tmp_path / "out").glob("files-*.tsv") for line in file.open()]
    assert sum(int(rows) for _, rows in lines) == 5
    assert {Path(path).name for path, _ in lines} == {file.name for file in (tmp_path / "out").rglob("part-*")}


def test_the_example_of_the_docs(model: ModelDir, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "handlers.md").read_text()
    (code,) = re.findall(r"```python\n([^`]*ReadFromParquetBatched[^`]*)```", text.partition("## Chunks")[2])
    (tmp_path / "orders").mkdir()
    table = pa.table({"id": [1, 2, 3], "a": [3.0, None, 0.0], "b": [0.0, 1.0, 2.0], "note": ["x", "y", "z"]})
    pq.write_table(table, tmp_path / "orders" / "0.parquet")
    (tmp_path / "example.py").write_text(code)
    run(["example.py"], tmp_path)
    rows = [row for file in tmp_path.glob("scored/predictions*") for row in pq.read_table(file).to_pylist()]
    assert sorted((row["id"], row["predicted_class"], row["confidence"]) for row in rows) == [
        (1, "a", pytest.approx(1 / (1 + torch.tensor(-3.0).exp().item()))),
        (3, "b", pytest.approx(1 / (1 + torch.tensor(-2.0).exp().item()))),
    ]
    dead = [json.loads(line) for file in tmp_path.glob("scored/dead_letters*") for line in file.open()]
    assert [(row["id"], row["dead_letter"]["type"]) for row in dead] == [(2, "NullValue")]
    assert re.fullmatch(r"orders#[0-9a-f]{16}", dead[0]["dead_letter"]["source"])
