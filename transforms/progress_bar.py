"""Shows how many rows are done while they are scored."""

from __future__ import annotations

import contextvars
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from transforms.accounting import Counts

LOG_SECONDS = 15.0
_TERMINAL_SECONDS, _NOTEBOOK_SECONDS = 0.2, 0.5

# The counts so far, None if they are not known here, and the state in a few words, which may be empty.
State = Callable[[], tuple[Counts | None, str]]


def is_interactive() -> bool:
    """Whether a bar can be shown: in a terminal or in a notebook."""
    console = Console(stderr=True)
    return console.is_terminal or console.is_jupyter


class ProgressBar:
    """Shows progress from another thread: a bar in a terminal (on stderr) or a notebook, otherwise a line every 15 seconds.

    Use it as a context manager. The bar is removed at the end.

    Args:
        state: gives the progress.
        total: the total number of rows, if known.
        what: the name of the activity, for the display.
        delay: seconds until the bar is shown.
    """

    def __init__(self, state: State, total: int | None, what: str = "scoring", delay: float = 0.0) -> None:
        self._state = state
        self._total = total
        self._what = what
        self._delay = delay
        self._console = Console(stderr=True)
        self._done = threading.Event()
        # A notebook finds the cell of an output by a context variable.
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._show,), name="progress", daemon=True)

    def __enter__(self) -> ProgressBar:
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def _show(self) -> None:
        if self._console.is_jupyter or self._console.is_terminal:
            if not self._done.wait(self._delay):
                self._show_bar()
        else:
            self._show_lines()

    def _show_bar(self) -> None:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[what]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        bar = Progress(*columns, console=self._console, transient=True)
        task = bar.add_task(self._what, total=self._total, what="")

        def update() -> None:
            rows, what = self._progress()
            bar.update(task, completed=rows, what=what)

        if self._console.is_jupyter:
            self._show_in_notebook(bar, update)
            return
        with bar:
            update()
            while not self._done.wait(_TERMINAL_SECONDS):
                update()

    def _show_in_notebook(self, bar: Progress, update: Callable[[], None]) -> None:
        """Shows the bar as an output of the cell; rich itself would need ipywidgets to change it."""
        from IPython.display import HTML, display

        update()
        output = display(bar.make_tasks_table(bar.tasks), display_id=True)
        while not self._done.wait(_NOTEBOOK_SECONDS):
            update()
            output.update(bar.make_tasks_table(bar.tasks))
        output.update(HTML(""))

    def _show_lines(self) -> None:
        while not self._done.wait(LOG_SECONDS):
            rows, what = self._progress()
            share = f" ({rows / self._total:.0%})" if self._total else ""
            seconds = time.monotonic() - self._began
            print(f"{self._what}: {what}{share}, {seconds:.0f} s", file=sys.stderr, flush=True)

    def _progress(self) -> tuple[int, str]:
        counts, state = self._state()
        if counts is None:
            return 0, state or "running"
        rows = counts.rows_scored + counts.rows_dropped + counts.rows_dead
        rate = rows / max(time.monotonic() - self._began, 1e-9)
        dead = f", {counts.rows_dead:,} dead letters" if counts.rows_dead else ""
        return rows, f"{rows:,} rows, {rate:,.0f} rows/s{dead}{state and f' ({state})'}"
