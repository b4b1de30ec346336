"""A registry in a bucket: pushes, conditional writes of aliases, and a run by name."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from cloud_runs import as_parquet, check, expected, one_line, run
from fake_stores import Store

from handlers.errors import TorchbeamError, UsageError
from handlers.model import stores
from handlers.model.directory import ModelDir
from pipelines import models as command
from transforms.registry.registry import ModelRegistry

pytestmark = pytest.mark.slow(25)


@pytest.fixture
def registry(store: Store) -> ModelRegistry:
    stores.connect({"registry": store.url("models")}, PipelineOptions(list(store.options)))
    return ModelRegistry(store.url("models"))


def test_a_run_by_name(
    registry: ModelRegistry,
    store: Store,
    model: Path,
    table: pa.Table,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def models(action: str, *arguments: str) -> str:
        capsys.readouterr()
        assert command.main([action, *arguments, f"--registry={registry.folder}", *store.options]) == 0
        return capsys.readouterr().out

    assert models("push", f"--model={model}", "--name=credit") == "credit@1\n"
    assert models("push", "--model=credit@1", "--name=credit") == "credit@2\n"
    assert models("promote", "--model=credit@2", "--alias=champion") == "credit@champion is credit@2\n"
    (found,) = json.loads(models("list", "--json"))
    assert (found["versions"], found["aliases"]) == ([1, 2], {"champion": 2})
    assert sorted(store.names("models/credit/2/")) == [
        f"models/credit/2/{name}" for name in (".registry.json", "model.yaml", "weights.safetensors")
    ]

    store.put("in/x.parquet", as_parquet(table))
    named = {"input": "in", "output": "out", "registry": registry.folder}
    assert run(store, "--model=credit@champion", **named) == 0
    check(store, "out", expected(model, table))
    report = json.loads(store.get("out/report.json"))
    assert report["model"]["registry"] == "credit@2"
    assert report["model"]["version"] == ModelDir(model).version
    capsys.readouterr()
    assert run(store, "--model=credit@challenger", **named | {"output": "out2"}) == 2
    assert 'has no alias "challenger"; it has: champion, latest' in one_line(capsys)


def test_pushes_and_promotes_at_once(registry: ModelRegistry, store: Store, model: Path) -> None:
    with ThreadPoolExecutor(3) as threads:
        pushed = list(threads.map(lambda _: registry.push(model, "credit"), range(3)))
    assert sorted(pushed) == ["credit@1", "credit@2", "credit@3"]
    registry.promote("credit@1", "champion")

    def promote(version: int) -> bool:
        try:
            registry.promote(f"credit@{version}", "champion")
        except TorchbeamError as error:
            return "was changed by another process at the same time" not in str(error)
        return True

    with ThreadPoolExecutor(2) as threads:
        won = list(threads.map(promote, (2, 3)))
    (found,) = registry.models()
    assert sum(won) == len(found.previous["champion"]) >= 1
    assert won[found.aliases["champion"] - 2]
    assert registry.rollback("credit", "champion") == f"credit@{found.previous['champion'][0]}"


def test_an_unfinished_or_changed_version(registry: ModelRegistry, store: Store, model: Path) -> None:
    registry.push(model, "credit")
    store.put("models/credit/2/weights.safetensors", b"half")  # of a push that was killed
    assert registry.models()[0].versions == (1,)
    assert registry.push(model, "credit") == "credit@3"
    store.put("models/credit/1/notes.txt", b"added later")
    with pytest.raises(UsageError, match=r"credit@1 \(.*\) was changed after it was pushed"):
        registry.promote("credit@1", "champion")


def test_a_push_that_fails_is_not_seen(registry: ModelRegistry, store: Store, model: Path) -> None:
    store.proxy.forbid("PUT", "POST", part="weights.safetensors")
    with pytest.raises(TorchbeamError, match=r"--registry .* cannot be written"):
        registry.push(model, "credit")
    store.proxy.reset()
    assert registry.models() == []
    assert [name for name in store.names("models/") if name.endswith("model.yaml")] == []
