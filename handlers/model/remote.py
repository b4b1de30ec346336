"""Local copies of models that are elsewhere: `gs://…` and `s3://…` through Beam's filesystems, `models:/…` through MLflow."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path

from handlers.errors import UsageError
from handlers.model import mlflow_registry
from handlers.model.files import TAG, WORK_FOLDERS, is_work
from handlers.model.stores import explain, prepare, shared_s3
from handlers.paths import is_mlflow
from handlers.private import private_folder


def download(url: str, digest_of: Callable[[Path], str], server: mlflow_registry.Server = ("", "")) -> Path:
    """Copies the model at `url` into this user's cache, under its digest; gives the local path.

    `server` is that of MLflow, for `models:/…`.
    """
    cache = _cache()
    folder = Path(tempfile.mkdtemp(dir=cache))
    try:
        copy = mlflow_registry.download(url, folder, server) if is_mlflow(url) else _copy(url, folder)
        target = cache / digest_of(copy) / _name(url)
        if not target.exists():
            target.parent.mkdir(exist_ok=True)
            try:
                copy.rename(target)
            except OSError:
                if not target.exists():  # else another process was faster, with the same files
                    raise
        return target
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def cached(url: str, digest: str, digest_of: Callable[[Path], str], server: mlflow_registry.Server = ("", "")) -> Path:
    """The local copy of the model at `url` with this digest, copied now if it is missing or damaged."""
    target = _cache() / digest / _name(url)
    with _alone(digest):  # a host with many workers copies the model once
        if target.exists():
            if digest_of(target) == digest:
                return target
            shutil.rmtree(target.parent, ignore_errors=True)
        found = download(url, digest_of, server)
    if found.parent.name != digest:
        raise UsageError(
            f"model {url} changed after the run began: version {found.parent.name[:12]}, not {digest[:12]}"
        )
    return found


def forget(digest: str) -> None:
    """Removes the local copy of the model with this digest; it is copied again where it is needed."""
    with _alone(digest):
        shutil.rmtree(_cache() / digest, ignore_errors=True)


def _name(url: str) -> str:
    return url.rstrip("/").rsplit("/", 1)[-1]


def _cache() -> Path:
    return private_folder("torchbeam-models")


@contextmanager
def _alone(digest: str) -> Iterator[None]:
    """Waits until no other process of this host is working on the copy with this digest."""
    try:
        import fcntl  # not available on Windows
    except ImportError:
        yield
        return
    with (_cache() / f"{digest}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@shared_s3()
def _copy(url: str, folder: Path) -> Path:
    from apache_beam.io.filesystems import FileSystems

    prepare()
    root = url.rstrip("/")
    copy = folder / _name(url)
    try:
        inside = FileSystems.match([escape(root) + "/**"])[0].metadata_list
        names = [item.path[len(root) + 1 :] for item in inside if not item.path.endswith("/")]
        work = tuple(f"{each}/" for each in WORK_FOLDERS if is_work(each, f"{each}/{TAG}" in names))
        found = [(f"{root}/{name}", copy / name) for name in names if not name.startswith(work)]
        if not found and "/" in root.partition("://")[2] and FileSystems.exists(root):  # Beam takes no bare bucket
            found = [(root, copy)]
        for path, target in found:
            if ".." in target.relative_to(folder).parts:  # object stores allow any name
                raise UsageError(f"it holds {path}, which is outside of it")
            target.parent.mkdir(parents=True, exist_ok=True)
            with FileSystems.open(path, compression_type="uncompressed") as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
    except Exception as error:
        raise UsageError(f"model {url} cannot be read: {explain(error)}") from None
    if not found:
        raise UsageError(f"--model {url} does not exist; it must be a model directory or a .pt2 or TorchScript file")
    return copy
