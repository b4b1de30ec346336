"""Configs: a model.yaml without weights, and the modules next to it."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from handlers.errors import UsageError
from handlers.model_code import import_function
from handlers.train.config import ModelConfig

CONFIG = """
task: classification
features: {double: x * 2}
inputs: [{name: x, columns: [x, double]}]
preprocess: [cleaning_of_config:clean]
"""


def test_a_config_with_code(tmp_path: Path) -> None:
    (tmp_path / "credit.yaml").write_text(CONFIG)
    (tmp_path / "code").mkdir()
    (tmp_path / "code/cleaning_of_config.py").write_text("def clean(row: dict):\n    return row\n")
    config = pickle.loads(pickle.dumps(ModelConfig.open(tmp_path / "credit.yaml")))
    assert config.spec.name == "credit"
    assert config.spec.features == {"double": "x * 2"}
    assert config.spec.numeric_columns == ("x", "double")
    clean = import_function("cleaning_of_config:clean", "preprocess", config.code())
    assert clean({"x": 1}) == {"x": 1}


def test_a_folder_and_a_complete_model(tmp_path: Path) -> None:
    folder = tmp_path / "churn"
    folder.mkdir()
    (folder / "model.yaml").write_text(CONFIG + "format: safetensors\nweights: weights.safetensors\n")
    config = ModelConfig.open(folder)
    assert (config.spec.name, config.code_folder) == ("churn", None)
    assert ModelConfig().spec.features == {}


def test_wrong_ones(tmp_path: Path) -> None:
    file = tmp_path / "model.yaml"

    def refused(content: str) -> str:
        file.write_text(content)
        with pytest.raises(UsageError) as raised:
            ModelConfig.open(file)
        assert "\n" not in str(raised.value)
        return str(raised.value)

    assert 'unknown field "feature"' in refused("feature: {}")
    assert "two inputs have the same name" in refused("inputs: [{name: x, columns: [a]}, {name: x, columns: [b]}]")
    assert "is not YAML" in refused("features: {")
    assert "must be a mapping" in refused("- a")
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        ModelConfig.open(tmp_path / "none.yaml")
