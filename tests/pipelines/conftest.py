"""What the tests of the command share: a table with poisoned rows, and the model that scores it."""

from pathlib import Path

import pytest
from poisoned_table import Table, make_table, save_model


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "poisoned"
    save_model(folder)
    return folder


@pytest.fixture(scope="session")
def poisoned(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Table:
    return make_table(tmp_path_factory.mktemp("poisoned"), model)
