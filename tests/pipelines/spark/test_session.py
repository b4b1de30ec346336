"""What is told of a job while it runs, and that a session leaves this process as it was."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import grpc  # type: ignore[import-untyped,unused-ignore]
import pytest
import torch
from apache_beam.options.pipeline_options import PipelineOptions
from deadlines import WAIT_SECONDS

from pipelines.spark.call import Call
from pipelines.spark.job_server import Running
from pipelines.spark.progress import SparkProgress
from pipelines.spark.session import Session, spark_session
from pipelines.spark.submit import Submission

STARVED = "WARN TaskSchedulerImpl: Initial job has not accepted any resources; check your cluster UI"
REGISTERED = "INFO CoarseGrainedSchedulerBackend: Registered executor NettyRpcEndpointRef(spark-client://Executor)"


def told(master: str, *lines: str) -> Running:
    """A job server that has logged some lines."""
    server = Running(Call(Path("unused"), "java", master, ()), cast("Any", None), Path("unused"), ui="http://host:4040")
    for line in lines:
        server._note(line)
    return server


class TestNoExecutor:
    def test_standalone_master_is_not_waited_for(self) -> None:
        assert told("spark://host:7077", STARVED).problem is None
        assert "gives the job no executor" in str(told("spark://host:7077", STARVED, STARVED).problem)

    @pytest.mark.parametrize("lines", [[STARVED] * 9, [REGISTERED, *[STARVED] * 9]])
    def test_clusters_that_queue_are(self, lines: list[str]) -> None:
        server = told("yarn" if len(lines) == 9 else "spark://host:7077", *lines)
        assert server.problem is None
        assert SparkProgress(server).state() == "waiting for executors, see http://host:4040"

    def test_until_there_are_executors(self) -> None:
        assert SparkProgress(told("yarn", STARVED, REGISTERED)).state().startswith("running the first tasks")


class CutOff(BaseHTTPRequestHandler):
    """A page that ends in its middle, as that of a job which ends does."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"[{")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def page() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), CutOff) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_page_that_is_cut_off_is_no_error(page: str) -> None:
    server = told("local[2]")
    server.ui = page
    progress = SparkProgress(server)
    progress._asked = -100.0
    assert progress.so_far() is None


def submission(threads: int | None = None, *warnings: str) -> Submission:
    return Submission((), None, None, (), (), threads, warnings)


class Result:
    def __init__(self, wait: threading.Event) -> None:
        self.cancelled = False
        self._wait = wait

    def wait_until_finish(self) -> None:
        self._wait.wait(WAIT_SECONDS)

    def cancel(self) -> None:
        self.cancelled = True
        self._wait.set()


class Pipeline:
    """One whose submission takes until `go` is set, and which makes a temporary folder there, as Beam does."""

    def __init__(self, go: threading.Event) -> None:
        self.go = go
        self.entered = threading.Event()
        self.folder = Path()
        self.result = Result(threading.Event())

    def run(self) -> Result:
        self.folder = Path(tempfile.mkdtemp())
        self.entered.set()
        self.go.wait(WAIT_SECONDS)
        return self.result


class TestSession:
    def test_temporary_files_of_a_submission_go_with_it(self) -> None:
        before = tempfile.gettempdir()
        pipeline = Pipeline(threading.Event())
        pipeline.go.set()
        pipeline.result.cancel()
        with spark_session(submission(), PipelineOptions()) as session:
            session.run(cast("Any", pipeline))
            assert pipeline.folder.parent == session.folder
            assert tempfile.gettempdir() == before
        assert not session.folder.exists()

    def test_globals_are_restored_after_a_submission_that_fails(self) -> None:
        before, hook = tempfile.gettempdir(), threading.excepthook
        inside: list[object] = []

        class Refused(Pipeline):
            def run(self) -> Result:
                inside.append(tempfile.tempdir)
                raise RuntimeError("refused")

        def run_and_fail() -> None:
            with spark_session(submission(), PipelineOptions()) as session:
                inside.append(str(session.folder))
                session.run(cast("Any", Refused(threading.Event())))

        with pytest.raises(RuntimeError, match="refused"):
            run_and_fail()
        assert inside[0] == inside[1]
        assert tempfile.tempdir == before
        assert threading.excepthook is hook

    def test_interrupted_while_it_is_submitted(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pipeline = Pipeline(threading.Event())
        session = Session(PipelineOptions(), None, SparkProgress(None), tmp_path)

        def interrupted(_: Session) -> None:
            if pipeline.entered.is_set():
                threading.Timer(0.2, pipeline.go.set).start()
                raise KeyboardInterrupt

        monkeypatch.setattr(Session, "_check_server", interrupted)
        with pytest.raises(KeyboardInterrupt):
            session.run(cast("Any", pipeline))
        assert pipeline.result.cancelled

    def test_threads_of_workers_here(self) -> None:
        before = torch.get_num_threads()
        seen = []
        with spark_session(submission(before + 1), PipelineOptions()):
            worker = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
            worker.start()
            worker.join()
        assert seen == [before + 1]
        assert torch.get_num_threads() == before

    def test_errors_of_threads_are_shown_again_afterwards(self, monkeypatch: pytest.MonkeyPatch) -> None:
        shown: list[type[BaseException]] = []
        monkeypatch.setattr(threading, "excepthook", lambda happened: shown.append(happened.exc_type))

        def fail(kind: type[BaseException]) -> None:
            def run() -> None:
                raise kind

            thread = threading.Thread(target=run)
            thread.start()
            thread.join()

        with spark_session(submission(), PipelineOptions()):
            fail(grpc.RpcError)
            fail(KeyError)
        fail(grpc.RpcError)
        assert shown == [KeyError, grpc.RpcError]

    def test_warnings(self, capsys: pytest.CaptureFixture[str]) -> None:
        with spark_session(submission(None, "look out"), PipelineOptions()):
            pass
        assert capsys.readouterr().err == "torchbeam score: warning: look out\n"
