"""A series of checks: each reports its outcome in one line; checks that depend on a failed one are skipped."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Generic, TypeVar

from rich.console import Console
from rich.table import Table
from rich.text import Text

from handlers.errors import TorchbeamError, one_line
from handlers.redact import redact

T = TypeVar("T")

NAME_WIDTH = 14

_log = logging.getLogger(__name__)


class State(StrEnum):
    """The outcome of a check."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"
    SKIPPED = "skipped"


class SkipError(Exception):
    """Raised by a check that cannot run; the message says what it lacks."""


@dataclass(frozen=True)
class Finding(Generic[T]):
    """The result of a check: one line, and the value that later checks use."""

    text: str
    value: T
    warning: bool = False


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """A check that ran or was skipped."""

    name: str
    state: State
    text: str
    finding: Finding[T] | None = None

    @property
    def value(self) -> T:
        """The value of the check; raises `SkipError` if it has none, which skips the check that needs it."""
        if self.finding is None:
            raise SkipError(f'needs "{self.name}"' if self.state is State.PROBLEM else self.text)
        return self.finding.value


@dataclass
class Checkup:
    """Runs checks and prints each outcome on stdout: a table in a terminal, otherwise plain lines."""

    counts: Counter[State] = field(default_factory=Counter)
    console: Console = field(default_factory=Console)

    def check(self, name: str, run: Callable[[], Finding[T]]) -> Outcome[T]:
        """Runs one check. An error that it raises is its outcome, except an interrupt."""
        outcome: Outcome[T]
        try:
            finding = run()
            outcome = Outcome(name, State.WARNING if finding.warning else State.OK, finding.text, finding)
        except SkipError as reason:
            outcome = Outcome(name, State.SKIPPED, str(reason))
        except (Exception, SystemExit) as error:  # also from the user's code, which is imported here
            _log.info("%s", name, exc_info=error)
            kind = "" if isinstance(error, TorchbeamError) else f"{type(error).__name__}: "
            outcome = Outcome(name, State.PROBLEM, kind + one_line(error, 1000))
        outcome = replace(outcome, text=redact(outcome.text))
        self.counts[outcome.state] += 1
        self._show(outcome)
        return outcome

    def _show(self, outcome: Outcome[T]) -> None:
        if not self.console.is_terminal:
            print(f"{outcome.state:8} {outcome.name:{NAME_WIDTH}} {outcome.text}", flush=True)
            return
        colour = {State.OK: "green", State.WARNING: "yellow", State.PROBLEM: "bold red", State.SKIPPED: "dim"}
        row = Table.grid(padding=(0, 1))
        row.add_column(width=8)
        row.add_column(width=NAME_WIDTH)
        row.add_column()
        row.add_row(Text(outcome.state, colour[outcome.state]), Text(outcome.name), Text(outcome.text))
        self.console.print(row)
        sys.stdout.flush()
