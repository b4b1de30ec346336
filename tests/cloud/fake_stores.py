"""Object stores on this machine: moto for s3://, fake-gcs-server for gs://, each behind a proxy that can misbehave."""

from __future__ import annotations

import http.client
import json
import logging
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal, Protocol
from urllib.parse import quote, unquote

BUCKET = "bucket"

Fault = Literal["forbid", "lack", "close", "cut"]


@dataclass(frozen=True)
class Seen:
    """A request that the proxy was sent; `path` is unquoted and `answered` counts the bytes of the body of the answer."""

    method: str
    path: str
    answered: int


@dataclass
class Proxy:
    """Hands requests on to a store, unless `fault` says what to do instead.

    forbid: answer 403; lack: answer 501, as an S3 store that has no such thing; close: break the connection without an
    answer; cut: break it in the middle of the answer.
    """

    scheme: str
    target: tuple[str, int]
    fault: Callable[[str, str], Fault | None] = lambda method, path: None
    url: str = ""
    _seen: list[Seen] = field(default_factory=list)
    _busy: int = 0
    _changed: threading.Condition = field(default_factory=threading.Condition)

    @property
    def seen(self) -> list[Seen]:
        """The requests so far. A client may have its answer before the proxy is done with it, which is waited for."""
        with self._changed:
            self._changed.wait_for(lambda: self._busy == 0, timeout=10)
        return self._seen

    @contextmanager
    def request(self) -> Iterator[None]:
        """A request is handled."""
        with self._changed:
            self._busy += 1
        try:
            yield
        finally:
            with self._changed:
                self._busy -= 1
                self._changed.notify_all()

    def once(self, fault: Fault, method: str, part: str) -> list[str]:
        """One request of `method` with `part` in its path goes wrong; its path is put into the list that is returned."""
        lock, hit = threading.Lock(), []

        def decide(method_: str, path: str) -> Fault | None:
            with lock:
                if hit or method_ != method or part not in path:
                    return None
                hit.append(path)
                return fault

        self.fault = decide
        return hit

    def forbid(self, *methods: str, part: str = "") -> None:
        """Every request of `methods` with `part` in its path is answered by 403."""
        self.fault = lambda method, path: "forbid" if method in methods and part in path else None

    def reset(self) -> None:
        """Behaves from now on."""
        self.fault = lambda method, path: None
        self._seen.clear()

    @contextmanager
    def running(self) -> Iterator[Proxy]:
        """Serves on a free port."""
        proxy = self

        class Handler(_Handler):
            pass

        Handler.proxy = proxy
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: Proxy

    def log_message(self, *_: object) -> None:
        pass

    def _serve(self) -> None:
        with self.proxy.request():
            self._handle()

    def _handle(self) -> None:
        body = self._body()
        if self.path == "/token":  # of the service account
            self._answer(
                200, [], json.dumps({"access_token": "t", "expires_in": 3600, "token_type": "Bearer"}).encode()
            )
            return
        path = unquote(self.path)
        fault = self.proxy.fault(self.command, path)
        if fault == "close":
            self._break()
            return
        if fault == "forbid":
            self._answer(403, [], _FORBIDDEN[self.proxy.scheme])
            return
        if fault == "lack":
            self._answer(501, [], b"<Error><Code>NotImplemented</Code><Message>Not implemented</Message></Error>")
            return
        if self.path.startswith("/batch/"):
            body = _with_content_ids(body)
        status, headers, answer = self._forward(body)
        sent = self._answer(status, headers, answer, cut=fault == "cut")
        self.proxy._seen.append(Seen(self.command, path, sent))

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve  # noqa: N815 - named by the standard library

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            pieces = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return b"".join(pieces)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(*self.proxy.target, timeout=60)
        dropped = {"transfer-encoding", "content-length", "connection", "expect"}
        headers = {name: value for name, value in self.headers.items() if name.lower() not in dropped}
        try:
            connection.request(self.command, self.path, body, headers | {"Content-Length": str(len(body))})
            response = connection.getresponse()
            answer = response.read()
            kept = [(name, value) for name, value in response.getheaders() if name.lower() not in dropped]
            if self.command == "HEAD" and (length := response.getheader("Content-Length")):
                kept.append(("Content-Length", length))
            return response.status, kept, answer
        finally:
            connection.close()

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes, *, cut: bool = False) -> int:
        """Answers and gives how many bytes of the body were taken, as far as the operating system's buffers tell."""
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        if not any(name == "Content-Length" for name, _ in headers):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        sent = 0
        try:
            while self.command != "HEAD" and sent < (len(body) // 2 if cut else len(body)):
                sent += self.wfile.write(body[sent : sent + 2**16])
        except OSError:  # the client has read what it wants
            self.close_connection = True
        if cut:
            self._break()
        return sent

    def _break(self) -> None:
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True


_FORBIDDEN = {
    "s3": b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>",
    "gs": b'{"error": {"code": 403, "message": "t@example.com does not have access to it"}}',
}


def _with_content_ids(body: bytes) -> bytes:
    """The parts of a batch request, numbered: fake-gcs-server needs it, and Google's client leaves it out."""
    numbers = iter(range(1, 1_000_000))
    return re.sub(
        rb"(?mi)^content-type: application/http\r?$", lambda hit: hit[0] + b"\nContent-ID: <%d>" % next(numbers), body
    )


class Store(Protocol):
    """One bucket, read without Beam and without the proxy."""

    scheme: str
    proxy: Proxy
    options: tuple[str, ...]
    environment: dict[str, str]

    def url(self, name: str, bucket: str = BUCKET) -> str: ...
    def put(self, name: str, content: bytes) -> None: ...
    def get(self, name: str) -> bytes: ...
    def names(self, prefix: str = "") -> list[str]: ...
    def clear(self) -> None: ...


class S3:
    """moto."""

    scheme = "s3"
    environment = {  # noqa: RUF012 - read only
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_EC2_METADATA_DISABLED": "true",
    }

    def __init__(self, proxy: Proxy) -> None:
        import boto3

        self.proxy = proxy
        self.options = (f"--s3_endpoint_url={proxy.url}", "--s3_region_name=us-east-1")
        host, port = proxy.target
        keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
        self.client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", **keys)
        self.client.create_bucket(Bucket=BUCKET)

    def url(self, name: str, bucket: str = BUCKET) -> str:
        return f"{self.scheme}://{bucket}/{name}"

    def put(self, name: str, content: bytes) -> None:
        self.client.put_object(Bucket=BUCKET, Key=name, Body=content)

    def get(self, name: str) -> bytes:
        found: bytes = self.client.get_object(Bucket=BUCKET, Key=name)["Body"].read()
        return found

    def names(self, prefix: str = "") -> list[str]:
        listed = self.client.list_objects_v2(Bucket=BUCKET, Prefix=prefix)
        return [each["Key"] for each in listed.get("Contents", [])]

    def clear(self) -> None:
        for name in self.names():
            self.client.delete_object(Bucket=BUCKET, Key=name)


class Gcs:
    """fake-gcs-server."""

    scheme = "gs"
    options = ()

    def __init__(self, proxy: Proxy, account: Path) -> None:
        self.proxy = proxy
        self.environment = {"STORAGE_EMULATOR_HOST": proxy.url, "GOOGLE_APPLICATION_CREDENTIALS": str(account)}
        self._call("POST", "/storage/v1/b", json.dumps({"name": BUCKET}).encode())

    def url(self, name: str, bucket: str = BUCKET) -> str:
        return f"{self.scheme}://{bucket}/{name}"

    def put(self, name: str, content: bytes) -> None:
        self._call("POST", f"/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name={quote(name, '')}", content)

    def get(self, name: str) -> bytes:
        return self._call("GET", f"/storage/v1/b/{BUCKET}/o/{quote(name, '')}?alt=media")

    def names(self, prefix: str = "") -> list[str]:
        listed = json.loads(self._call("GET", f"/storage/v1/b/{BUCKET}/o?prefix={quote(prefix, '')}"))
        return [each["name"] for each in listed.get("items", [])]

    def clear(self) -> None:
        for name in self.names():
            self._call("DELETE", f"/storage/v1/b/{BUCKET}/o/{quote(name, '')}")

    def _call(self, method: str, path: str, body: bytes = b"") -> bytes:
        connection = http.client.HTTPConnection(*self.proxy.target, timeout=60)
        try:
            connection.request(method, path, body, {"Content-Type": "application/octet-stream"})
            response = connection.getresponse()
            answer = response.read()
            assert response.status < 300, (method, path, response.status, answer)
            return answer
        finally:
            connection.close()


@contextmanager
def moto() -> Iterator[S3]:
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        with Proxy("s3", server.get_host_and_port()).running() as proxy:
            yield S3(proxy)
    finally:
        server.stop()


@contextmanager
def fake_gcs(binary: str, account: Path) -> Iterator[Gcs]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with Proxy("gs", ("127.0.0.1", port)).running() as proxy:
        arguments = [
            "-scheme=http",
            "-host=127.0.0.1",
            f"-port={port}",
            "-backend=memory",
            f"-external-url={proxy.url}",
        ]
        server = subprocess.Popen([binary, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            _wait_for(port, server)
            yield Gcs(proxy, account)
        finally:
            server.kill()
            server.wait()


def _wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            assert server.poll() is None, "fake-gcs-server ended"
            assert time.monotonic() < end, "fake-gcs-server does not answer"
            time.sleep(0.05)
