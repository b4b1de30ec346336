"""`load` and `score`: a model and rows in this process, scored chunk by chunk by the objects that `Score` uses in a pipeline."""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from handlers.batching import Batching
from handlers.columnar.chunks import DEAD_LETTER, NUMBERS, dead_letter_schema
from handlers.columnar.plan import Plan
from handlers.columnar.rechunker import Rechunker
from handlers.columnar.scorer import Scored, Scorer
from handlers.encode.columns import matching
from handlers.errors import UsageError
from handlers.model import files
from handlers.model.directory import ModelDir, opened
from handlers.model.trust import Trust, trust_of
from handlers.paths import is_remote
from handlers.predict.placement import Placement, Precision
from handlers.predict.predictor import Predictor
from transforms.accounting import Counts, report
from transforms.inference.score import SAMPLE_ROWS, Score, check_takes_rows, counts_of
from transforms.local.files import Files
from transforms.local.frames import frame_of
from transforms.local.rows import Rows
from transforms.progress_bar import ProgressBar, is_interactive

RUNNER = "local"  # in the report
PROGRESS_SECONDS = 1.0  # until progress is shown
MODELS = 4  # that stay in memory, the least recently used leaves first
PLANS = 16  # of each

_lock = threading.RLock()
_models: OrderedDict[tuple[Any, ...], Model] = OrderedDict()
_opened: dict[tuple[str, Trust | None], tuple[files.Stamps, ModelDir]] = {}


@dataclass(frozen=True)
class ScoreResult:
    """What became of rows.

    Attributes:
        predictions: the scored rows, in the order and the kind in which they came in; of files, a `pa.Table`.
        dead_letters: the rows that could not be scored, as they came in, with `dead_letter`: stage, type, message, source,
            row (its number, from 0), model_version and raw.
        report: the counts, with the keys of `report.json`.
        failed_files: the files that could not be read, or not to their end, with the keys of `failed_files.jsonl`: path,
            error, and rows, the number of those before.
    """

    predictions: Any = field(repr=False)
    dead_letters: Any = field(repr=False)
    report: dict[str, Any]
    failed_files: Sequence[dict[str, Any]] = ()

    def __repr__(self) -> str:
        found, model = self.report, self.report["model"]
        counts = ", ".join(f"{found[f'rows_{what}']:,} {what}" for what in ("scored", "dropped", "dead"))
        files = f"; {found['files_dead']:,} files could not be read" if found["files_dead"] else ""
        return f"ScoreResult({found['rows_read']:,} rows read: {counts}{files}; {model['name']} {model['version']})"

    def _repr_html_(self) -> str:
        """The counts, for notebooks."""
        rows = "".join(
            f"<tr><td>rows {what}</td><td>{self.report[f'rows_{what}']:,}</td></tr>"
            for what in ("read", "scored", "dropped", "dead")
        )
        if self.report["files_dead"]:
            rows += f"<tr><td>files that could not be read</td><td>{self.report['files_dead']:,}</td></tr>"
        return f"<table>{rows}</table>"


@dataclass(frozen=True)
class Run:
    """The same in Arrow.

    Attributes:
        rows: the rows that were scored.
        plan: how.
        predictions: the scored rows.
        ids: int64: the number of the row of each of them.
        dead_letters: the rows that could not be scored.
        dead_ids: int64: the number of the row of each of them.
        report: the counts.
    """

    rows: Rows
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
        check_takes_rows(directory)
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
        input_format: str | None = None,
        progress: bool | None = None,
    ) -> ScoreResult:
        """Scores rows; see `torchbeam.score`."""
        rows = self._rows(data, input_format)
        found = self.run(
            rows,
            columns=columns,
            probabilities=probabilities,
            preprocess=preprocess,
            postprocess=postprocess,
            progress=progress,
        )
        same = () if found.plan.chain.postprocess else found.plan.carried
        return ScoreResult(
            rows.back(found.predictions, found.ids, same),
            rows.back(found.dead_letters, found.dead_ids, rows.schema.names),
            found.report,
            rows.failed_files,
        )

    def _rows(self, data: Any, input_format: str | None) -> Rows:
        """The rows of `data`; raises `UsageError` for what is neither rows nor a path."""
        numeric = tuple(self.directory.spec.numeric_columns)
        if isinstance(data, str | os.PathLike):
            path = os.fspath(data)
            if not isinstance(path, str) or not path.strip() or "\0" in path:
                raise UsageError(f"data is the path {path!r}; give a file, a directory or a pattern")
            return Files(path, input_format, numeric, self._batching)
        if input_format is not None:
            raise UsageError("input_format is for files: give data as a path, or leave input_format out")
        return frame_of(data, partial(matching, numeric))

    def run(
        self,
        rows: Rows,
        *,
        columns: Sequence[str] = ("*",),
        probabilities: bool = False,
        preprocess: Sequence[str] = (),
        postprocess: Sequence[str] = (),
        progress: bool | None = False,
    ) -> Run:
        """What `score` does, with the results in Arrow, as they come."""
        if not isinstance(progress, bool | None):
            raise UsageError(f"progress must be True, False or None, not {progress!r}")
        started = time.perf_counter()
        so_far = Counts()
        shown = is_interactive() if progress is None else progress
        with ProgressBar(lambda: (so_far, ""), rows.rows, delay=PROGRESS_SECONDS) if shown else nullcontext():
            sample = rows.sample()
            score = Score(
                self.directory,
                rows.schema,
                sample.slice(0, SAMPLE_ROWS),
                columns=columns,
                preprocess=preprocess,
                postprocess=postprocess,
                probabilities=probabilities,
                batching=self._batching,
            )
            scorer, known = self._scorer(score, rows.schema, empty=not sample.num_rows)
            rechunker = Rechunker(self._batching.chunk_rows, self._batching.chunk_bytes)
            chunks = rows.chunks(scorer.plan.needed, self.directory.version)
            scored: list[Scored] = []
            for chunk in _rechunked(chunks, rechunker):
                scored.append(scorer.score(chunk))
                so_far += counts_of(scored[-1])
        found = _joined(rows, scorer.plan, scored, self.directory, time.perf_counter() - started)
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
        UsageError: if the model is of another kind, cannot be read or is not trusted so far, or the device is missing; if
            `trust` is no `Trust`, or is given for a `ModelDir`, which has its own.
    """
    placement = Placement(device, precision)
    with _lock:  # one load at a time, so that no model is loaded twice
        directory = opened(model, trust, _open)
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
    trust: Trust | None = None,
    input_format: str | None = None,
    progress: bool | None = None,
) -> ScoreResult:
    """Scores rows in this process: the same predictions, dead letters and reasons as `torchbeam score`.

    Up to four models stay loaded, so that a further call is quick; a model directory that changed is loaded again.

    All results are in memory, as Arrow tables at first: at the peak they take the bytes of `predictions` and `dead_letters`,
    twice that for pandas. Files are read chunk by chunk, at most 65,536 rows or 64 MB at once, so that they are never in
    memory as a whole; `columns` keeps the results small. For more rows than memory holds, use the command.

    Args:
        model: what `load` takes, or a `Model`, which has its own device, precision and batch size.
        data: a pandas or Polars frame, an Arrow table, record batch or reader, or a list of dicts. Or what `--input` of the
            command takes, as text or a path: a file, a folder or a pattern of Parquet, CSV, JSON lines, Avro, text or images,
            local or remote, or `bigquery:…`.
        columns: names and patterns of the columns that are copied into the predictions.
        probabilities: whether a classification also gives the probability of every class.
        preprocess: functions on rows, as `module:function`, after those of the model directory.
        postprocess: functions on predictions, likewise.
        device: see `load`.
        precision: see `load`.
        batch_size: see `load`.
        trust: see `load`; `Trust(code=False)` is `--no_model_code` of the command.
        input_format: the format of files whose extensions do not say it: parquet, csv, jsonl, avro, text or image.
        progress: whether progress is shown after the first second: a bar in a terminal or a notebook, elsewhere a line on
            stderr every 15 seconds. None shows the bar, but no lines.

    Returns:
        Predictions and dead letters as rows of the kind of `data`, Arrow tables for files. Frames of pandas keep the index of
        their rows, and columns that no function changed keep their dtype.

    Raises:
        UsageError: for data, columns or functions that do not match the model, files that are not there or have no format
            in common, a model that is not trusted so far, and an argument of another kind. A file that cannot be read is in
            `failed_files`.
        BrokenModelError: if the model fails on each of the first rows, and on zeros.
    """
    if not isinstance(model, Model):
        model = load(model, device=device, precision=precision, batch_size=batch_size, trust=trust)
    elif trust_of(trust) is not None:
        raise UsageError("the model is loaded already: give trust to torchbeam.load, or leave it out")
    return model.score(
        data,
        columns=columns,
        probabilities=probabilities,
        preprocess=preprocess,
        postprocess=postprocess,
        input_format=input_format,
        progress=progress,
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


def _rechunked(chunks: Iterator[pa.RecordBatch], rechunker: Rechunker) -> Iterator[pa.RecordBatch]:
    for chunk in chunks:
        yield from rechunker.push(chunk)
    yield from rechunker.flush()


def _joined(rows: Rows, plan: Plan, scored: Sequence[Scored], model: ModelDir, seconds: float) -> Run:
    counts = rows.counts()
    ids: list[np.ndarray] = [np.empty(0, np.int64)]
    start = 0
    for part in scored:
        ids.append(part.ids + start)
        counts += counts_of(part)
        start += part.predictions.num_rows + part.dropped + part.dead_letters.num_rows
    predictions = pa.Table.from_batches([part.predictions for part in scored], schema=plan.output)
    letters = [*rows.dead_letters, *(part.dead_letters for part in scored)]
    dead = pa.Table.from_batches(letters, schema=dead_letter_schema(rows.schema))
    if rows.dead_letters:
        dead = dead.take(_in_order(dead))
    dead_ids = dead.column(DEAD_LETTER).combine_chunks().field("row").to_numpy(zero_copy_only=False)
    found = report(counts, model_name=model.spec.name, model_version=model.version, runner=RUNNER, seconds=seconds)
    return Run(rows, plan, predictions, np.concatenate(ids), dead, dead_ids.astype(np.int64), found)


def _in_order(dead: pa.Table) -> pa.Array:
    """The order of dead letters by source and row."""
    letters = dead.column(DEAD_LETTER)
    origins = pa.table({name: pc.struct_field(letters, name) for name in ("source", "row")})
    return pc.sort_indices(origins, [("source", "ascending"), ("row", "ascending")])
