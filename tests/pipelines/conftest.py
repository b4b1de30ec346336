"""What the tests of the command share: a table with poisoned rows, and the model that scores it."""

import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from poisoned_table import Table, make_table, save_model


@pytest.fixture(scope="session", autouse=True)
def _sigint_reaches_commands() -> Iterator[None]:
    """A shell starts what runs in its background with SIGINT ignored, which the commands would inherit and respect."""
    before = signal.getsignal(signal.SIGINT)
    if before == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "poisoned"
    save_model(folder)
    return folder


@pytest.fixture(scope="session")
def poisoned(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Table:
    return make_table(tmp_path_factory.mktemp("poisoned"), model)


@pytest.fixture
def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
