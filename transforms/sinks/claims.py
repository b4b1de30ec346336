"""The claim of a run on its output: a small lock file that keeps two runs from writing to one output.

A run claims its output before it reads a row, renews the claim while it is alive, and removes it when it ends. The claim
of a killed run is dead once its process is gone, which can be checked on the same host, or once it has expired; the next
run takes it over. Publishing requires the claim, so a run that has lost it publishes nothing.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from socket import gethostname
from typing import Any

from handlers.errors import TorchbeamError, UsageError
from transforms.conditional_files import ChangedError, ConditionalFile, Seen, conditional_file
from transforms.file_ops import join
from transforms.processes import Process

CLAIM = "_claim.json"  # readers skip names that begin with an underscore
LIFETIME = 600.0  # seconds from a renewal until the claim expires; clocks of hosts may differ by less than that
RENEWAL = 120.0  # seconds between renewals
JOB_LIFETIME = 24 * 3600.0  # of a claim that no process renews, because a submitted job holds it

_LOST = "warning: the claim of this run was removed or taken by another run; if it was taken, nothing is published"
_ATTEMPTS = 20  # to change a claim that others change at the same time


class ClaimLostError(TorchbeamError):
    """Another run has claimed the output in the meantime."""


@dataclass(frozen=True)
class Claim:
    """The run that writes to an output.

    Attributes:
        run_id: the id of the run.
        host: the host that started the run.
        process: the process of the run; None if the run continues without it, such as a job on Dataflow.
        runner: the name of the runner.
        since: when the output was claimed, in Unix time.
        expires: when the claim expires, in Unix time.
        lifetime: seconds by which a renewal extends the claim.
    """

    run_id: str
    host: str
    process: Process | None
    runner: str
    since: float
    expires: float
    lifetime: float

    def to_json(self) -> str:
        """The content of the file, with readable times."""
        fields = asdict(self) | {name: _iso(getattr(self, name)) for name in ("since", "expires")}
        return json.dumps(fields, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Claim:
        """Parses a claim; raises `ValueError` if the text is not one."""
        try:
            fields = json.loads(text)
            times = {name: datetime.fromisoformat(fields[name]).timestamp() for name in ("since", "expires")}
            process = Process(**fields["process"]) if fields["process"] else None
            return cls(**fields | times | {"process": process})
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(str(error)) from None

    def is_dead(self, now: float) -> bool:
        """Whether its run has ended: its process on this host is gone, or the claim has expired."""
        if self.process is not None and self.process.is_here:
            return not self.process.is_alive()
        return now > self.expires

    def __str__(self) -> str:
        who = f"process {self.process.id} on {self.host}" if self.process else f"{self.runner}, started on {self.host}"
        return f"run {self.run_id} ({who}) since {_shown(self.since)}"


class OutputClaim:
    """The claim on an output, for one run.

    Attributes:
        run_id: the id of the run.
        handed_over: whether a submitted job holds the claim; its last step releases it.
        left: whether the claim stays when this process ends, because the run continues.
    """

    def __init__(
        self,
        output: str,
        run_id: str,
        runner: str = "",
        process: Process | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.run_id = run_id
        self.handed_over = False
        self.left = False
        self._taken = False
        self._output = output
        self._runner = runner
        self._process = process
        self._clock = clock
        self._file = conditional_file(join(output, CLAIM))

    @property
    def atomic(self) -> bool:
        """Whether the store orders concurrent claims, so that only one of them succeeds."""
        return self._file.atomic

    def take(self) -> Claim | None:
        """Claims the output, or renews the claim; returns the dead claim of another run that it replaces, if any.

        Raises:
            UsageError: if another run has claimed it.
        """
        for _ in range(_ATTEMPTS):
            seen = self._file.read()
            found = _parse(self._file, seen) if seen else None
            if found is not None and found.run_id == self.run_id:
                claim = self._extended(found)
            elif found is not None and not found.is_dead(self._clock()):
                raise UsageError(_refusal(self._output, found))
            else:
                now = self._clock()
                claim = Claim(self.run_id, gethostname(), self._process, self._runner, now, now + LIFETIME, LIFETIME)
            with suppress(ChangedError):
                self._file.write(claim.to_json(), seen)
                self._taken = True
                return found if found is not None and found.run_id != self.run_id else None
        raise UsageError(f"--output {self._output} is being claimed by other runs; write elsewhere, or try again")

    def renew(self, **changed: Any) -> bool:
        """Extends the claim and sets the fields `changed`; returns whether this run still holds it."""
        for _ in range(_ATTEMPTS):
            seen = self._file.read()
            found = _parse(self._file, seen) if seen else None
            if seen is None or found is None or found.run_id != self.run_id:
                return False
            with suppress(ChangedError):
                self._file.write(self._extended(replace(found, **changed)).to_json(), seen)
                return True
        return False

    def hand_over(self) -> None:
        """Records that the run continues without this process, as a job that is about to be submitted.

        Raises:
            ClaimLostError: if another run has taken the claim.
        """
        if self._taken and not self.renew(process=None, lifetime=JOB_LIFETIME):
            raise ClaimLostError(f"the claim on --output {self._output} was removed or taken by another run; run again")
        self.handed_over = True

    def release(self, *, unless_of_process: bool = False) -> None:
        """Removes the claim if this run holds it.

        Args:
            unless_of_process: keep a claim that a process holds; that process removes it.
        """
        for _ in range(_ATTEMPTS):
            seen = self._file.read()
            found = _parse(self._file, seen) if seen else None
            if seen is None or found is None or found.run_id != self.run_id:
                return
            if unless_of_process and found.process is not None:
                return
            with suppress(ChangedError):  # it was renewed in the meantime
                self._file.remove(seen)
                return

    def _extended(self, claim: Claim) -> Claim:
        """`claim` with a later expiry."""
        return replace(claim, expires=max(claim.expires, self._clock() + claim.lifetime))


@contextmanager
def held(claim: OutputClaim, tell: Callable[[str], None]) -> Iterator[Claim | None]:
    """Takes a claim, renews it, and releases it at the end unless it is `left`.

    Args:
        claim: the claim on the output.
        tell: called with a line for the user if another run has taken the claim.

    Yields:
        the dead claim of another run that was replaced, if any.

    Raises:
        UsageError: if another run has claimed the output.
    """
    try:
        dead = claim.take()
        with _renewed(claim, tell):
            yield dead
    finally:
        if not claim.left:
            with suppress(Exception):  # it expires
                claim.release()


@contextmanager
def publishing(output: str, run_id: str, runner: str) -> Iterator[Callable[[], None]]:
    """Holds the claim of a run while it publishes, or takes one if there is none.

    A claim that no process holds is released at the end, since no process would do it later.

    Yields:
        a function that raises `ClaimLostError` if the run no longer holds the claim.

    Raises:
        ClaimLostError: if another run has claimed the output.
    """
    claim = OutputClaim(output, run_id, runner)

    def still_mine() -> None:
        if not claim.renew():
            raise ClaimLostError(f"{output} was claimed by another run while this one published; run again")

    try:
        claim.take()
    except UsageError as error:
        raise ClaimLostError(f"nothing is published: {error}") from None
    try:
        with _renewed(claim, None):
            yield still_mine
    finally:
        with suppress(Exception):  # the files are published, or another error is being raised
            claim.release(unless_of_process=True)


@contextmanager
def _renewed(claim: OutputClaim, tell: Callable[[str], None] | None) -> Iterator[None]:
    """Renews a claim in a background thread."""
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(RENEWAL):
            with suppress(Exception):  # the store may respond the next time
                if not claim.renew():
                    if tell is not None and not claim.handed_over:
                        tell(_LOST)
                    return

    thread = threading.Thread(target=renew, name="claim", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(5)


def check(output: str, now: float | None = None) -> Claim | None:
    """The dead claim on an output, which the next run will take over; None if there is no claim.

    Raises:
        UsageError: if a run has claimed the output.
    """
    file = conditional_file(join(output, CLAIM))
    seen = file.read()
    if seen is None:
        return None
    claim = _parse(file, seen)
    if not claim.is_dead(time.time() if now is None else now):
        raise UsageError(_refusal(output, claim))
    return claim


def _parse(file: ConditionalFile, seen: Seen) -> Claim:
    try:
        return Claim.from_json(seen.text)
    except ValueError:
        raise UsageError(
            f"{file.path} is not the claim of a run; if no run is starting there at this moment, remove it"
        ) from None


def _refusal(output: str, claim: Claim) -> str:
    line = f"--output {output} is being written by {claim}; write elsewhere, or wait until it has ended"
    if claim.process is not None and claim.process.is_here:
        return line
    return (
        f"{line}; if it has failed or was killed, remove {join(output, CLAIM)}, or wait until {_shown(claim.expires)}"
    )


def _iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat()


def _shown(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
