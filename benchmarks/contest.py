"""Rounds of contestants: each a process of its own, in turn, its output compared before its time counts."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import outputs
from benchmarks.data import ROOT, Data
from benchmarks.job import Job
from benchmarks.peers import PEERS, Peer
from benchmarks.summary import Run, summarize
from benchmarks.workloads import Input, Workload

# Passive waiting, as `torchbeam score` sets it for itself: the loop is faster with it, too, where the machine has other work.
ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "HF_HUB_OFFLINE": "1",
    "PYSPARK_PYTHON": sys.executable,
    "RAY_USAGE_STATS_ENABLED": "0",
    "DO_NOT_TRACK": "1",
}
LOG_CHARACTERS = 2000


class DisqualifiedError(Exception):
    """A contestant has failed, or has written something else than the loop."""


@dataclass(frozen=True)
class Contestant:
    """A peer on the input of a workload that is named `input`; `name` is `peer` or `peer@input`."""

    name: str
    peer: Peer
    input: str

    @classmethod
    def of(cls, name: str) -> Contestant:
        """Of its name."""
        peer, _, source = name.partition("@")
        return cls(name, PEERS[peer], source)


class Contest:
    """One workload at one size.

    Args:
        workload: what is done.
        rows: on how many rows.
        data: where inputs, models and outputs are.
        settings: for peers by name.
        expected: what the loop writes, by input, if another contest has found it; what this one finds is added.
        timeout: seconds after which a run is ended.
    """

    def __init__(
        self,
        workload: Workload,
        rows: int,
        data: Data,
        settings: Mapping[str, Mapping[str, Any]],
        expected: dict[Any, outputs.Output] | None = None,
        timeout: float = 3600,
    ) -> None:
        self._workload = workload
        self._folder = data.folder
        self._settings = settings
        self._timeout = timeout
        self._inputs = workload.inputs(data, rows)
        self._small = workload.inputs(data, min(rows, workload.start_rows)) if workload.start_rows else {}
        self._model = workload.model(data)
        self._expected = {} if expected is None else expected

    def input(self, contestant: Contestant, small: bool = False) -> Input:
        """The input of a contestant; `small` is the one that shows the start-up."""
        if small:
            return self._small.get(contestant.input) or next(iter(self._small.values()))
        return self._inputs[contestant.input]

    @property
    def measures_starts(self) -> bool:
        """Whether each also runs on few rows in each round, which shows the start-up."""
        return bool(self._small)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all who can take part."""
        return self._workload.contestants(self._inputs)

    def run(self, contestant: Contestant, small: bool = False) -> Run:
        """One run.

        Raises:
            DisqualifiedError: the process failed, or its output is not that of the loop.
        """
        source = self.input(contestant, small)
        expected = self._expect(contestant, small) if contestant.peer.scores else None
        run, found = self._run(contestant, source)
        if found is not None and expected is not None:
            if problem := outputs.difference(found, expected, self._workload.shape):
                raise DisqualifiedError(f"its output is not that of the loop: {problem}")
            if len(found.keys) + found.refused != source.rows:
                raise DisqualifiedError(
                    f"{len(found.keys):,} rows scored and {found.refused:,} refused, of {source.rows:,}"
                )
        return run

    def _expect(self, contestant: Contestant, small: bool) -> outputs.Output:
        """What the loop writes, in a run that does not count and that brings the input into the cache of the disk."""
        key = (contestant.input, small)
        if key not in self._expected:
            found = self._run(Contestant.of(self._workload.reference), self.input(contestant, small))[1]
            assert found is not None
            self._expected[key] = found
        return self._expected[key]

    def _run(self, contestant: Contestant, source: Input) -> tuple[Run, outputs.Output | None]:
        """Runs a process and reads what it has written."""
        own = self._settings.get(contestant.name.partition("@")[0], {})
        with tempfile.TemporaryDirectory(prefix="run-", dir=self._folder) as work:
            output = Path(work) / "output"
            settings = {**self._workload.settings, **own}
            job = Job(str(source.path), source.format, source.rows, str(self._model), str(output), settings)
            run = self._measure(contestant.peer, job, Path(work))
            if not contestant.peer.scores:
                return run, None
            return run, outputs.read(output, self._workload.shape, source.schema if self._workload.carries else None)

    def _measure(self, peer: Peer, job: Job, work: Path) -> Run:
        marks, measured, log = work / "marks.json", work / "measured.json", work / "log"
        if peer.is_command:
            module, name = peer.target.split(":")
            command = getattr(importlib.import_module(module), name)(job)
        else:
            command = [sys.executable, "-m", "benchmarks.contestant", peer.target, job.to_json(), str(marks)]
        environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(ROOT)}
        meter = [sys.executable, "-m", "benchmarks.meter", str(measured), str(self._timeout), *command]
        with log.open("wb") as stream:
            code = subprocess.run(
                meter, stdout=stream, stderr=stream, cwd=ROOT, env=environment, check=False
            ).returncode
        said = log.read_text(errors="replace")[-LOG_CHARACTERS:].strip()
        if code:
            raise RuntimeError(f"the meter itself ended with exit code {code}: {said}")
        found = json.loads(measured.read_text())
        if found["exit_code"]:
            raise DisqualifiedError(f"exit code {found['exit_code']}: {said}")
        seconds = None if peer.is_command else json.loads(marks.read_text())["seconds"]
        wall = found["wall_seconds"]
        return Run(wall if seconds is None else seconds, wall, found["cpu_seconds"], found["peak_bytes"])


Figures = dict[str, dict[str, Any]]


def hold(
    contest: Contest,
    names: Sequence[str],
    rounds: int,
    tell: Callable[[str], None],
    keep: Callable[[int, Figures], None],
) -> Figures:
    """Runs all contestants in turn, round after round, each round beginning with the next one.

    Args:
        contest: the workload.
        names: of the contestants.
        rounds: how often.
        tell: takes a line for each run.
        keep: takes the number of a round, from 1, and the figures after it.

    Returns:
        For each the figures of `summarize`, or `reason`: why it was not measured.
    """
    everyone = [Contestant.of(name) for name in names]
    reasons = {each.name: missing for each in everyone if (missing := each.peer.missing())}
    taking = [each for each in everyone if each.name not in reasons]
    runs: dict[str, list[Run]] = {each.name: [] for each in taking}
    small: dict[str, list[Run]] = {each.name: [] for each in taking}
    for number in range(rounds):
        turn = number % max(len(taking), 1)
        for contestant in taking[turn:] + taking[:turn]:
            name = contestant.name
            if name in reasons:
                continue
            try:
                if contest.measures_starts:
                    small[name].append(contest.run(contestant, small=True))
                runs[name].append(run := contest.run(contestant))
            except DisqualifiedError as error:
                reasons[name] = str(error)
                tell(f"  {name}: {error}")
                continue
            tell(
                f"  round {number + 1}, {name}: {run.seconds:.2f} s, whole process {run.wall_seconds:.2f} s, "
                f"CPU {run.cpu_seconds:.2f} s, {run.peak_bytes / 1e6:,.0f} MB"
            )
        found = {each.name: _figures(contest, each, reasons, runs, small) for each in everyone}
        keep(number + 1, found)
    return found


def _figures(
    contest: Contest,
    contestant: Contestant,
    reasons: Mapping[str, str],
    runs: Mapping[str, Sequence[Run]],
    small: Mapping[str, Sequence[Run]],
) -> dict[str, Any]:
    name, title = contestant.name, {"title": contestant.peer.title}
    if name in reasons:
        return title | {"reason": reasons[name]}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found = summarize(runs[name], small[name], contest.input(contestant).rows, cores)
    return title | (found or {"reason": "the work takes no longer than the start-up; take more rows"})
