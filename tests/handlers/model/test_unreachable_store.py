"""A store that cannot be reached is said so before credentials are looked for and requests are repeated."""

from __future__ import annotations

import socket

import pytest

from handlers.errors import UsageError
from handlers.model import stores

BUCKET = "gs://bucket/in"


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> str:
    """Where nobody listens, as the address of Cloud Storage."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        found = f"127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://{found}")
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("apache_beam.io.gcp.gcsio.create_storage_client", _never)
    return found


def _never(*_: object) -> None:
    raise ConnectionError("asked for credentials")


def test_nobody_listens(address: str) -> None:
    with pytest.raises(UsageError) as caught:
        stores.reach(BUCKET, f"--input {BUCKET}")
    line = str(caught.value)
    assert line.startswith(
        f"--input {BUCKET} cannot be reached: no connection to {address} in 3 attempts of at most 5 s ("
    )
    assert "Connection refused" in line
    assert "\n" not in line


def test_a_proxy_makes_the_connection(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(UsageError, match="asked for credentials"):
        stores.reach(BUCKET, f"--input {BUCKET}")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(UsageError, match=f"no connection to {address}"):
        stores.reach(BUCKET, f"--input {BUCKET}")
