"""A bucket of each kind, with its credentials, for the tests of cloud paths."""

from __future__ import annotations

import gc
import importlib.util
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import fake_stores
import numpy as np
import pyarrow as pa
import pytest
import torch
from apache_beam.internal.gcp import auth
from apache_beam.io.filesystems import FileSystems
from cloud_runs import DEAD, ROWS, as_parquet, put_model

from handlers import ModelDir


def _fake_gcs_server() -> str | None:
    """The binary, on PATH or where `go install` puts it."""
    if found := shutil.which("fake-gcs-server"):
        return found
    if go := shutil.which("go"):
        folder = subprocess.run([go, "env", "GOPATH"], capture_output=True, text=True, check=False).stdout.strip()
        return shutil.which("fake-gcs-server", path=f"{folder}/bin")
    return None


def _service_account(file: Path, token_uri: str) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    account = {"type": "service_account", "client_email": "t@example.com", "project_id": "my-project-1"}
    file.write_text(json.dumps(account | {"private_key": key.decode(), "private_key_id": "1", "token_uri": token_uri}))


@pytest.fixture(scope="session")
def s3() -> Iterator[fake_stores.S3]:
    for missing in ("moto", "boto3", "flask"):
        if importlib.util.find_spec(missing) is None:
            pytest.skip(f"{missing} is not installed (pip install 'torchbeam[aws]' 'moto[server]')")
    with fake_stores.moto() as store:
        yield store


@pytest.fixture(scope="session")
def gs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[fake_stores.Gcs]:
    binary = _fake_gcs_server()
    if binary is None:
        pytest.skip("no fake-gcs-server (go install github.com/fsouza/fake-gcs-server@v1.56.1)")
    account = tmp_path_factory.mktemp("account") / "account.json"
    with fake_stores.fake_gcs(binary, account) as store:
        _service_account(account, f"{store.proxy.url}/token")
        yield store


@pytest.fixture(params=["s3", "gs"])
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> fake_stores.Store:
    found: fake_stores.Store = request.getfixturevalue(request.param)
    gc.collect()  # a file whose upload failed tries again where it is thrown away: before the fault is mended
    found.clear()
    found.proxy.reset()
    for name, value in found.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(auth._Credentials, "_credentials_init", False)  # Beam keeps them for the whole process
    monkeypatch.setattr(FileSystems, "_pipeline_options", None)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # where models are copied to
    return found


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("models") / "linear"
    ModelDir.save(
        torch.nn.Linear(2, 1),
        folder,
        task="regression",
        arguments={"in_features": 2, "out_features": 1},
        inputs=[{"name": "x", "columns": ["a", "b"]}],
    )
    return folder


@pytest.fixture(scope="session")
def table() -> pa.Table:
    numbers = np.random.default_rng(1).normal(size=(2, ROWS))
    a = [None if row in DEAD else float(value) for row, value in enumerate(numbers[0])]
    return pa.table({"id": range(ROWS), "a": a, "b": numbers[1]})


@pytest.fixture
def ready(store: fake_stores.Store, model: Path, table: pa.Table) -> fake_stores.Store:
    """A bucket with a model and a table of two files."""
    put_model(store, model)
    store.put("in/x.parquet", as_parquet(table.slice(0, 600)))
    store.put("in/y.parquet", as_parquet(table.slice(600)))
    return store
