"""A model for each key: answers by hand, loads and bytes counted, and what is done about a key without a model."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from graphs import chunk_of, run
from small_models import Linear

from handlers.columnar.chunks import PROVENANCE
from handlers.errors import UsageError
from handlers.graph.keyed import KeyedModels
from handlers.graph.plan import ByKey, GraphPlan, ModelSettings
from handlers.graph.planning import plan_graph
from handlers.model.directory import ModelDir

KEYS = [f"k{number}" for number in range(12)]
SIZE = 4 * (250_000 + 1)  # bytes of a model


class Keyed(torch.nn.Module):
    """Gives a + b + number; raises for a row of which a is -13. It has a buffer, so that it has a size."""

    def __init__(self, number: float = 0.0, size: int = 250_000) -> None:
        super().__init__()
        self.number = torch.nn.Parameter(torch.tensor([number]))
        self.register_buffer("ballast", torch.zeros(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if (x[:, 0] == -13).any():
            raise ValueError("cannot take -13")
        return x.sum(dim=1) + self.number


def save(path: Path, number: float, size: int = 250_000, **fields: Any) -> ModelDir:
    fields = {"task": "regression", "inputs": [{"name": "x", "columns": ["a", "b"]}], **fields}
    return ModelDir.save(Keyed(number, size), path, arguments={"number": number, "size": size}, **fields)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of 12 keys, each of 1 MB, and a default."""
    found = tmp_path_factory.mktemp("models")
    for number, key in enumerate(KEYS):
        save(found / "by_key" / key, float(number))
    save(found / "world", 1_000.0)
    return found


def settings_of(folder: Path, memory: int = 3 * SIZE, *, default: bool = True, **models: str) -> ModelSettings:
    paths = {key: str(folder / "by_key" / key) for key in KEYS} | models
    by_key = ByKey("key", str(folder / "by_key"), paths, str(folder / "world") if default else None, memory)
    return ModelSettings("local", ModelDir(by_key.default or paths["k0"]), by_key=by_key)


def chunk(keys: list[str | None] | pa.Array, a: Any = None) -> pa.RecordBatch:
    count = len(keys)
    keys = keys if isinstance(keys, pa.Array) else pa.array(keys, pa.string())
    return chunk_of(np.arange(float(count)) if a is None else a, np.full(count, 0.25), key=keys)


def plan_of(settings: ModelSettings, sample: pa.RecordBatch | None = None, *others: ModelSettings) -> GraphPlan:
    return plan_graph((*others, settings), chunk(["k1", "k2"]) if sample is None else sample)


def keyed(plan: GraphPlan) -> KeyedModels:
    (node,) = plan.nodes
    assert node.settings.by_key is not None
    return KeyedModels(node, node.settings.by_key)


def test_answers(folder: Path) -> None:
    rows = chunk(["k3", "k1", "nowhere", None, "k3", "k11"])
    found = run(plan_of(settings_of(folder)), rows)
    assert found.rows.schema.names == ["id", "a", "b", "key", "prediction", "model_version"]
    assert found.rows.column("prediction").to_pylist() == [3.25, 2.25, 1002.25, 1003.25, 7.25, 16.25]
    versions = {key: ModelDir(folder / "by_key" / key).version for key in KEYS}
    world = ModelDir(folder / "world").version
    expected = [versions["k3"], versions["k1"], world, world, versions["k3"], versions["k11"]]
    assert found.rows.column("model_version").to_pylist() == expected
    assert found.models["local"].loads == 4
    assert found.models["local"].peak_bytes == 3 * SIZE


def test_unknown_keys_without_a_default(folder: Path) -> None:
    """A key is never part of a path: what the folder did not have when the run began has no model."""
    keys = ["k3", None, "../world", "k1/../k2", "", ".", "nowhere", "k3/", str(folder / "world"), "K3"]
    found = run(plan_of(settings_of(folder, default=False)), chunk(keys))
    assert found.rows.column("prediction").to_pylist() == [3.25]
    assert found.counts("local") == (10, 1, 0, 9, 0)
    assert [row["id"] for row in found.dead] == list(range(1, 10))
    letters = [row["dead_letter"] for row in found.dead]
    assert {(each["stage"], each["type"], each["model"]) for each in letters} == {("by_key", "UnknownKey", "local")}
    assert 'column "key" is null' in letters[0]["message"]
    assert 'column "key" holds "../world"' in letters[1]["message"]
    assert found.models["local"].loads == 1


@pytest.mark.parametrize(
    "kind", [pa.int64(), pa.float64(), pa.uint8(), pa.dictionary(pa.int32(), pa.string()), pa.large_string()]
)
def test_types_of_keys(folder: Path, tmp_path: Path, kind: pa.DataType) -> None:
    save(tmp_path / "7", 7.0)
    numbers = pa.array([7, None, 8], pa.int64())
    keys = numbers.cast(kind) if not pa.types.is_dictionary(kind) else numbers.cast(pa.string()).dictionary_encode()
    plan = plan_of(settings_of(folder, **{"7": str(tmp_path / "7")}), chunk(keys))
    assert run(plan, chunk(keys)).rows.column("prediction").to_pylist() == [7.25, 1001.25, 1002.25]


def test_loads_are_few_and_memory_is_bounded(folder: Path) -> None:
    """Chunks of shuffled rows of 12 keys, in memory for 3 models: a chunk loads each model once, but for those it finds."""
    random = np.random.default_rng(0)
    models = keyed(plan_of(settings_of(folder)))
    for count in range(4):
        numbers = random.integers(0, 12, 600)
        rows = chunk([KEYS[number] for number in numbers])
        answered = models.answer(rows)
        expected = np.arange(600.0) + 0.25 + numbers
        order = np.argsort(answered.rows.ids)
        assert np.abs(answered.rows.batch.column("prediction").to_numpy()[order] - expected).max() <= 1e-3
        assert answered.loads == (9 if count else 12)
        assert answered.bytes == 3 * SIZE
    assert models.answer(chunk([KEYS[number] for number in numbers[:0]])).loads == 0


def test_many_keys_with_the_default(folder: Path) -> None:
    """As many keys as rows, of which one has a model."""
    keys = [f"customer {row}" for row in range(50_000)]
    keys[7] = "k1"
    answered = keyed(plan_of(settings_of(folder))).answer(chunk(keys))
    assert answered.loads == 2
    found = answered.rows.batch.column("prediction").to_numpy()[np.argsort(answered.rows.ids)]
    expected = np.arange(50_000.0) + 1_000.25
    expected[7] = 8.25
    assert np.abs(found - expected).max() <= 0.01


def test_failures(folder: Path) -> None:
    """A model that fails on rows costs these rows, and they have its version."""
    rows = chunk(["k1", "k2", "k2", "k3"], a=[1.0, -13.0, 2.0, 3.0])
    found = run(plan_of(settings_of(folder)), rows)
    assert found.rows.column("prediction").to_pylist() == [2.25, 4.25, 6.25]
    (dead,) = found.dead
    assert dead["dead_letter"]["message"] == "cannot take -13"
    assert dead["dead_letter"]["model_version"] == ModelDir(folder / "by_key" / "k2").version


def test_models_that_cannot_be_used(folder: Path, tmp_path: Path) -> None:
    """Their rows are dead letters, and those of all other keys are scored; no model is tried twice."""
    (tmp_path / "empty").mkdir()
    save(tmp_path / "other", 1.0, task="embedding")
    save(tmp_path / "large", 1.0, size=800_000)
    save(tmp_path / "env", 1.0, env_vars={"OMP_NUM_THREADS": "1"})
    save(tmp_path / "damaged", 1.0)
    (tmp_path / "damaged" / "weights.safetensors").write_bytes(b"nothing")
    wrong = ["empty", "other", "large", "env", "damaged", "gone"]
    models = keyed(plan_of(settings_of(folder, **{name: str(tmp_path / name) for name in wrong})))
    rows = chunk(["k1", *wrong, "k2"])
    for _ in range(2):
        answered = models.answer(rows)
        assert sorted(answered.rows.ids.tolist()) == [0, 7]
        assert {failure.stage for failure in answered.failures.values()} == {"by_key"}
        messages = [answered.failures[row].message for row in range(1, 7)]
        expected = [
            "has no model.yaml",
            "has the outputs embedding",
            "more than memory in by_key",
            "has other env_vars",
        ]
        for message, part in zip(messages, [*expected, "sha256", "does not exist"], strict=True):
            assert part in message
    assert answered.loads == 0


def test_first_rows_of_a_key_are_bad(folder: Path) -> None:
    """What a model is planned with does not depend on the first rows that it gets."""
    models = keyed(plan_of(settings_of(folder)))
    assert models.answer(chunk(["k1"], a=[None])).failures[0].type == "NullValue"
    assert models.answer(chunk(["k1"])).rows.batch.column("prediction").to_pylist() == [1.25]


def test_default_alone(folder: Path) -> None:
    by_key = ByKey("key", "nowhere", {}, str(folder / "world"), SIZE)
    plan = plan_of(ModelSettings("local", ModelDir(folder / "world"), by_key=by_key))
    assert run(plan, chunk(["k1", "k2"])).rows.column("prediction").to_pylist() == [1000.25, 1001.25]


def test_with_another_model(folder: Path) -> None:
    """Each has its columns."""
    first = ModelSettings("world", ModelDir(folder / "world"))
    plan = plan_of(settings_of(folder), None, first)
    assert plan.needed == {"a", "b", "key"}
    found = run(plan, chunk(["k1", "k2"]))
    assert found.rows.column("world_prediction").to_pylist() == [1000.25, 1001.25]
    assert found.rows.column("local_prediction").to_pylist() == [1.25, 3.25]


def test_key_of_another_model(folder: Path, tmp_path: Path) -> None:
    """The model of a row is chosen by the class that an earlier model gives it."""
    inputs = [{"name": "x", "columns": ["a", "b"]}]
    signs = ModelDir.save(Linear(2), tmp_path / "signs", task="classification", labels=["k2", "k5"], inputs=inputs)
    local = settings_of(folder)
    assert local.by_key is not None
    local = replace(local, by_key=replace(local.by_key, column="sign_predicted_class"), inputs_from=("sign",))
    rows = chunk_of([1.0, -1.0, 2.0], [0.25] * 3)
    found = run(plan_graph([ModelSettings("sign", signs), local], rows), rows)
    assert found.rows.column("local_prediction").to_pylist() == [6.25, 1.25, 7.25]


def test_refused(folder: Path) -> None:
    with pytest.raises(
        UsageError, match=r'by_key of model "local": .*bytes of parameters, more than memory \(1,000 bytes\)'
    ):
        plan_of(settings_of(folder, 1_000))
    sample = chunk(["k1"]).select(["a", "b", *PROVENANCE])
    with pytest.raises(UsageError, match='by_key of model "local": there is no column "key"'):
        plan_of(settings_of(folder), sample)


def test_threads(folder: Path) -> None:
    """Four threads share room for two models: all answers are right, and the memory is kept."""
    models = keyed(plan_of(settings_of(folder, 2 * SIZE)))
    random = np.random.default_rng(1)
    batches = [random.integers(0, 12, 100) for _ in range(8)]

    def answer(numbers: np.ndarray) -> None:
        answered = models.answer(chunk([KEYS[number] for number in numbers]))
        expected = np.arange(100.0) + 0.25 + numbers
        found = answered.rows.batch.column("prediction").to_numpy()[np.argsort(answered.rows.ids)]
        assert np.abs(found - expected).max() <= 1e-3

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(answer, batches))
    assert models.peak_bytes == 2 * SIZE
