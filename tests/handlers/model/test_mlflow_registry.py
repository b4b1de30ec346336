"""Models of MLflow's registry, against a real server on this machine."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import small_models
import torch
from deadlines import WAIT_SECONDS
from small_models import Save

from handlers.errors import UsageError
from handlers.model import mlflow_registry
from handlers.model.directory import ModelDir
from handlers.refresh.watch import ModelWatch
from pipelines import models as command

pytest.importorskip("mlflow.server", reason="no MLflow server (pip install mlflow)")
pytestmark = pytest.mark.slow(40)

X = torch.tensor([[0.0, 1.0], [2.0, -1.0]])


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [f"--backend-store-uri=sqlite:///{folder}/mlflow.db", f"--artifacts-destination={folder}/artifacts"]
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={port}", "--workers=1", *arguments],
        cwd=folder,
        env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"},
        stdout=(folder / "log").open("wb"),
        stderr=subprocess.STDOUT,
        start_new_session=True,  # the server has processes of its own, which end with it
    )
    try:
        found = f"http://127.0.0.1:{port}"
        _wait(f"{found}/health", server, folder / "log")
        yield found
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _wait(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.1)


@pytest.fixture(autouse=True)
def _environment(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "")  # what a worker sets is undone
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    (tmp_path / "cache").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "cache"))


def test_versions_and_aliases(
    save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    first, second = save(), save(small_models.Linear(3))
    for number, model in enumerate((first, second), 1):
        assert command.main(["push", f"--model={model.path}", "--name=credit", "--registry=models:/"]) == 0
        assert capsys.readouterr().out == f"models:/credit/{number}\n"
    client = mlflow.MlflowClient()
    client.set_registered_model_alias("credit", "champion", 1)

    opened = ModelDir("models:/credit@champion")
    assert (opened.path, opened.registered, opened.version) == ("models:/credit/1", "models:/credit/1", first.version)
    assert ModelDir("models:/credit/latest").version == second.version
    assert ModelDir("credit@champion", registry="models:/").path == "models:/credit/1"
    assert ModelDir("credit@2", registry="models:").version == second.version
    assert command.main(["promote", "--model=credit@1", "--alias=x", "--registry=models:/"]) == 2
    assert "only `models push` writes; use MLflow for the rest" in capsys.readouterr().err
    sent = pickle.dumps(opened)
    watches = pickle.dumps([ModelWatch("models:/credit@champion"), ModelWatch("credit@champion", registry="models:/")])
    client.set_registered_model_alias("credit", "champion", 2)
    assert ModelDir("models:/credit@champion").version == second.version
    for text in ("models:/credit/9", "models:/credit@none", "models:/none/1", "models:/none/latest"):
        with pytest.raises(UsageError) as error:
            ModelDir(text)
        assert text in str(error.value)
        assert "\n" not in str(error.value)
    # A worker has neither the variable nor the copy, and keeps the version.
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    (tmp_path / "worker").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "worker"))
    with pytest.raises(UsageError, match="set MLFLOW_TRACKING_URI"):
        ModelDir("models:/credit/1")
    worker = pickle.loads(sent)
    assert torch.equal(worker.load().module(X), small_models.Linear()(X))
    for watch in pickle.loads(watches):
        monkeypatch.delenv("MLFLOW_TRACKING_URI")
        monkeypatch.setenv("MLFLOW_REGISTRY_URI", "")
        target = watch.find()
        assert target == watch.find() == ("models:/credit/2", ())
        assert watch.open(target).version == second.version


def test_artifacts_of_other_programs(save: Save, tmp_path: Path) -> None:
    import mlflow

    client = mlflow.MlflowClient()
    client.create_registered_model("others")

    def register(**files: Path | str) -> str:
        run = client.create_run("0").info
        for place, what in files.items():
            if isinstance(what, Path):
                client.log_artifacts(run.run_id, str(what), f"model/{place}")
            else:
                client.log_text(run.run_id, "x", f"model/{what}")
        client.set_terminated(run.run_id)
        version = client.create_model_version("others", f"{run.artifact_uri}/model", run.run_id).version
        return f"models:/others/{version}"

    model = save()
    folder = Path(model.path)
    assert ModelDir(register(data=folder, mlmodel="MLmodel")).version == model.version
    assert ModelDir(register(credit=folder)).version == model.version
    with pytest.raises(UsageError, match="holds 2 model directories"):
        ModelDir(register(one=folder, two=folder))
    with pytest.raises(UsageError, match=r"holds a pickled module \(data/model.pth\), which would run code"):
        ModelDir(register(mlmodel="MLmodel", pickle="data/model.pth"))
    with pytest.raises(UsageError, match=r"holds no model.yaml; register a model directory"):
        ModelDir(register(mlmodel="MLmodel"))


def test_a_server_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UsageError, match="--model models:/credit/1 cannot be read from MLflow: ") as error:
        mlflow_registry.pin("models:/credit/1")
    assert "\n" not in str(error.value)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(UsageError, match=r"pip install 'torchbeam\[mlflow\]'"):
        ModelDir("models:/credit/1")
