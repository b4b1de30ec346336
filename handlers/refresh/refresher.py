"""`Refresher`: the model in memory, and a thread that exchanges it for a newer one."""

from __future__ import annotations

import logging
import sys
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from handlers.errors import TorchbeamError, one_line
from handlers.model.directory import ModelDir
from handlers.model.stores import shared_s3
from handlers.predict.predictor import Predictor
from handlers.predict.released import end_exempt, exempt, is_cyclic, reclaim, reclaimer
from handlers.redact import redact
from handlers.refresh.watch import Refresh, Target

_SOON = 1.0  # seconds until the next look, after one that saw something new
_TURN = 0.0005  # seconds
_COPIES = 3  # of remote models, for processes of this host that are behind
_STOP_SECONDS = 10.0  # how long the end of a process waits for a model that is being loaded
_log = logging.getLogger("torchbeam.refresh")


_refreshers: weakref.WeakSet[Refresher[Any]] = weakref.WeakSet()


class HasPredictor(Protocol):
    """What a loaded model has."""

    @property
    def predictor(self) -> Predictor:
        """The model in memory."""


T = TypeVar("T", bound=HasPredictor)
# Loads a model; `running` is the one that it is to replace, with whose columns it must agree. Raises to refuse it.
Load = Callable[[ModelDir, T | None], T]


class Refresher(Generic[T]):
    """Holds a model, and looks for a newer one in a thread until it is closed or nothing refers to it any more.

    A new model is loaded and tried beside the one that runs, and then takes its place at once. One that is refused is
    reported in one line and not tried again until its files change; the other goes on. A target is tried when two looks
    saw the same files, so that a directory that is being copied is left alone.

    Several threads may share one: each takes `current` once for a batch.

    Args:
        refresh: the location, and how often to look.
        first: the model with which the run began. It is loaded if the location has no other that works.
        load: loads a model and tries it.

    Attributes:
        current: the model that rows are scored with.
        version: its version.

    Raises:
        TorchbeamError: where `first` cannot be loaded.
    """

    current: T
    version: str

    def __init__(self, refresh: Refresh, first: ModelDir, load: Load[T]) -> None:
        self._watch = refresh.watch
        self._load = load
        self._looking = threading.Lock()
        self._tried: Target | None = None  # taken or refused
        self._candidate: Target | None = None  # seen once
        self._problem = ""
        self._reclaim: Callable[[], None] | None = None
        self._counting = threading.Lock()  # another one: no batch waits for a look
        self._counts: Counter[str] = Counter()
        self.version, self._digest = first.version, first.digest
        self._opened = deque([first])
        with shared_s3():
            newest = self._newest()
        model, self.current = newest or (first, load(first, None))
        if is_cyclic(self.current.predictor):  # to be freed by collections; what loading imports need not be looked at
            del self.current, newest
            exempt()
            self.current = load(model, None)
        else:
            exempt()
        stop = threading.Event()
        thread = threading.Thread(
            target=_watch, args=(weakref.ref(self), stop, refresh.every), name="torchbeam-refresh", daemon=True
        )
        self._close = weakref.finalize(self, _stop, stop, thread)
        _refreshers.add(self)
        thread.start()

    def look(self) -> bool:
        """Looks once. Gives whether to look again soon, rather than after the usual time."""
        with self._looking, shared_s3():
            if self._reclaim is not None:  # the last batch of the model that left is over
                self._reclaim()
                self._reclaim = None
            target = self._find()
            if target is None or target == self._tried:
                self._candidate = None
                return False
            if target != self._candidate:
                self._candidate = target
                return True
            self._try(target)
            return True

    def take_counts(self) -> Counter[str]:
        """What happened since the last call, for metrics: `models_refreshed`, `models_refused`, `model_lookups_failed`."""
        with self._counting:
            counts, self._counts = self._counts, Counter()
        return counts

    def close(self) -> None:
        """Ends the thread; the current model stays."""
        self._close()

    def _newest(self) -> tuple[ModelDir, T] | None:
        """The model that the location stands for, if it is another than the first and works: a worker may start late."""
        target = self._find()
        if target is None:
            return None
        self._tried = target
        try:
            model = self._watch.open(target)
            if model.digest == self._digest:
                return None
            found = self._load(model, None)
        except (Exception, SystemExit) as error:
            self._refused(target, error)
            return None
        self.version, self._digest = model.version, model.digest
        return model, found

    def _find(self) -> Target | None:
        """The target, or None where the location cannot be read, which is logged once."""
        try:
            target = self._watch.find()
        except Exception as error:  # the thread goes on, whatever happens
            self._count("model_lookups_failed")
            if (reason := _reason(error)) != self._problem:
                self._problem = reason
                _log.warning("no newer model can be looked for: %s; version %s goes on", reason, self.version)
            return None
        if self._problem:
            _log.info("the location of the model, %s, can be read again", redact(self._watch.location))
            self._problem = ""
        return target

    def _try(self, target: Target) -> None:
        self._tried, self._candidate = target, None
        started = time.perf_counter()
        try:
            model = self._watch.open(target)
            if model.digest == self._digest:
                return
            self._opened.append(model)
            with _quick_turns():
                new = self._load(model, self.current)
        except (Exception, SystemExit) as error:  # code of the model may exit
            self._reclaim = partial(reclaim, collect=True, on_gpu=self.current.predictor.device.type == "cuda")
            self._refused(target, error)
            return
        finally:
            self._forget()
        self._reclaim = reclaimer(self.current.predictor)
        old, self.version, self._digest, self.current = self.version, model.version, model.digest, new
        self._count("models_refreshed")
        _log.info(
            "the model is now version %s from %s, loaded in %.1f s; it was version %s",
            *(self.version, redact(target.path), time.perf_counter() - started, old),
        )

    def _forget(self) -> None:
        """Removes the local copies of remote models that were found long ago: every refresh leaves one."""
        while len(self._opened) > _COPIES:
            oldest = self._opened.popleft()
            if oldest.digest not in {self._digest, *(model.digest for model in self._opened)}:
                with suppress(Exception):  # the next one may work
                    oldest.forget()

    def _refused(self, target: Target, error: BaseException) -> None:
        self._count("models_refused")
        _log.warning(
            "the model at %s is refused: %s; version %s goes on", redact(target.path), _reason(error), self.version
        )

    def _count(self, name: str) -> None:
        with self._counting:
            self._counts[name] += 1


@contextmanager
def _quick_turns() -> Iterator[None]:
    """Has Python's threads take turns ten times as often as usual, for the time of the context.

    Scoring gives up the interpreter at every operation of torch and waits for a turn to have it back. While a program of
    torch.export was loaded, which is Python for 0.3 s, a chunk took 175 ms instead of 7.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(min(before, _TURN))
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def close_all() -> None:
    """Ends the threads of this process, when its run is over: Beam keeps the last model that it loaded."""
    for refresher in list(_refreshers):
        refresher.close()


def _reason(error: BaseException) -> str:
    return one_line(error) if isinstance(error, TorchbeamError) else f"{type(error).__name__}: {one_line(error)}"


def _watch(reference: weakref.ref[Refresher[T]], stop: threading.Event, every: float) -> None:
    """Looks until it is told to stop, or the refresher is gone; keeps no reference to it between two looks."""
    soon = False
    while not stop.wait(min(every, _SOON) if soon else every):
        refresher = reference()
        if refresher is None:
            return
        soon = refresher.look()
        del refresher


def _stop(stop: threading.Event, thread: threading.Thread) -> None:
    """Ends the thread, and waits for one that loads a model: the end of Python would leave it in the middle of that."""
    stop.set()
    if thread is not threading.current_thread() and thread.is_alive():
        thread.join(_STOP_SECONDS)
    end_exempt()
