"""Models of MLflow's registry: `models:/credit@champion`, `models:/credit/3`, `models:/credit/latest`.

Needs the extra `torchbeam[mlflow]`. The server is that of MLFLOW_TRACKING_URI, or MLFLOW_REGISTRY_URI if it is another.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from handlers.errors import UsageError, one_line
from handlers.model.files import MODEL_FILE

Server = tuple[str, str]  # the URIs of tracking and registry

_FORMS = "write models:/NAME/VERSION, models:/NAME@ALIAS or models:/NAME/latest"
_URI = re.compile(r"models:/(?P<name>[^/@:]+)(?:/(?P<version>[1-9][0-9]*|latest)|@(?P<alias>[^/@]+))")
# Unless the user has set them: MLflow repeats a request for minutes where no server answers, and prints to stdout.
_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
_OF_MLFLOW = "registered_model_meta"  # which a download adds
_PICKLES = {".pth", ".pkl", ".pickle", ".joblib"}


def pin(uri: str) -> str:
    """`models:/NAME/VERSION` of the version that `uri` stands for now.

    Raises:
        UsageError: for another form, without MLflow or its server, and where there is no such model, version or alias.
    """
    match = _URI.fullmatch(uri.rstrip("/"))
    if match is None:
        raise UsageError(f"--model {uri} is not a model of MLflow's registry; {_FORMS}")
    name, version, alias = match["name"], match["version"], match["alias"]
    with _asking(uri):
        client = _client()
        if alias:
            version = client.get_model_version_by_alias(name, alias).version
        elif version == "latest":
            found = client.search_model_versions(f"name='{_quoted(name)}'")
            if not found:
                raise UsageError(f'--model {uri}: the registry has no version of "{name}"')
            version = max(int(each.version) for each in found)
        else:
            client.get_model_version(name, version)
    return f"models:/{name}/{version}"


def server() -> Server:
    """Where MLflow is; workers need it, too."""
    with _asking("models:/"):
        module = _mlflow()
        return str(module.get_tracking_uri()), str(module.get_registry_uri())


def use(server: Server) -> None:
    """Makes `server`, which another process gave, that of this process, if this one has none."""
    if any(server) and not _is_set():  # MLflow looks up a version with the settings of the process only
        os.environ["MLFLOW_TRACKING_URI"], os.environ["MLFLOW_REGISTRY_URI"] = server


def download(uri: str, folder: Path, server: Server) -> Path:
    """Copies the model directory in the artifacts of `models:/NAME/VERSION` into `folder`; gives its path there.

    Args:
        uri: of the version.
        folder: an empty folder.
        server: what `server` gave where the model was opened; used if this process has no other.

    Raises:
        UsageError: where it cannot be copied, or its artifacts hold no model directory.
    """
    with _asking(uri):
        use(server)
        target = folder / "artifacts"
        target.mkdir()
        local = _mlflow().artifacts.download_artifacts(artifact_uri=uri, dst_path=str(target))
    return _model_in(Path(local), uri)


def push(local: Path, name: str, digest: str) -> str:
    """Adds a model directory to MLflow's registry as a new version; gives `models:/NAME/VERSION`.

    The files become artifacts of a new run in the default experiment.

    Args:
        local: the model directory, verified.
        name: the registered model, made where it is missing.
        digest: of the directory; recorded as a tag of the version.
    """
    with _asking(f"models:/{name}"):
        from mlflow.exceptions import MlflowException

        client = _client()
        try:
            client.get_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            client.create_registered_model(name)
        run = client.create_run("0", run_name=f"torchbeam push {name}").info
        try:
            client.log_artifacts(run.run_id, str(local), "model")
            version = client.create_model_version(
                name,
                f"{run.artifact_uri}/model",
                run.run_id,
                tags={"torchbeam.digest": digest},
                await_creation_for=0,
            ).version
        except BaseException:
            client.set_terminated(run.run_id, "FAILED")
            raise
        client.set_terminated(run.run_id)
    return f"models:/{name}/{version}"


def _model_in(local: Path, uri: str) -> Path:
    (local / _OF_MLFLOW).unlink(missing_ok=True)
    for place in (local, local / "data"):
        if (place / MODEL_FILE).is_file():
            return place
    if len(found := sorted(local.glob(f"*/{MODEL_FILE}")) or sorted(local.glob(f"data/*/{MODEL_FILE}"))) == 1:
        return found[0].parent
    if len(found) > 1:
        raise UsageError(f"model {uri} holds {len(found)} model directories; register one a version")
    pickles = [path for path in sorted(local.rglob("*")) if path.suffix in _PICKLES]
    if pickles:
        raise UsageError(
            f"model {uri} holds a pickled module ({pickles[0].relative_to(local).as_posix()}), which would run code when it "
            "is read; load it where its code is, save it with ModelDir.save, and register that directory"
        )
    raise UsageError(
        f"model {uri} holds no {MODEL_FILE}; register a model directory, as `torchbeam models push --registry=models:/` does"
    )


@contextmanager
def _asking(uri: str) -> Iterator[None]:
    """Turns the errors of MLflow into a `UsageError` of one line."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        yield
    except (UsageError, KeyboardInterrupt):
        raise
    except Exception as error:
        raise UsageError(f"--model {uri} cannot be read from MLflow: {one_line(error, 300)}") from error


def _client() -> Any:
    return _mlflow().MlflowClient()


def _mlflow() -> Any:
    """The package, with a server to ask."""
    module = _package()
    if not _is_set():
        raise UsageError("models:/… needs the server of MLflow; set MLFLOW_TRACKING_URI, as http://localhost:5000")
    return module


def _is_set() -> bool:
    return bool(_package().is_tracking_uri_set() or os.environ.get("MLFLOW_REGISTRY_URI"))


def _package() -> Any:
    try:
        import mlflow
    except ImportError:
        raise UsageError("models:/… needs MLflow; pip install 'torchbeam[mlflow]'") from None
    return mlflow


def _quoted(name: str) -> str:
    return name.replace("'", "''")
