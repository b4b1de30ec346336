"""Newer models in a bucket: patterns, pointer files, names; what is taken, and what is left on this machine."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from apache_beam.options.pipeline_options import PipelineOptions
from fake_stores import Store

from handlers.errors import UsageError
from handlers.model import stores
from handlers.model.directory import ModelDir
from handlers.predict.predictor import Predictor
from handlers.refresh.refresher import Refresher
from handlers.refresh.watch import ModelWatch, Refresh

pytestmark = pytest.mark.slow(15)


class Loaded:
    def __init__(self, model: ModelDir) -> None:
        self.version = model.version
        self.predictor = Predictor(model.load())


def put(store: Store, folder: Path, name: str, bias: float) -> str:
    """Writes a model into the bucket, `model.yaml` last; gives its version."""
    module = torch.nn.Linear(2, 1)
    torch.nn.init.constant_(module.bias, bias)
    arguments = {"in_features": 2, "out_features": 1}
    inputs = [{"name": "x", "columns": ["a", "b"]}]
    model = ModelDir.save(module, folder / "made", name="m", inputs=inputs, arguments=arguments)
    for file in ("weights.safetensors", "model.yaml"):
        store.put(f"{name}/{file}", (Path(model.path) / file).read_bytes())
    shutil.rmtree(model.path)
    return model.version


@pytest.fixture(autouse=True)
def _connected(store: Store) -> Iterator[None]:
    stores.connect({"model": store.url("models")}, PipelineOptions(list(store.options)))
    with stores.shared_s3():  # as in the command
        yield


def test_where_the_model_is(store: Store, tmp_path: Path) -> None:
    versions = {name: put(store, tmp_path, f"models/{name}", float(name)) for name in ("2", "10", "9")}
    put(store, tmp_path, "models/_11", 11.0)
    store.put("models/12/weights.safetensors", b"its model.yaml comes last")
    store.put("models/CURRENT", b"2\n")
    store.put("models/aliases.json", b'{"champion": {"version": 9}}')
    pattern = ModelWatch(store.url("models/*"))
    pointer = ModelWatch(store.url("models/CURRENT"))
    name = ModelWatch("models@champion", registry=store.url(""))
    fixed = ModelWatch(store.url("models/10"))
    assert pattern.first().version == fixed.first().version == versions["10"]
    assert pointer.first().version == versions["2"]
    assert name.first().version == versions["9"]
    before = [watch.find() for watch in (pattern, pointer, name, fixed)]
    assert before == [watch.find() for watch in (pattern, pointer, name, fixed)]
    store.put("models/CURRENT", store.url("models/9").encode())
    assert pointer.first().version == versions["9"]
    put(store, tmp_path, "models/10", 10.5)
    assert fixed.find() != before[3]
    with pytest.raises(UsageError, match=r"no directory with a model\.yaml matches"):
        ModelWatch(store.url("nothing/*")).find()
    with pytest.raises(UsageError, match="does not exist"):
        ModelWatch(store.url("nothing")).first()


def test_ten_refreshes_leave_few_copies(store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(store, tmp_path, "models/1", 1.0)
    watch = ModelWatch(store.url("models/*"))
    refresher = Refresher(Refresh(watch, 86_400), watch.first(), lambda model, _: Loaded(model))
    for number in range(2, 12):
        version = put(store, tmp_path, f"models/{number}", float(number))
        refresher.look()
        refresher.look()
        assert refresher.current.version == version
    copies = [each for each in Path(tempfile.gettempdir()).glob("torchbeam-models-*/*") if each.is_dir()]
    assert 1 <= len(copies) <= 3
    store.put("models/12/model.yaml", store.get("models/11/model.yaml"))
    refresher.look()
    refresher.look()
    assert "models/12 is refused" in caplog.text
    refresher.close()
