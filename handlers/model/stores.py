"""What is specific to object stores (`gs://`, `s3://`), which are otherwise used through Beam's filesystems only."""

from __future__ import annotations

import importlib.util
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from handlers.errors import ServiceError, UsageError, one_line

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

# Checked once before a run, so that a wrong bucket, key or endpoint is reported within seconds: Beam itself repeats requests
# that get no answer for two (gs) to ten minutes (s3), which is right in the middle of a run and wrong at its start.
_CONNECT_SECONDS, _ANSWER_SECONDS, _ATTEMPTS = 5, 20, 3
_GOOGLE = "https://storage.googleapis.com"
# The options of Beam that begin with `--s3_`.
_S3_KEYS = ("access_key_id", "secret_access_key", "session_token")
_S3_SETTINGS = ("endpoint_url", "region_name", "api_version", "verify", "disable_ssl")


def connect(paths: Mapping[str, str], options: PipelineOptions) -> None:
    """Makes Beam's options those of its filesystems in this process, and checks that each of `paths` can be listed.

    Args:
        paths: from the name of a flag to its path; local ones are left alone.
        options: of the pipeline; `--s3_endpoint_url` and the like are among them.

    Raises:
        UsageError: for a scheme that cannot be read here, a bucket that is not there, and one that may not be listed.
    """
    from apache_beam.io.filesystems import FileSystems

    FileSystems.set_options(options)
    for flag, path in paths.items():
        _reach(path, f"--{flag} {path}", options)


def reach(path: str, what: str) -> None:
    """The same for one path where no pipeline exists, with the options that Beam's filesystems have; `what` names it."""
    from apache_beam.io.filesystems import FileSystems
    from apache_beam.options.pipeline_options import PipelineOptions

    prepare()
    _reach(path, what, FileSystems._pipeline_options or PipelineOptions([]))


def _reach(path: str, what: str, options: PipelineOptions) -> None:
    from apache_beam.io.filesystems import FileSystems

    scheme = FileSystems.get_scheme(path)
    if scheme is None:
        return
    if scheme not in _LIST:  # Beam has others, and users may have their own
        try:
            FileSystems.get_filesystem(path)
        except ValueError:
            raise UsageError(
                f"{what}: paths of {scheme}:// are not read here; use a local path, gs:// or s3://"
            ) from None
        return
    if not path.partition("://")[2].strip("/"):
        raise UsageError(f"{what} names no bucket")
    if scheme == "s3" and importlib.util.find_spec("boto3") is None:
        raise UsageError(f"{what}: s3:// needs boto3; pip install 'torchbeam[aws]'")
    try:
        FileSystems.get_filesystem(path)
        bucket, _, prefix = path.partition("://")[2].partition("/")
        _LIST[scheme](bucket, prefix.split("*")[0].split("?")[0].split("[")[0], options)
    except Exception as error:
        raise UsageError(
            f"{what} cannot be reached: {explain(error)}; check the bucket and your access to it"
        ) from error


def prepare() -> None:
    """Initialises Beam's filesystems where no pipeline exists yet, as for a model opened on its own."""
    from apache_beam.io.filesystems import FileSystems
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.options.value_provider import RuntimeValueProvider

    if FileSystems._pipeline_options is None and RuntimeValueProvider.runtime_options is None:
        FileSystems.set_options(PipelineOptions([]))  # Beam's S3 does not work without any


class _SharedS3:
    """Replaces Beam's S3 client while S3 is in use: from the first `begin` to the last `end`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._undo: Callable[[], None] = lambda: None

    def begin(self) -> None:
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._undo = _share_s3_clients()

    def end(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._undo()


_shared_s3 = _SharedS3()


@contextmanager
def shared_s3() -> Iterator[None]:
    """For the time of the context all S3 operations of this process share one client for each set of options.

    Beam makes a client for each operation, which takes 0.2 s of CPU time, and reconnects; the text of its errors
    is a tuple, here replaced by the message. Contexts may overlap, in any order and in several threads.
    """
    _shared_s3.begin()
    try:
        yield
    finally:
        _shared_s3.end()


class SharesS3:
    """Mixed into a DoFn that reads or writes files: `shared_s3` from its setup to its teardown, where it runs."""

    _shares = False

    def setup(self) -> None:
        """Begins it."""
        _shared_s3.begin()
        self._shares = True

    def teardown(self) -> None:
        """Ends it; nothing where it has not begun, as where a setup has failed before."""
        if self._shares:
            self._shares = False
            _shared_s3.end()


def _share_s3_clients() -> Callable[[], None]:
    """Gives Beam's module another client, and its errors a text; what it returns undoes this."""
    try:
        from apache_beam.io.aws.clients.s3 import boto3_client, messages
    except ImportError:
        return lambda: None
    module: Any = boto3_client
    error_class: Any = messages.S3ClientError
    own_client, own_text = module.Client, error_class.__str__
    lock = threading.Lock()
    clients: dict[str, Any] = {}

    class SharedClient(own_client):  # type: ignore[misc,valid-type]
        def __init__(self, options: Any) -> None:
            key = repr(_s3_settings(options))
            with lock:
                if key not in clients:
                    super().__init__(options)
                    clients[key] = self.client
            self.client: Any = clients[key]  # boto's own clients may be used by many threads; a stream is one reader's
            self._download_request = self._download_stream = None
            self._download_pos = 0

    def undo() -> None:
        module.Client, error_class.__str__ = own_client, own_text

    module.Client, error_class.__str__ = SharedClient, lambda error: str(error.message)
    return undo


def _s3_settings(options: Any) -> dict[str, Any]:
    """What Beam's options say of S3: they are of the pipeline on the driver, and a mapping on workers."""
    if not isinstance(options, Mapping):
        from apache_beam.options.pipeline_options import S3Options

        view = options.view_as(S3Options)
        return {name: getattr(view, f"s3_{name}") for name in (*_S3_KEYS, *_S3_SETTINGS)}
    return {name: options.get(f"s3_{name}") for name in (*_S3_KEYS, *_S3_SETTINGS)}


def _list_s3(bucket: str, prefix: str, options: PipelineOptions) -> None:
    import boto3
    from botocore.config import Config

    given = _s3_settings(options)
    client = boto3.session.Session().client(
        "s3",
        use_ssl=not given.pop("disable_ssl"),
        **{f"aws_{name}" if name in _S3_KEYS else name: value for name, value in given.items()},
        config=Config(
            connect_timeout=_CONNECT_SECONDS,
            read_timeout=_ANSWER_SECONDS,
            retries={"total_max_attempts": _ATTEMPTS},
        ),
    )
    client.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1)


def _check_connection(url: str) -> None:
    """Connects once to the host of `url`, unless a proxy does that; raises `ServiceError` if there is no way to it.

    Without a network Google's clients look for credentials and repeat requests for most of a minute before they say so.
    """
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    if parts.scheme in getproxies() and not proxy_bypass(host):
        return
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            socket.create_connection((host, port), _CONNECT_SECONDS).close()
            return
        except OSError as error:
            if attempt == _ATTEMPTS:
                raise ServiceError(
                    f"no connection to {host}:{port} in {_ATTEMPTS} attempts of at most {_CONNECT_SECONDS} s "
                    f"({one_line(error)})"
                ) from None
        time.sleep(0.2 * attempt)


def _list_gs(bucket: str, prefix: str, options: PipelineOptions) -> None:
    from apache_beam.io.gcp.gcsio import create_storage_client
    from google.cloud.storage.retry import DEFAULT_RETRY

    _check_connection(os.environ.get("STORAGE_EMULATOR_HOST") or _GOOGLE)
    found = create_storage_client(options).list_blobs(
        bucket,
        prefix=prefix,
        max_results=1,
        timeout=(_CONNECT_SECONDS, _ANSWER_SECONDS),
        retry=DEFAULT_RETRY.with_timeout(_ANSWER_SECONDS),
    )
    next(iter(found), None)


_LIST = {"s3": _list_s3, "gs": _list_gs}


def check_writable(option: str, folder: str) -> None:
    """Writes a small file into a remote `folder` and removes it, which is what a run does there at its end.

    Raises:
        UsageError: it may not be written, or not be removed.
    """
    from apache_beam.io.filesystems import FileSystems

    path = f"{folder.rstrip('/')}/_tmp-{uuid.uuid4().hex[:12]}"
    done = "written"
    try:
        with FileSystems.create(path, compression_type="uncompressed") as file:
            file.write(b"Whether this can be written and removed.\n")
        done = "cleaned up"
        FileSystems.delete([path])
    except Exception as error:
        raise UsageError(f"{option} {folder} cannot be {done}: {explain(error)}; check your access to it") from error


def create_empty(path: str) -> None:
    """Writes a remote file of no bytes."""
    from apache_beam.io.filesystems import FileSystems

    if FileSystems.get_scheme(path) == "s3":
        # Beam writes by parts, and S3 refuses a file of no part.
        from apache_beam.io.aws import s3io

        bucket, key = s3io.parse_s3_path(path)
        options = FileSystems.get_filesystem(path)._options  # type: ignore[attr-defined]
        s3io.S3IO(options=options).client.client.put_object(Bucket=bucket, Key=key, Body=b"")
        return
    FileSystems.create(path, compression_type="uncompressed").close()


def explain(error: BaseException) -> str:
    """The store's own message, on one line, extracted from Beam's error."""
    cause: Any = error
    while details := getattr(cause, "exception_details", None):
        cause = next(iter(details.values()))
    return one_line(cause) if isinstance(cause, BaseException) else f"HTTP status {cause}"
