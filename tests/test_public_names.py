"""What users import stays importable, wherever it lives."""

from __future__ import annotations

import importlib
import inspect

import pytest

NAMES = {
    "handlers": (
        "Batching",
        "ColumnarModelHandler",
        "FailedPrediction",
        "ModelDir",
        "Padding",
        "Placement",
        "Predictor",
        "Ragged",
        "ResourceHints",
        "StateDict",
        "TorchModelHandler",
        "skip_failures",
    ),
    "handlers.errors": (
        "BrokenFileError",
        "BrokenModelError",
        "DeviceLostError",
        "ServiceError",
        "TorchbeamError",
        "UsageError",
    ),
    "transforms": ("DeadLetter", "RunTorchInference", "Score", "SplitFailures"),
}


@pytest.mark.parametrize(("package", "name"), [(package, name) for package, names in NAMES.items() for name in names])
def test_is_importable(package: str, name: str) -> None:
    found = getattr(importlib.import_module(package), name)
    assert inspect.isclass(found) or callable(found)
    assert found.__name__ == name


@pytest.mark.parametrize("package", ["handlers", "transforms"])
def test_all_that_a_package_names_is_there_and_nothing_else(package: str) -> None:
    module = importlib.import_module(package)
    assert set(NAMES[package]) <= set(module.__all__)
    for name in module.__all__:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        module.no_such_name  # noqa: B018
