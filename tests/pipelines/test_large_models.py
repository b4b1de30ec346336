"""Models that are larger than what they may take of a device: the same answers, in less memory."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from peak_memory import peak_of_score
from safetensors import safe_open

from handlers import ModelDir
from pipelines import score

HANDLERS = Path(__file__).parents[1] / "handlers"
sys.path.append(str(HANDLERS))
import stacked_layers  # noqa: E402

COLUMNS = ["a", "b", "c", "d"]


def save(path: Path, *, layers: int = 6, width: int = 64, **fields: Any) -> Path:
    torch.manual_seed(3)
    ModelDir.save(
        stacked_layers.Stacked(layers, width),
        path,
        task="classification",
        inputs=[{"name": "x", "columns": COLUMNS}],
        architecture="stacked_layers:Stacked",
        arguments={"layers": layers, "width": width},
        code=[HANDLERS / "stacked_layers.py"],
        **fields,
    )
    return path


def table(path: Path, rows: int = 500) -> Path:
    random = np.random.default_rng(0)
    pq.write_table(pa.table({"id": np.arange(rows)} | {name: random.normal(size=rows) for name in COLUMNS}), path)
    return path


def scores(model: Path, rows: Path, output: Path, *more: str) -> pa.Table:
    assert score.main([f"--input={rows}", f"--model={model}", f"--output={output}", *more]) == 0
    return pq.read_table(output / "predictions").sort_by("id")


def check(found: pa.Table, expected: pa.Table) -> None:
    assert found["predicted_class"].equals(expected["predicted_class"])
    np.testing.assert_allclose(found["confidence"], expected["confidence"], atol=1e-6, rtol=0)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return table(tmp_path_factory.mktemp("rows") / "rows.parquet")


def test_layers_on_the_disk(tmp_path: Path, rows: Path) -> None:
    expected = scores(save(tmp_path / "whole"), rows, tmp_path / "out-whole")
    folder = tmp_path / "offload"
    for name, fields in {
        "disk": {"max_memory": {"cpu": "40KB"}},
        "copied": {"max_memory": {"cpu": "40KB"}, "offload_folder": str(folder)},
        "map": {"device_map": {"first": "cpu", "layers": "disk", "last": "cpu", "shift": "cpu"}},
        "fits": {},
    }.items():
        model = save(tmp_path / name, placement=fields)
        check(scores(model, rows, tmp_path / f"out-{name}"), expected)
        module = ModelDir(model).load().module
        on_disk = [name for name, each in module.named_parameters() if each.device.type == "meta"]
        assert bool(on_disk) == (name != "fits")
    check(scores(tmp_path / "whole", rows, tmp_path / "out-flag", "--device_map=sequential"), expected)


def test_nothing_is_left(tmp_path: Path, rows: Path) -> None:
    """Of a whole process: neither copies of weights, nor the files by which Beam's processes share a model."""
    model = save(
        tmp_path / "model", placement={"max_memory": {"cpu": "40KB"}, "offload_folder": str(tmp_path / "disk")}
    )
    (temporary := tmp_path / "tmp").mkdir()
    arguments = [f"--input={rows}", f"--model={model}", f"--output={tmp_path / 'out'}"]
    command = [sys.executable, "-m", "pipelines.score", *arguments]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"TMPDIR": str(temporary)})
    assert list((tmp_path / "disk").iterdir()) == []
    assert [path.name for path in temporary.rglob("*") if path.suffix in (".lock", ".address")] == []


def test_hugging_face(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64, vocab_size=99)
    whole = BertForSequenceClassification(config).eval()
    ids = torch.randint(5, 99, (3, 7))
    inputs = [{"name": "input_ids", "columns": ["ids"], "shape": [7], "dtype": "int64"}]
    for placement in (
        {"max_memory": {"cpu": "80KB"}},
        {"max_memory": {"cpu": "80KB"}, "offload_folder": str(tmp_path / "f")},
    ):
        fields = {"format": "huggingface", "task": "classification", "inputs": inputs, "placement": placement}
        loaded = ModelDir.save(whole, tmp_path / "model", **fields).load()
        assert "disk" in loaded.module.hf_device_map.values()
        with torch.inference_mode():
            torch.testing.assert_close(loaded.module(input_ids=ids).logits, whole(input_ids=ids).logits)


@pytest.mark.parametrize(
    ("fields", "flags", "message"),
    [
        ({"max_memory": {"cpu": "1KB"}}, (), "max_memory: the largest layer takes .* and no device has more than"),
        ({"max_memory": {"cuda:7": "1GB"}}, (), "max_memory names cuda:7, but this process sees"),
        ({"device_map": {"first": "cpu"}}, (), 'device_map names no device for "'),
        ({"offload_folder": "/proc/nowhere"}, (), "offload_folder /proc/nowhere cannot be written to"),
        (None, ("--device_map=auto", "--compile"), "--compile cannot be combined with --device_map"),
        (None, ("--device_map=auto", "--device=cpu"), "--device cannot be combined with --device_map"),
        (None, ("--device_map=everywhere",), "device_map"),
    ],
)
def test_what_cannot_work(
    fields: dict[str, Any] | None,
    flags: tuple[str, ...],
    message: str,
    tmp_path: Path,
    rows: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = save(tmp_path / "model")
    if fields is not None:
        (model / "model.yaml").write_text((model / "model.yaml").read_text() + f"placement: {json.dumps(fields)}\n")
    assert score.main([f"--input={rows}", f"--model={model}", f"--output={tmp_path / 'out'}", *flags]) == 2
    err = capsys.readouterr().err.strip()
    assert len(err.splitlines()) == 1
    assert re.search(message, err), err


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_memory": {"cpu": "8"}}, "has no unit"),
        ({"max_memory": {"gpu": "8GB"}}, "is no device"),
        ({"device_map": {"first": "tpu"}}, "is no device"),
        ({"memory": {}}, "placement.memory"),
    ],
)
def test_wrong_fields(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    from handlers.errors import UsageError

    with pytest.raises(UsageError, match=message):
        save(tmp_path / "model", placement=fields)


def test_a_format_that_cannot(tmp_path: Path) -> None:
    from handlers.errors import UsageError

    with pytest.raises(UsageError, match="placement works with format safetensors and huggingface only"):
        save(tmp_path / "model", format="state_dict", placement={"device_map": "auto"})


@pytest.mark.slow(40)
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_two_gigabytes_in_less_memory(tmp_path: Path) -> None:
    """A model of 2.1 GB in at most 1.2 GB, imports of torch and Beam included; file-backed pages count, too."""
    rows = table(tmp_path / "rows.parquet", 40)  # each takes a GFLOP
    model = save(tmp_path / "model", layers=32, width=4096, placement={"max_memory": {"cpu": "70MB"}})
    assert (model / "weights.safetensors").stat().st_size > 2e9

    output = tmp_path / "scored"
    assert peak_of_score(f"--input={rows}", f"--model={model}", f"--output={output}") < 1.2e9
    found = pq.read_table(output / "predictions").sort_by("id")
    check(found, by_hand(model, rows, layers=32))


def by_hand(model: Path, rows: Path, layers: int) -> pa.Table:
    """The answers layer by layer, with the weights of one in memory."""
    table = pq.read_table(rows)
    with safe_open(str(model / "weights.safetensors"), "pt") as file, torch.inference_mode():

        def linear(name: str, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.linear(x, file.get_tensor(f"{name}.weight"), file.get_tensor(f"{name}.bias"))

        x = torch.from_numpy(np.column_stack([table[name].to_numpy() for name in COLUMNS]).astype(np.float32))
        x = linear("first", x)
        for layer in range(layers):
            x = x + torch.tanh(linear(f"layers.{layer}", x) + file.get_tensor("shift"))
        confidence, index = linear("last", x).softmax(dim=1).max(dim=1)
    return pa.table({"predicted_class": index.numpy(), "confidence": confidence.numpy()})
