"""A model for each key: loaded when first needed; the least recently used leaves when the memory for models is full."""

from __future__ import annotations

import ctypes
import gc
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from handlers.columnar.chains import Rows
from handlers.columnar.chunks import single_batch
from handlers.columnar.hashes import as_texts
from handlers.columnar.plan import Plan
from handlers.columnar.planning import make_plan
from handlers.columnar.scorer import Scorer
from handlers.errors import BrokenModelError, UsageError, one_line
from handlers.failures import RowFailure, RowFailures
from handlers.graph.plan import ByKey, Node
from handlers.graph.scorer import Answered
from handlers.model.directory import ModelDir
from handlers.predict.predictor import Predictor
from handlers.stats import Stats

STAGE = "by_key"  # of the dead letters of rows without a model


@dataclass
class _Loaded:
    scorer: Scorer
    predictor: Predictor
    bytes: int
    users: int = 0


class KeyedModels:
    """The models of `by_key` in one process. Several threads may share one.

    Models that are in use stay: each thread uses one at a time, and one that needs room waits for the others.

    Args:
        node: the model of the plan.
        by_key: where its models are.

    Attributes:
        peak_bytes: the most bytes of parameters and buffers at once.
    """

    def __init__(self, node: Node, by_key: ByKey) -> None:
        self._node = node
        self._by_key = by_key
        self._outputs = pa.schema([node.schema.field(source) for _, source in node.outputs])
        self._changed = threading.Condition()
        self._loaded: OrderedDict[str, _Loaded] = OrderedDict()  # by path, the least recently used first
        self._known: dict[str, tuple[ModelDir, Plan, int]] = {}  # what loading again need not find out again
        self._failed: dict[str, str] = {}
        self._bytes = 0
        self.peak_bytes = 0

    def answer(self, chunk: pa.RecordBatch) -> Answered:
        """Scores the rows of a chunk, model by model: those that are loaded first, each other is loaded once."""
        groups, failures = self._groups(chunk)
        parts: list[pa.RecordBatch] = []
        ids: list[np.ndarray] = []
        stats = Stats()
        versions: dict[int, str | None] = {}
        loads = 0
        with self._changed:
            order = sorted(groups, key=lambda path: path not in self._loaded)
        for path in order:
            rows = groups[path]
            try:
                answered, failed, done, version, fresh = self._answer(path, chunk.take(pa.array(rows)))
            except _LoadError as error:
                failures |= dict.fromkeys(rows.tolist(), RowFailure(STAGE, "NotLoaded", str(error)))
                continue
            except BrokenModelError as error:  # the models of other keys may work
                failures |= dict.fromkeys(rows.tolist(), RowFailure(STAGE, "BrokenModel", one_line(error)))
                continue
            loads += fresh
            parts.append(answered.batch.select(self._outputs.names))
            ids.append(rows[answered.ids])
            failures |= {int(rows[index]): failure for index, failure in failed.items()}
            versions |= dict.fromkeys(rows[list(failed)].tolist(), version)
            stats.add(done)
        batch = single_batch(pa.Table.from_batches(parts, self._outputs))
        rows_of = Rows(batch, np.concatenate([np.zeros(0, np.int64), *ids]))
        return Answered(rows_of, failures, stats, versions, loads, self.peak_bytes)

    def _answer(self, path: str, rows: pa.RecordBatch) -> tuple[Rows, RowFailures, Stats, str, bool]:
        """The answers of a model, its version, and whether it was loaded for them. Keeps no reference to it."""
        with self._borrowed(path) as (scorer, fresh):
            return *scorer.answer(rows), scorer.stage.version, fresh

    def _groups(self, chunk: pa.RecordBatch) -> tuple[dict[str, np.ndarray], RowFailures]:
        """The indices of the rows of each model, by its path, and the rows without a model."""
        keys = as_texts(chunk.column(self._by_key.column)).dictionary_encode()
        names = [*keys.dictionary.to_pylist(), None]
        codes = keys.indices.fill_null(len(names) - 1).to_numpy(zero_copy_only=False)
        paths = [self._by_key.path_of(name) for name in names]
        index = {path: number for number, path in enumerate(dict.fromkeys(paths))}
        targets = np.array([index[path] for path in paths])[codes]  # many keys may have the default
        order = np.argsort(targets, kind="stable")
        starts = np.searchsorted(targets[order], np.arange(len(index) + 1))
        groups = {path: order[starts[number] : starts[number + 1]] for path, number in index.items()}
        failures = {
            int(row): RowFailure(STAGE, "UnknownKey", self._unknown(names[codes[row]])) for row in groups.pop(None, ())
        }
        return {path: rows for path, rows in groups.items() if path is not None and len(rows)}, failures

    def _unknown(self, name: str | None) -> str:
        column = self._by_key.column
        what = f'column "{column}" is null' if name is None else f'column "{column}" holds "{name[:80]}"'
        return one_line(ValueError(f"{what}, for which there is no model in {self._by_key.folder}, and no default"))

    @contextmanager
    def _borrowed(self, path: str) -> Iterator[tuple[Scorer, bool]]:
        """A model that is not evicted meanwhile, and whether it was loaded for this; raises `_LoadError`."""
        with self._changed:
            if path in self._failed:
                raise _LoadError(self._failed[path])
            self._make_room(path)
            fresh = path not in self._loaded
            found = self._load(path) if fresh else self._loaded[path]
            found.users += 1
            self._loaded.move_to_end(path)
        try:
            yield found.scorer, fresh
        finally:
            with self._changed:
                found.users -= 1
                self._changed.notify_all()

    def _make_room(self, path: str) -> None:
        """Evicts models until there is room for the one at `path`, or it is loaded; waits for those in use."""
        sizes = {known: size for known, (_, _, size) in self._known.items()}
        # Of a model that was never loaded the size is a guess: that of the largest so far.
        expected = sizes.get(path, max([self._node.bytes, *sizes.values()]))
        while path not in self._loaded and self._loaded and self._bytes + expected > self._by_key.memory:
            if not self._evict():
                self._changed.wait()

    def _load(self, path: str) -> _Loaded:
        """Loads a model, with the lock held, so that each is loaded once."""
        try:
            loaded = self._opened(path)
        except (UsageError, BrokenModelError) as error:
            self._failed[path] = one_line(error)
            raise _LoadError(self._failed[path]) from error
        self._loaded[path] = loaded
        self._bytes += loaded.bytes
        loaded.users += 1  # keeps it from being evicted
        while self._bytes > self._by_key.memory and self._evict():
            pass
        loaded.users -= 1
        self.peak_bytes = max(self.peak_bytes, self._bytes)
        return loaded

    def _opened(self, path: str) -> _Loaded:
        settings, by_key = self._node.settings, self._by_key
        model = self._known[path][0] if path in self._known else ModelDir(path, by_key.trust, by_key.registry)
        if model.spec.env_vars != settings.model.spec.env_vars:
            raise UsageError(f"{path} has other env_vars than {settings.model.path}; models of one process share them")
        if model.spec.sequences is not None:
            raise UsageError(f"{path} takes windows (sequences in its model.yaml), which are not cut for by_key")
        predictor = Predictor(model.load(), settings.placement, settings.batch_size)
        size = predictor.load_since(0).bytes
        if size > by_key.memory:
            raise UsageError(
                f"{path} has {size:,} bytes of parameters, more than memory in by_key ({by_key.memory:,} bytes)"
            )
        if path not in self._known:
            self._known[path] = model, self._planned(model, predictor), size
        return _Loaded(Scorer(model, self._known[path][1], predictor), predictor, size)

    def _planned(self, model: ModelDir, predictor: Predictor) -> Plan:
        """How the model scores a row; refuses one with other outputs than the model that the run was planned with."""
        by_key = self._by_key
        chain = type(self._node.plan.chain).of(model.spec)
        columns = ("*",) if chain.postprocess else ()
        plan = make_plan(model, predictor, by_key.sample, chain, columns, probabilities=self._node.plan.probabilities)
        carried = set(plan.carried)
        made = pa.schema([field for field in plan.output or () if field.name not in carried])
        if not made.equals(self._outputs):
            other = self._node.settings.model.path
            raise UsageError(f"{model.path} has the outputs {_shown(made)}, and {other} {_shown(self._outputs)}")
        return plan

    def _evict(self) -> bool:
        """Drops the least recently used model that is not in use; gives whether there was one."""
        path = next((path for path, each in self._loaded.items() if not each.users), None)
        if path is None:
            return False
        dropped = self._loaded.pop(path)
        self._bytes -= dropped.bytes
        alive = _reference(dropped.predictor.module)
        on_gpu = dropped.predictor.device.type == "cuda"
        del dropped
        if alive() is not None:  # it is part of a cycle, as programs of torch.export are
            gc.collect()
        if on_gpu:
            torch.cuda.empty_cache()
        _trim()
        return True


class _LoadError(Exception):
    """A model cannot be used; the message says why."""


def _trim() -> None:
    """Gives freed memory back to the system: glibc keeps it, and 365 loads of 20 MB then took 1.6 GB where 100 MB were in use."""
    with suppress(AttributeError, OSError):  # other C libraries have no such function
        ctypes.CDLL(None).malloc_trim(0)


def _reference(module: Any) -> Any:
    try:
        return weakref.ref(module)
    except TypeError:
        return lambda: module


def _shown(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema)
