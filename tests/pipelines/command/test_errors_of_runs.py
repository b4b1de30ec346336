"""An error keeps its type on its way from a worker to the command, and each type has an exit code."""

from __future__ import annotations

import traceback

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from handlers import errors
from handlers.errors import (
    AccountingError,
    BrokenFileError,
    BrokenModelError,
    DeviceLostError,
    PublishError,
    RowsFailedError,
    ServiceError,
    StreamError,
    TorchbeamError,
    TrainingError,
    UsageError,
)
from pipelines.command import process
from pipelines.command.errors import cause_of, exit_code, line_of
from pipelines.command.options import Command
from pipelines.dataflow.settings import NotFollowedError
from pipelines.spark.job_server import JobServerError

OURS = [
    *(TorchbeamError, UsageError, BrokenModelError, BrokenFileError, ServiceError, DeviceLostError),
    *(AccountingError, PublishError, TrainingError, RowsFailedError, StreamError, JobServerError, NotFollowedError),
]


def fail(kind: type[Exception]) -> None:
    raise kind("3 rows: of [a] were lost")


def said_by_worker(raised: Exception) -> RuntimeError:
    """What a portable runner raises where a worker raised that."""
    return RuntimeError("".join(traceback.format_exception(raised)))


def raised(call: object) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        call()  # type: ignore[operator]
    return caught.value


@pytest.mark.parametrize("kind", OURS)
def test_every_error_of_ours_keeps_its_type_and_message(kind: type[TorchbeamError]) -> None:
    error = raised(lambda: fail(kind))
    for seen in (
        error,
        said_by_worker(error),
        RuntimeError(f"job 7 failed:\n{said_by_worker(error)}\n\tat a.b.C(D:1)\n"),
    ):
        found = cause_of(seen)
        assert type(found) is kind
        assert str(found) == "3 rows: of [a] were lost"


def test_all_errors_that_workers_raise_are_here() -> None:
    known = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, TorchbeamError)}
    assert known <= set(OURS)


@pytest.mark.parametrize("mode", ["in_memory", "multi_threading", "multi_processing"])
@pytest.mark.parametrize("kind", [AccountingError, BrokenFileError])
def test_from_a_worker(kind: type[TorchbeamError], mode: str) -> None:
    def lose(kind: type[Exception]) -> None:  # not by its name: a worker process cannot import this module
        raise kind("3 rows: of [a] were lost")

    arguments = ["--runner=FnApiRunner", f"--direct_running_mode={mode}", "--direct_num_workers=1"]
    pipeline = beam.Pipeline(options=PipelineOptions(arguments))
    _ = pipeline | beam.Create([kind], reshuffle=False) | beam.Map(lose)
    found = cause_of(raised(lambda: pipeline.run().wait_until_finish()))
    assert type(found) is kind
    assert str(found) == "3 rows: of [a] were lost"


class TestChains:
    def test_the_cause_of_an_error_of_others(self) -> None:
        def call() -> None:
            try:
                fail(PublishError)
            except PublishError as error:
                raise KeyError("wrapped") from error

        assert type(cause_of(said_by_worker(raised(call)))) is PublishError

    def test_an_error_that_was_handled_before_another_was_raised(self) -> None:
        def call() -> None:
            try:
                fail(UsageError)
            except UsageError:
                raise KeyError("other")  # noqa: B904

        found = cause_of(said_by_worker(raised(call)))
        assert (type(found), str(found)) == (TorchbeamError, "the run failed: KeyError: 'other'")

    def test_a_class_of_the_same_name_is_not_ours(self) -> None:
        theirs = type("UsageError", (Exception,), {"__module__": "their.errors"})
        found = cause_of(said_by_worker(theirs("no")))
        assert (type(found), str(found)) == (TorchbeamError, "the run failed: UsageError: no")

    def test_interruption(self) -> None:
        assert isinstance(cause_of(RuntimeError("Traceback:\nKeyboardInterrupt\n")), KeyboardInterrupt)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UsageError("an option\nis wrong"), 2, "an option is wrong"),
        (BrokenModelError("broken"), 3, "broken"),
        (AccountingError("lost"), 1, "lost"),
        (FileNotFoundError(2, "No such file", "x"), 1, "[Errno 2] No such file: 'x'"),
        (KeyError("x"), 1, "KeyError: 'x'; --verbose shows where"),
    ],
)
def test_exit_codes_and_lines(error: Exception, code: int, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    class Options:
        verbose = False

    def work(_: Options) -> int:
        raise error

    assert (exit_code(error), line_of(error)) == (code, line)
    command = Command("prog", "", "", "")
    assert process.execute(command, [], lambda *_: Options(), work) == code
    assert capsys.readouterr().err == f"prog: error: {line}\n"


def test_what_a_command_says_of_an_interruption(capsys: pytest.CaptureFixture[str]) -> None:
    class Options:
        verbose = False

    def work(_: Options) -> int:
        raise KeyboardInterrupt

    assert process.execute(Command("prog", "", "", ""), [], lambda *_: Options(), work) == 130
    assert process.execute(Command("prog", "", "", "", interrupted=""), [], lambda *_: Options(), work) == 130
    assert capsys.readouterr().err == "prog: interrupted; nothing was published\nprog: interrupted\n"
