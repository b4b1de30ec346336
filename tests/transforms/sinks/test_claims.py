"""Claims on a local output, with a clock of the test's own. Two real runs: `tests/pipelines/test_two_runs.py`."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from threading import Barrier, Event

import pytest
from deadlines import WAIT_SECONDS

from handlers.errors import UsageError
from transforms.processes import Process
from transforms.sinks import claims
from transforms.sinks.claims import (
    CLAIM,
    JOB_LIFETIME,
    LIFETIME,
    Claim,
    ClaimLostError,
    OutputClaim,
    check,
    held,
    publishing,
)

START = 1_800_000_000.0
ELSEWHERE = Process(17, "1", "another host")


class Clock:
    """The time of one host, which the test sets."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def claim(tmp_path: Path, clock: Clock) -> Callable[..., OutputClaim]:
    def make(run_id: str, process: Process | None = ELSEWHERE) -> OutputClaim:
        return OutputClaim(str(tmp_path), run_id, "FnApiRunner", process, clock)

    return make


def there(output: Path) -> Claim:
    return Claim.from_json((output / CLAIM).read_text())


def test_the_file_says_who_writes_and_until_when(tmp_path: Path, claim: Callable[..., OutputClaim]) -> None:
    claim("a", Process.current()).take()
    found = json.loads((tmp_path / "_claim.json").read_text())
    assert (found["run_id"], found["host"], found["runner"]) == ("a", socket.gethostname(), "FnApiRunner")
    assert found["process"]["id"] == Process.current().id
    assert datetime.fromisoformat(found["since"]).timestamp() == START
    assert datetime.fromisoformat(found["expires"]).timestamp() == START + LIFETIME
    assert there(tmp_path).to_json() == (tmp_path / "_claim.json").read_text()


@pytest.mark.parametrize("process", [ELSEWHERE, None, Process.current()])
def test_a_second_run_is_refused(tmp_path: Path, claim: Callable[..., OutputClaim], process: Process | None) -> None:
    claim("a", process).take()
    before = (tmp_path / CLAIM).read_text()
    with pytest.raises(UsageError) as refused:
        claim("b").take()
    line = str(refused.value)
    host = socket.gethostname()
    who = f"FnApiRunner, started on {host}" if process is None else f"process {process.id} on {host}"
    assert line.startswith(
        f"--output {tmp_path} is being written by run a ({who}) since 2027-01-15 08:00:00 UTC; write"
    )
    # On this host a run that was killed is found without help.
    assert ("remove" in line) == (process != Process.current())
    assert "\n" not in line
    assert (tmp_path / CLAIM).read_text() == before


def test_a_claim_expires_unless_it_is_renewed(tmp_path: Path, claim: Callable[..., OutputClaim], clock: Clock) -> None:
    first = claim("a")
    first.take()
    clock.now += LIFETIME - 1
    assert first.renew()
    clock.now += LIFETIME
    with pytest.raises(UsageError):
        claim("b").take()
    clock.now += 1
    dead = claim("b").take()
    assert dead is not None
    assert (dead.run_id, dead.since) == ("a", START)
    assert there(tmp_path).run_id == "b"
    assert not first.renew()
    first.release()
    assert there(tmp_path).run_id == "b"


def test_a_claim_on_this_host_lives_and_dies_with_its_process(
    tmp_path: Path, claim: Callable[..., OutputClaim], clock: Clock
) -> None:
    claim("a", Process.current()).take()
    clock.now += 100 * LIFETIME  # the host was asleep
    with pytest.raises(UsageError, match="run a "):
        claim("b").take()
    (tmp_path / CLAIM).unlink()
    claim("a", replace(Process.current(), started="1")).take()
    dead = claim("b").take()
    assert dead is not None
    assert dead.run_id == "a"


def test_a_claim_that_is_taken_again_is_renewed(
    tmp_path: Path, claim: Callable[..., OutputClaim], clock: Clock
) -> None:
    claim("a").take()
    clock.now += 5
    assert claim("a", None).take() is None
    assert there(tmp_path) == Claim(
        "a", socket.gethostname(), ELSEWHERE, "FnApiRunner", START, START + 5 + LIFETIME, LIFETIME
    )


def test_a_job_that_goes_on_by_itself_has_a_day(
    tmp_path: Path, claim: Callable[..., OutputClaim], clock: Clock
) -> None:
    job = claim("a", replace(Process.current(), started="1"))  # which will be gone
    job.take()
    job.hand_over()
    assert there(tmp_path).process is None
    clock.now += JOB_LIFETIME
    with pytest.raises(UsageError):
        claim("b").take()
    assert job.renew()  # by the last step of the job
    clock.now += JOB_LIFETIME + 1
    assert claim("b").take() is not None
    with pytest.raises(ClaimLostError, match="taken by another run; run again"):
        job.hand_over()


def test_a_claim_that_was_never_taken_need_not_be_handed_over(claim: Callable[..., OutputClaim]) -> None:
    claim("a").hand_over()


@pytest.mark.parametrize("dead", [False, True])
def test_one_of_many_runs_gets_the_output(
    tmp_path: Path, claim: Callable[..., OutputClaim], clock: Clock, dead: bool
) -> None:
    if dead:
        claim("old").take()
        clock.now += LIFETIME + 1
    barrier = Barrier(8)

    def take(number: int) -> tuple[int, Claim | None] | None:
        mine = claim(str(number))
        barrier.wait()
        try:
            return number, mine.take()
        except UsageError:
            return None

    with ThreadPoolExecutor(8) as threads:
        ((winner, replaced),) = [found for found in threads.map(take, range(8)) if found]
    assert there(tmp_path).run_id == str(winner)
    assert (replaced is not None) == dead


@pytest.mark.parametrize("text", ["", "[]", "{}", "not json", '{"run_id": "a", "process": 3}'])
def test_a_file_that_is_no_claim_is_left_alone(tmp_path: Path, claim: Callable[..., OutputClaim], text: str) -> None:
    (tmp_path / CLAIM).write_text(text)
    with pytest.raises(UsageError, match=r"_claim\.json is not the claim of a run.*remove it"):
        claim("a").take()
    assert (tmp_path / CLAIM).read_text() == text


class TestHeld:
    def test_it_is_renewed_and_then_gone(
        self, tmp_path: Path, claim: Callable[..., OutputClaim], clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        renewed = Event()
        mine = claim("a")

        def renew() -> bool:
            try:
                return OutputClaim.renew(mine)
            finally:
                renewed.set()

        monkeypatch.setattr(claims, "RENEWAL", 0.001)
        monkeypatch.setattr(mine, "renew", renew)
        with held(mine, print) as dead:
            assert dead is None
            clock.now += 60
            renewed.clear()
            assert renewed.wait(WAIT_SECONDS)
            assert renewed.wait(WAIT_SECONDS)
        assert list(tmp_path.iterdir()) == []

    def test_it_goes_with_an_error_and_with_ctrl_c(self, tmp_path: Path, claim: Callable[..., OutputClaim]) -> None:
        for error in (ValueError, KeyboardInterrupt):
            with pytest.raises(error), held(claim("a"), print):
                raise error
            assert list(tmp_path.iterdir()) == []

    def test_it_stays_where_it_is_left(self, tmp_path: Path, claim: Callable[..., OutputClaim]) -> None:
        mine = claim("a")
        with held(mine, print):
            mine.hand_over()
            mine.left = True
        assert there(tmp_path).run_id == "a"

    def test_that_of_another_stays(self, tmp_path: Path, claim: Callable[..., OutputClaim]) -> None:
        with held(claim("a"), print):
            with pytest.raises(UsageError), held(claim("b"), print):
                pass
            assert there(tmp_path).run_id == "a"

    def test_a_claim_that_is_lost_is_told_once(
        self, tmp_path: Path, claim: Callable[..., OutputClaim], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(claims, "RENEWAL", 0.001)
        told, lines = Event(), []

        def tell(line: str) -> None:
            lines.append(line)
            told.set()

        with held(claim("a"), tell):
            (tmp_path / CLAIM).write_text(replace(there(tmp_path), run_id="b").to_json())
            assert told.wait(WAIT_SECONDS)
        assert len(lines) == 1
        assert lines[0].startswith("warning: the claim of this run")
        assert there(tmp_path).run_id == "b"

    def test_a_job_that_releases_its_claim_has_not_lost_it(
        self, tmp_path: Path, claim: Callable[..., OutputClaim], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(claims, "RENEWAL", 0.001)
        lines: list[str] = []
        mine = claim("a")
        with held(mine, lines.append):
            mine.hand_over()
            (renewing,) = [thread for thread in threading.enumerate() if thread.name == "claim"]
            claim("a").release(unless_of_process=True)
            renewing.join(WAIT_SECONDS)
            assert not renewing.is_alive()
        assert lines == []


class TestPublishing:
    def test_the_claim_of_the_process_stays(self, tmp_path: Path, claim: Callable[..., OutputClaim]) -> None:
        claim("a", Process.current()).take()
        with publishing(str(tmp_path), "a", "FnApiRunner") as still_mine:
            still_mine()
        assert there(tmp_path).run_id == "a"

    def test_that_of_a_job_goes(self, tmp_path: Path) -> None:
        mine = OutputClaim(str(tmp_path), "a", "DataflowRunner", Process.current())
        mine.take()
        mine.hand_over()
        with publishing(str(tmp_path), "a", "DataflowRunner"):
            assert there(tmp_path).lifetime == JOB_LIFETIME
        assert list(tmp_path.iterdir()) == []

    def test_one_is_taken_where_there_is_none(self, tmp_path: Path) -> None:
        with publishing(str(tmp_path), "a", "X") as still_mine:
            assert there(tmp_path).run_id == "a"
            still_mine()
        assert list(tmp_path.iterdir()) == []

    def test_another_run_has_it(self, tmp_path: Path, claim: Callable[..., OutputClaim]) -> None:
        claim("b", Process.current()).take()
        with pytest.raises(ClaimLostError, match=r"nothing is published: --output .* is being written by run b "):
            publishing(str(tmp_path), "a", "X").__enter__()

    def test_another_run_gets_it_meanwhile(self, tmp_path: Path, claim: Callable[..., OutputClaim]) -> None:
        with publishing(str(tmp_path), "a", "X") as still_mine:
            (tmp_path / CLAIM).unlink()
            claim("b").take()
            with pytest.raises(ClaimLostError, match="claimed by another run while this one published"):
                still_mine()
        assert there(tmp_path).run_id == "b"


def test_looking_changes_nothing(tmp_path: Path, claim: Callable[..., OutputClaim], clock: Clock) -> None:
    assert check(str(tmp_path)) is None
    claim("a").take()
    before = (tmp_path / CLAIM).read_text()
    with pytest.raises(UsageError, match="is being written by run a "):
        check(str(tmp_path), clock.now)
    dead = check(str(tmp_path), clock.now + LIFETIME + 1)
    assert dead is not None
    assert dead.run_id == "a"
    assert (tmp_path / CLAIM).read_text() == before
