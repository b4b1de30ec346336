"""`load` and `score`: a model and rows in this process, scored chunk by chunk by the objects that `Score` uses in a pipeline."""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from handlers.batching import Batching
from handlers.columnar.chunks import (
    DEAD_LETTER,
    NUMBERS,
    RESERVED,
    chunk_schema,
    dead_letter_schema,
    with_provenance,
    with_refusals,
)
from handlers.columnar.plan import Plan
from handlers.columnar.rechunker import Rechunker
from handlers.columnar.scorer import Scored, Scorer
from handlers.encode.columns import matching
from handlers.errors import UsageError
from handlers.model import files
from handlers.model.directory import ModelDir
from handlers.model.trust import Trust
from handlers.paths import is_remote
from handlers.predict.placement import Placement, Precision
from handlers.predict.predictor import Predictor
from transforms.accounting import Counts, report
from transforms.inference.score import SAMPLE_ROWS, Score
from transforms.local.frames import Frame, frame_of

RUNNER = "local"  # in the report
SOURCE = "data"  # of rows, in dead letters
MODELS = 4  # that stay in memory, the least recently used leaves first
PLANS = 16  # of each

_lock = threading.RLock()
_models: OrderedDict[tuple[Any, ...], Model] = OrderedDict()
_opened: dict[tuple[str, Trust | None], tuple[files.Stamps, ModelDir]] = {}


@dataclass(frozen=True)
class ScoreResult:
    """What became of rows.

    Attributes:
        predictions: the scored rows, in the order and the kind in which they came in.
        dead_letters: the rows that could not be scored, as they came in, with `dead_letter`: stage, type, message, source,
            row (its number, from 0), model_version and raw.
        report: the counts, with the keys of `report.json`.
    """

    predictions: Any = field(repr=False)
    dead_letters: Any = field(repr=False)
    report: dict[str, Any]

    def __repr__(self) -> str:
        found, model = self.report, self.report["model"]
        counts = ", ".join(f"{found[f'rows_{what}']:,} {what}" for what in ("scored", "dropped", "dead"))
        return f"ScoreResult({found['rows_read']:,} rows read: {counts}; {model['name']} {model['version']})"

    def _repr_html_(self) -> str:
        """The counts, for notebooks."""
        rows = "".join(
            f"<tr><td>rows {what}</td><td>{self.report[f'rows_{what}']:,}</td></tr>"
            for what in ("read", "scored", "dropped", "dead")
        )
        return f"<table>{rows}</table>"


@dataclass(frozen=True)
class Run:
    """The same in Arrow.

    Attributes:
        frame: the rows that were scored.
        plan: how.
        predictions: the scored rows.
        ids: int64: the number of the row of each of them.
        dead_letters: the rows that could not be scored.
        dead_ids: int64: the number of the row of each of them.
        report: the counts.
    """

    frame: Frame
    plan: Plan
    predictions: pa.Table
    ids: np.ndarray
    dead_letters: pa.Table
    dead_ids: np.ndarray
    report: dict[str, Any]


class Model:
    """A model in the memory of this process; `load` gives it. Several threads may share one.

    Attributes:
        directory: its model directory.
    """

    def __init__(self, directory: ModelDir, placement: Placement, batch_size: int | None) -> None:
        if directory.spec.sequences is not None:
            raise UsageError(
                f"model {directory.path} takes windows of rows (sequences), which need a pipeline: use torchbeam score"
            )
        self.directory = directory
        self._batching = Batching(batch_size=batch_size)
        self._predictor = Predictor(directory.load(), placement, batch_size)
        self._scorers: OrderedDict[tuple[Any, ...], Scorer] = OrderedDict()
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"Model({self.directory.path!r}, version {self.directory.version}, {self._predictor.device})"

    def score(
        self,
        data: Any,
        *,
        columns: Sequence[str] = ("*",),
        probabilities: bool = False,
        preprocess: Sequence[str] = (),
        postprocess: Sequence[str] = (),
    ) -> ScoreResult:
        """Scores rows; see `torchbeam.score`."""
        found = self.run(
            data, columns=columns, probabilities=probabilities, preprocess=preprocess, postprocess=postprocess
        )
        same = () if found.plan.chain.postprocess else found.plan.carried
        return ScoreResult(
            found.frame.back(found.predictions, found.ids, same),
            found.frame.back(found.dead_letters, found.dead_ids, found.frame.schema.names),
            found.report,
        )

    def run(
        self,
        data: Any,
        *,
        columns: Sequence[str] = ("*",),
        probabilities: bool = False,
        preprocess: Sequence[str] = (),
        postprocess: Sequence[str] = (),
    ) -> Run:
        """What `score` does, with the results in Arrow, as they come."""
        started = time.perf_counter()
        frame = frame_of(data, partial(matching, tuple(self.directory.spec.numeric_columns)))
        if taken := sorted(RESERVED.intersection(frame.schema.names)):
            hint = "; leave it out" if taken == [DEAD_LETTER] else ""
            raise UsageError(f'column "{taken[0]}" of data has a reserved name; rename it{hint}')
        chunks = _chunks(frame)
        first = next(chunks, None)
        sample = _empty(frame.schema) if first is None else first.slice(0, SAMPLE_ROWS)
        score = Score(
            self.directory,
            frame.schema,
            sample,
            columns=columns,
            preprocess=preprocess,
            postprocess=postprocess,
            probabilities=probabilities,
            batching=self._batching,
        )
        scorer, known = self._scorer(score, frame.schema, empty=first is None)
        rechunker = Rechunker(self._batching.chunk_rows, self._batching.chunk_bytes)
        scored: list[Scored] = []
        for chunk in () if first is None else _chain(first, chunks):
            scored += map(scorer.score, rechunker.push(chunk))
        scored += map(scorer.score, rechunker.flush())
        found = _joined(frame, scorer.plan, scored, self.directory, time.perf_counter() - started)
        if known and found.report["rows_read"] and not found.report["rows_scored"]:
            score.settle(self._predictor)  # raises what a new plan would raise, if the model scores no row at all
        return found

    def _scorer(self, score: Score, schema: pa.Schema, *, empty: bool) -> tuple[Scorer, bool]:
        """The scorer of these options and columns, and whether it is one from before."""
        key = (
            *((each.name, each.type, each.metadata == NUMBERS) for each in schema),
            *(tuple(score.columns), score.probabilities, empty),
        )
        spec = self.directory.spec
        by_schema = not (spec.features or spec.preprocess or spec.postprocess or score.preprocess or score.postprocess)
        if by_schema:
            with self._lock:
                if key in self._scorers:
                    self._scorers.move_to_end(key)
                    return self._scorers[key], True
        plan = score.settle(self._predictor)
        scorer = Scorer(self.directory, plan, self._predictor)
        if by_schema and spec.head.task != "raw" and not _depends_on_rows(plan, schema):
            with self._lock:
                self._scorers[key] = scorer
                if len(self._scorers) > PLANS:
                    self._scorers.popitem(last=False)
        return scorer, False


def load(
    model: ModelDir | str | os.PathLike[str],
    *,
    device: str = "auto",
    precision: Precision = "float32",
    batch_size: int | None = None,
    trust: Trust | None = None,
) -> Model:
    """Loads a model into this process, or gives the one that is loaded already.

    Args:
        model: a model directory, its path, or the path of a bare `.pt2` or TorchScript file; local or remote.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        precision: `float32`, `bfloat16` or `float16`.
        batch_size: rows of a call of the model; None chooses by the bytes of a row.
        trust: how far the directory of a path is trusted.

    Raises:
        UsageError: if the model cannot be read or is not trusted so far, or the device is missing.
    """
    placement = Placement(device, precision)
    with _lock:  # one load at a time, so that no model is loaded twice
        directory = model if isinstance(model, ModelDir) else _open(os.fspath(model), trust)
        key = (directory.path, directory.digest, directory.trust, placement, batch_size)
        found = _models.pop(key, None) or Model(directory, placement, batch_size)
        _models[key] = found
        if len(_models) > MODELS:
            _models.popitem(last=False)
        return found


def score(
    model: ModelDir | Model | str | os.PathLike[str],
    data: Any,
    *,
    columns: Sequence[str] = ("*",),
    probabilities: bool = False,
    preprocess: Sequence[str] = (),
    postprocess: Sequence[str] = (),
    device: str = "auto",
    precision: Precision = "float32",
    batch_size: int | None = None,
) -> ScoreResult:
    """Scores rows in this process: the same predictions, dead letters and reasons as `torchbeam score`.

    Up to four models stay loaded, so that a further call is quick; a model directory that changed is loaded again.

    Args:
        model: what `load` takes, or a `Model`, which has its own device, precision and batch size.
        data: a pandas or Polars frame, an Arrow table, record batch or reader, or a list of dicts.
        columns: names and patterns of the columns that are copied into the predictions.
        probabilities: whether a classification also gives the probability of every class.
        preprocess: functions on rows, as `module:function`, after those of the model directory.
        postprocess: functions on predictions, likewise.
        device: see `load`.
        precision: see `load`.
        batch_size: see `load`.

    Returns:
        Predictions and dead letters as rows of the kind of `data`. Frames of pandas keep the index of their rows, and
        columns that no function changed keep their dtype.

    Raises:
        UsageError: for data, columns or functions that do not match the model.
        BrokenModelError: if the model fails on each of the first rows, and on zeros.
    """
    if not isinstance(model, Model):
        model = load(model, device=device, precision=precision, batch_size=batch_size)
    return model.score(
        data, columns=columns, probabilities=probabilities, preprocess=preprocess, postprocess=postprocess
    )


def _open(path: str, trust: Trust | None) -> ModelDir:
    """The model directory at `path`, read again only if its files were written to. Remote ones are read every time."""
    if is_remote(path):
        return ModelDir(path, trust)
    local = Path(path).absolute()
    key = (str(local), trust)
    stamps = files.stamps(local, files.names(local)) if local.exists() else {}
    if not stamps or key not in _opened or _opened[key][0] != stamps:
        _opened[key] = (stamps, ModelDir(path, trust))
    return _opened[key][1]


def _depends_on_rows(plan: Plan, schema: pa.Schema) -> bool:
    """Whether the rows decide about the plan: the lengths of lists, or no input could be bound without them."""
    kinds = [schema.field(name).type for bound in plan.inputs for name in bound.columns]
    return not plan.inputs or any(map(pa.types.is_nested, kinds)) or any(bound.padding for bound in plan.inputs)


def _chunks(frame: Frame) -> Iterator[pa.RecordBatch]:
    """The rows of a frame with provenance, those with a value that does not fit marked as refused."""
    start = 0
    for batch in frame.batches():
        stop = start + batch.num_rows
        refused = {row - start: failure for row, failure in frame.refusals.items() if start <= row < stop}
        if batch.num_rows:
            yield with_refusals(with_provenance(batch, SOURCE, start), refused)
        start = stop


def _chain(first: pa.RecordBatch, others: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    yield first
    yield from others


def _empty(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([], schema=chunk_schema(schema))


def _joined(frame: Frame, plan: Plan, scored: Sequence[Scored], model: ModelDir, seconds: float) -> Run:
    counts = Counts()
    ids: list[np.ndarray] = [np.empty(0, np.int64)]
    for part in scored:
        ids.append(part.ids + counts.rows_read)
        counts += Counts(
            rows_read=part.predictions.num_rows + part.dropped + part.dead_letters.num_rows,
            rows_scored=part.predictions.num_rows,
            rows_dropped=part.dropped,
            rows_dead=part.dead_letters.num_rows,
            dead_by_error=dict(part.dead_by_error),
            noted=dict(part.stats.counts),
        )
    if frame.rows is not None:  # what came in, not what came out
        counts = replace(counts, rows_read=frame.rows)
    predictions = pa.Table.from_batches([part.predictions for part in scored], schema=plan.output)
    dead = pa.Table.from_batches([part.dead_letters for part in scored], schema=dead_letter_schema(frame.schema))
    dead_ids = dead.column(DEAD_LETTER).combine_chunks().field("row").to_numpy(zero_copy_only=False)
    found = report(counts, model_name=model.spec.name, model_version=model.version, runner=RUNNER, seconds=seconds)
    return Run(frame, plan, predictions, np.concatenate(ids), dead, dead_ids.astype(np.int64), found)
