"""An HTTP server on this machine that answers as Dataflow does, and what a launch says to it.

It speaks the paths of the REST interface that Beam calls: create a job, get it, its messages, its metrics. What the
service does with a job it cannot show.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from apache_beam.portability.api import beam_runner_api_pb2

JOB_ID = "2026-01-01_00_00_00-1234567890"


@dataclass
class FakeDataflow:
    """What was posted, and what is answered.

    Attributes:
        states: the states of the job, one for each time that it is asked for; the last stays.
        refuse: status and message for the creation of a job; None takes it.
        silent: whether it tells nothing of the job any more (403).
    """

    url: str = ""
    posted: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    states: list[str] = field(default_factory=lambda: ["JOB_STATE_PENDING"])
    messages: list[dict[str, str]] = field(default_factory=list)
    counters: dict[str, int] = field(default_factory=dict)
    refuse: tuple[int, str] | None = None
    silent: bool = False

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        self.paths.append(f"{method} {path}")
        if method == "POST" and re.search(r"/jobs$", path):
            self.posted.append(body)
            if self.refuse:
                status, message = self.refuse
                return status, {"error": {"code": status, "message": message}}
            return 200, self._job()
        if self.silent:
            return 403, {"error": {"code": 403, "message": "the token has expired"}}
        if path.endswith("/messages"):
            return 200, {"jobMessages": self.messages}
        if path.endswith("/metrics"):
            return 200, {"metrics": [metric for name, rows in self.counters.items() for metric in _metrics(name, rows)]}
        if method == "GET" and path.endswith(JOB_ID):
            return 200, self._job(self.states.pop(0) if len(self.states) > 1 else self.states[0])
        return 404, {"error": {"code": 404, "message": f"nothing at {path}"}}

    def _job(self, state: str | None = None) -> dict[str, Any]:
        job = {"id": JOB_ID, "name": "job", "projectId": "my-project-1", "location": "us-central1"}
        return job if state is None else job | {"currentState": state}


def _metrics(name: str, rows: int) -> list[dict[str, Any]]:
    context = {"namespace": "torchbeam", "step": "s7"}
    return [
        {"name": {"origin": "user", "name": name, "context": context | tentative}, "scalar": rows}
        for tentative in ({}, {"tentative": "true"})
    ]


@contextmanager
def fake_dataflow() -> Iterator[FakeDataflow]:
    fake = FakeDataflow()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._reply("GET")

        def do_POST(self) -> None:
            self._reply("POST")

        def _reply(self, method: str) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length) or b"{}")
            status, found = fake.answer(method, self.path.split("?")[0], body)
            data = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("localhost", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    fake.url = f"http://localhost:{server.server_address[1]}"
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def launch_arguments(staging: Path, endpoint: str) -> list[str]:
    """Beam's arguments of a launch against a stand-in, with local folders in place of buckets."""
    staging.mkdir(parents=True, exist_ok=True)
    return [
        f"--dataflow_endpoint={endpoint}",
        "--no_auth",
        "--project=my-project-1",
        "--region=us-central1",
        f"--temp_location={staging}",
        f"--staging_location={staging}",
    ]


@dataclass(frozen=True)
class StagedPipeline:
    """The `pipeline.pb` that a launch left in its staging folder."""

    proto: Any

    @staticmethod
    def read(staging: Path) -> StagedPipeline:
        proto = beam_runner_api_pb2.Pipeline()
        proto.ParseFromString((staging / "pipeline.pb").read_bytes())
        return StagedPipeline(proto)

    def hints(self) -> dict[str, dict[str, str]]:
        """The resource hints of each transform that a worker runs, by its name; those without any are left out."""
        components = self.proto.components
        found = {}
        for transform in components.transforms.values():
            if transform.environment_id and not transform.subtransforms:
                hints = components.environments[transform.environment_id].resource_hints
                if hints:
                    found[transform.unique_name] = {name: value.decode() for name, value in hints.items()}
        return found

    def steps(self) -> set[str]:
        """The names of the transforms that a worker runs."""
        transforms = self.proto.components.transforms.values()
        return {item.unique_name for item in transforms if item.environment_id and not item.subtransforms}

    def images(self) -> set[str]:
        found = set()
        for environment in self.proto.components.environments.values():
            payload = beam_runner_api_pb2.DockerPayload()
            payload.ParseFromString(environment.payload)
            found.add(payload.container_image)
        return found

    def artifacts(self) -> list[set[str]]:
        """The staged names of what the workers get, for each environment."""
        return [_staged_names(item.dependencies) for item in self.proto.components.environments.values()]


def _staged_names(dependencies: Sequence[Any]) -> set[str]:
    names = set()
    for dependency in dependencies:
        role = beam_runner_api_pb2.ArtifactStagingToRolePayload()
        role.ParseFromString(dependency.role_payload)
        names.add(role.staged_name)
    return names


ACCELERATOR = "beam:resources:accelerator:v1"
MIN_RAM = "beam:resources:min_ram_bytes:v1"


def assert_hints_of_the_inference_step_alone(staged: StagedPipeline, expected: dict[str, str]) -> None:
    """The inference step has them, and no other but what Beam fuses with it."""
    hints = staged.hints()
    inference = "Score/RunInference/BeamML_RunInference"
    assert hints[inference] == expected
    neighbours = {name for name in hints if name.startswith("Score/RunInference/BatchElements")}
    assert set(hints) - neighbours == {inference}
    assert len(staged.steps()) > 10
