"""`torchbeam-worker`: the command that Spark's executors start for `--environment_type=PROCESS`.

It follows the contract of the boot command of Beam's containers: its arguments are `--id` and `--provision_endpoint`,
which has the pipeline's options and the other endpoints; it fetches the staged files and runs Beam's worker.

The process that Spark starts is a watcher. Beam's worker is its child, whose last lines on stderr it keeps. If the child
dies before it is connected, the watcher connects instead and fails every request with these lines, so that they become
the error of the job: an executor discards the output of its processes and reports only exit codes.

If a worker dies later, the watcher kills its executor, too. The runner would send every retry to the dead worker, and
fail the job within a second; this way the retry goes to a new executor with a new worker.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.command.supervisor import EndedBySignal, end_with_parent

# The watcher imports only the standard library unless something fails: a host may have many of them.

NO_BEAM = 86  # exit code if this Python cannot even report to the job what is wrong
LAST_LINES = 4
STARTED_FD = "TORCHBEAM_WORKER_STARTED_FD"
EXECUTOR = "TORCHBEAM_WORKER_EXECUTOR"
WATCHER = "TORCHBEAM_WORKER_WATCHER"
FOLDER = "TORCHBEAM_WORKER_FOLDER"


@dataclass(frozen=True)
class Boot:
    """The arguments of the boot command. Missing endpoints come from the provision service."""

    id: str
    provision_endpoint: str
    semi_persist_dir: str
    endpoints: dict[str, str]

    @staticmethod
    def parse(argv: Sequence[str]) -> Boot:
        """Parses the arguments of a runner; unknown ones are ignored, as in Beam's own boot command."""
        parser = argparse.ArgumentParser(prog="torchbeam-worker", description=__doc__, allow_abbrev=False)
        parser.add_argument("--id", required=True)
        parser.add_argument("--provision_endpoint", required=True)
        parser.add_argument("--semi_persist_dir", default="")
        for name in ("logging", "artifact", "control"):
            parser.add_argument(f"--{name}_endpoint", default="")
        values, _ = parser.parse_known_args(argv)
        endpoints = {name: getattr(values, f"{name}_endpoint") for name in ("logging", "artifact", "control")}
        return Boot(values.id, values.provision_endpoint, values.semi_persist_dir, endpoints)


def main(argv: list[str] | None = None) -> int:
    """Watches a worker until it ends, and returns its exit code."""
    executor = os.getppid()  # if the executor is gone by now, the worker gets no answer and ends
    arguments = sys.argv[1:] if argv is None else argv
    boot = Boot.parse(arguments)
    try:
        folder = tempfile.mkdtemp(prefix="torchbeam-worker-", dir=_parent_folder(boot))
    except OSError as error:
        return _fail_requests(boot, f"the worker on {platform.node()} has no folder for its files: {error}")
    try:
        return _watch(boot, arguments, executor, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _watch(boot: Boot, arguments: Sequence[str], executor: int, folder: str) -> int:
    """Runs the worker. It may be killed at any time, so its folder is removed here."""
    child = EndedBySignal(subprocess.Popen.kill, signal.SIGTERM, signal.SIGINT)
    started, started_in_child = os.pipe()
    variables = {STARTED_FD: str(started_in_child), EXECUTOR: str(executor), WATCHER: str(os.getpid()), FOLDER: folder}
    worker = child.start(
        # -P: the working directory may contain a package with the name of ours
        [sys.executable, "-P", "-m", "pipelines.spark.worker", *arguments],
        stderr=subprocess.PIPE,
        pass_fds=[started_in_child],
        env=os.environ | variables,
    )
    os.close(started_in_child)

    def end_with_executor() -> None:
        worker.kill()
        worker.wait()
        shutil.rmtree(folder, ignore_errors=True)

    end_with_parent(end_with_executor, executor)
    last: deque[str] = deque(maxlen=LAST_LINES)
    for line in worker.stderr or ():
        text = line.decode(errors="replace")
        sys.stderr.write(text)
        last.append(text.rstrip())
    code = worker.wait()
    shutil.rmtree(folder, ignore_errors=True)  # the next steps may end this process, too
    with os.fdopen(started, "rb") as pipe:
        started_well = bool(pipe.read())
    if child.signalled:
        return 0
    if started_well:
        _end_executor(executor)
        return code if code >= 0 else 128 - code
    return _fail_requests(boot, startup_error(code, list(last)))


def _end_executor(pid: int) -> None:
    """Kills the executor whose worker died; another parent process is left alone."""
    with suppress(OSError):
        if b"ExecutorBackend" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)


def startup_error(code: int, lines: list[str]) -> str:
    """The error of the job if a worker died at its start."""
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    output = " / ".join(line.strip() for line in lines if line.strip()) or "without any output"
    return f"the worker on {platform.node()} {how} at its start: {output}"


def _fail_requests(boot: Boot, message: str) -> int:
    """Answers every request to the worker with the error `message`, until the runner closes the connection."""
    print(message, file=sys.stderr)
    try:
        import grpc  # type: ignore[import-untyped,unused-ignore]
        from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc
    except Exception:
        return NO_BEAM
    import queue

    answers: queue.Queue[Any] = queue.Queue()
    opened: set[str] = set()
    metadata = [("worker_id", boot.id)]
    with grpc.insecure_channel(boot.endpoints["control"] or _provision(boot).control_endpoint.url) as channel:
        stub = beam_fn_api_pb2_grpc.BeamFnControlStub(channel)
        with suppress(grpc.RpcError):  # until the runner closes the connection
            for request in stub.Control(iter(answers.get, None), metadata=metadata):
                bundle = request.process_bundle.process_bundle_descriptor_id
                if bundle:
                    wanted = beam_fn_api_pb2.GetProcessBundleDescriptorRequest(process_bundle_descriptor_id=bundle)
                    _open_data_streams(stub.GetProcessBundleDescriptor(wanted, metadata=metadata), metadata, opened)
                error = f"WorkerError: {message}"
                answers.put(beam_fn_api_pb2.InstructionResponse(instruction_id=request.instruction_id, error=error))
    return 1


def _open_data_streams(bundle: Any, metadata: list[tuple[str, str]], opened: set[str]) -> None:
    """Opens the stream of a bundle's data: before that the runner does not read the answer."""
    import grpc
    from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc

    for transform in bundle.transforms.values():
        if transform.spec.urn != "beam:runner:source:v1":
            continue
        url = beam_fn_api_pb2.RemoteGrpcPort.FromString(transform.spec.payload).api_service_descriptor.url
        if url not in opened:
            opened.add(url)
            stream = beam_fn_api_pb2_grpc.BeamFnDataStub(grpc.insecure_channel(url)).Data(
                iter(threading.Event().wait, None), metadata=metadata
            )
            threading.Thread(target=_drain, args=(stream,), daemon=True).start()


def _drain(stream: Any) -> None:
    with suppress(Exception):
        deque(stream, maxlen=0)


def _provision(boot: Boot) -> Any:
    import grpc
    from apache_beam.portability.api import beam_provision_api_pb2, beam_provision_api_pb2_grpc

    with grpc.insecure_channel(boot.provision_endpoint) as channel:
        stub = beam_provision_api_pb2_grpc.ProvisionServiceStub(channel)
        request = beam_provision_api_pb2.GetProvisionInfoRequest()
        return stub.GetProvisionInfo(request, metadata=[("worker_id", boot.id)], timeout=30).info


# In the child


def _run_worker(argv: Sequence[str]) -> None:
    """Runs Beam's worker in this process until the runner ends it."""
    executor, watcher = int(os.environ.pop(EXECUTOR)), int(os.environ.pop(WATCHER))
    folder = os.environ.pop(FOLDER)

    def end() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        _end_executor(executor)

    end_with_parent(end, watcher)
    boot = Boot.parse(argv)
    from apache_beam.runners.worker import sdk_worker_main
    from google.protobuf import json_format  # type: ignore[import-untyped,unused-ignore]

    info = _provision(boot)
    environment = {
        "WORKER_ID": boot.id,
        "PIPELINE_OPTIONS": json_format.MessageToJson(info.pipeline_options),
        "LOGGING_API_SERVICE_DESCRIPTOR": f'url: "{boot.endpoints["logging"] or info.logging_endpoint.url}"',
        "CONTROL_API_SERVICE_DESCRIPTOR": f'url: "{boot.endpoints["control"] or info.control_endpoint.url}"',
        "SEMI_PERSISTENT_DIRECTORY": folder,
        "RUNNER_CAPABILITIES": " ".join(info.runner_capabilities),
    }
    if info.status_endpoint.url:
        environment["STATUS_API_SERVICE_DESCRIPTOR"] = f'url: "{info.status_endpoint.url}"'
    _fetch_staged(boot, info, Path(folder, "staged"))
    os.environ.update(environment)
    _, harness, _ = sdk_worker_main.create_harness(environment)
    os.write(int(os.environ[STARTED_FD]), b"1")
    os.close(int(os.environ.pop(STARTED_FD)))
    harness.run()


def _parent_folder(boot: Boot) -> str | None:
    """A folder that Spark removes with the executor, if there is one."""
    for name in ("SPARK_EXECUTOR_DIRS", "LOCAL_DIRS", "SPARK_LOCAL_DIRS"):
        for folder in re.split(r"[:,]", os.environ.get(name, "")):
            if folder and os.access(folder, os.W_OK):
                return folder
    return boot.semi_persist_dir or None


def _fetch_staged(boot: Boot, info: Any, folder: Path) -> None:
    """Fetches the files of the pipeline's environment, and installs the packages among them."""
    if not info.dependencies:
        return
    import grpc
    from apache_beam.portability.api import beam_artifact_api_pb2, beam_artifact_api_pb2_grpc, beam_runner_api_pb2

    folder.mkdir(parents=True)
    with grpc.insecure_channel(boot.endpoints["artifact"] or info.artifact_endpoint.url) as channel:
        service = beam_artifact_api_pb2_grpc.ArtifactRetrievalServiceStub(channel)
        metadata = [("worker_id", boot.id)]
        wanted = beam_artifact_api_pb2.ResolveArtifactsRequest(artifacts=info.dependencies)
        for artifact in service.ResolveArtifacts(wanted, metadata=metadata).replacements:
            staged = beam_runner_api_pb2.ArtifactStagingToRolePayload.FromString(artifact.role_payload)
            if not staged.staged_name:
                continue
            with (folder / Path(staged.staged_name).name).open("wb") as file:
                for block in service.GetArtifact(
                    beam_artifact_api_pb2.GetArtifactRequest(artifact=artifact), metadata=metadata
                ):
                    file.write(block.data)
    _install(folder)


def _install(staged: Path) -> None:
    """Installs what `--requirements_file`, `--setup_file` and `--extra_package` staged, for this worker alone."""
    packages: list[str] = []
    if (staged / "requirements.txt").exists():
        packages += ["--find-links", str(staged), "--requirement", str(staged / "requirements.txt")]
    listed = staged / "extra_packages.txt"
    names = [*(listed.read_text().split() if listed.exists() else []), "workflow.tar.gz"]
    packages += [str(staged / name) for name in names if (staged / name).exists()]
    if not packages:
        return
    target = staged.parent / "packages"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target", str(target)]
    subprocess.run([*pip, *packages], check=True, stdout=sys.stderr)  # noqa: S603 - staged by the user
    sys.path.insert(0, str(target))


if __name__ == "__main__":
    if STARTED_FD not in os.environ:
        sys.exit(main())
    # The error of a worker is on its stderr; its threads must not keep it alive.
    try:
        _run_worker(sys.argv[1:])
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)
