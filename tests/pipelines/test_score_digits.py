"""Values keep every digit from the input through the model to the output; the model gets their floats."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pytest
import torch

from pipelines import score
from transforms.sources.formats import delimited, jsonl

LARGE = 9007199254740993


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that gives a times 2 for the column a; one that does so of a feature of it."""
    folder = tmp_path_factory.mktemp("models")
    for name, columns, features in [("plain", ["a"], {}), ("feature", ["a", "half"], {"half": "a / 2"})]:
        model = torch.nn.Linear(len(columns), 1, bias=False)
        with torch.no_grad():
            model.weight.copy_(torch.tensor([[2.0, 0.0][: len(columns)]]))
        exported = torch.export.export(
            model, (torch.zeros(2, len(columns)),), dynamic_shapes=({0: torch.export.Dim("rows")},)
        )
        (folder / name).mkdir()
        torch.export.save(exported, folder / name / "m.pt2")
        text = {"name": name, "task": "regression", "format": "torch_export", "weights": "m.pt2", "features": features}
        text["inputs"] = [{"name": "input", "columns": columns, "allow_nonfinite": True}]
        (folder / name / "model.yaml").write_text(json.dumps(text))
    return folder


def scored(folder: Path, model: Path, *options: str) -> pa.Table:
    arguments = [f"--input={folder / 'in'}", f"--model={model}", f"--output={folder / 'out'}", "--overwrite", *options]
    assert score.main(arguments) == 0
    return ds.dataset(sorted((folder / "out" / "predictions").glob("part-*.parquet"))).to_table()


@pytest.mark.parametrize("model", ["plain", "feature"])
@pytest.mark.parametrize("form", ["csv", "jsonl"])
@pytest.mark.parametrize("sampled", [2, 10])
def test_a_large_integer_that_feeds_floats(
    tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch, model: str, form: str, sampled: int
) -> None:
    for module in (delimited, jsonl):
        monkeypatch.setattr(module, "SAMPLE_ROWS", sampled)
    values = [str(LARGE), "1", "0.5"] if sampled == 2 else [str(LARGE), "1", "3"]
    (tmp_path / "in").mkdir()
    lines = ["a", *values] if form == "csv" else [f'{{"a":{value}}}' for value in values]
    (tmp_path / "in" / f"t.{form}").write_text("\n".join(lines) + "\n")
    table = scored(tmp_path, models / model)
    expected = values if sampled == 2 else list(map(int, values))
    rows = dict(zip(table["a"].to_pylist(), table["prediction"].to_pylist(), strict=True))
    assert rows == {value: pytest.approx(2 * float(value)) for value in expected}
