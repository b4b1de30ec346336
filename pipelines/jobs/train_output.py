"""The output of a training: who writes there, what an interrupted one has left, and how the model gets its place."""

from __future__ import annotations

import errno
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from handlers.errors import TorchbeamError, TrainingError, UsageError
from handlers.model.directory import MODEL_FILE
from handlers.model.files import TAG, TAG_TEXT, WORK_FOLDERS
from handlers.train.fit import LAST
from handlers.train.prepared import ABOUT
from pipelines.jobs.outputs import check_writable
from pipelines.jobs.train_options import OutputOptions
from transforms.evaluation.fingerprint import FILE
from transforms.processes import Process
from transforms.sinks.claims import CLAIM, OutputClaim, held
from transforms.sinks.publish import DEAD_LETTERS
from transforms.sinks.temporary import missing_folders, remove_empty

CHECKPOINTS, LOGS = WORK_FOLDERS
OPTIONS, ROWS = "options.json", "prepared"
EMPTY = "part-empty.parquet"  # what stands for no dead letters
_NEW = ".new-"
# What errors of a full disk say, of Beam's workers and of PyTorch, whose own names no error number.
_FULL = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT), "PytorchStreamWriter failed writing file")


@dataclass(frozen=True)
class TrainOutput:
    """The claimed output of a training.

    Attributes:
        folder: the model directory to be.
        resumed: whether a training continues there.
    """

    folder: Path
    resumed: bool

    @property
    def rows(self) -> Path:
        """Where the prepared rows are until the training ends, so that a resumed one has the same."""
        return self.folder / CHECKPOINTS / ROWS

    @property
    def has_rows(self) -> bool:
        """Whether they are complete."""
        return (self.rows / ABOUT).is_file()

    @property
    def dead_letters(self) -> Path:
        """Where the rows are that could not be prepared, if there are any."""
        return self.folder / CHECKPOINTS / DEAD_LETTERS

    @contextmanager
    def new(self) -> Iterator[Path]:
        """A folder to write the model directory to; it is removed if it is not published."""
        for old in self.folder.glob(f"{_NEW}*"):  # of a training that was killed
            shutil.rmtree(old, ignore_errors=True)
        folder = self.folder / f"{_NEW}{uuid.uuid4().hex[:12]}"
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, new: Path) -> None:
        """Moves a complete model directory to its place, `model.yaml` last: where it is, the training has ended."""
        kept = {*WORK_FOLDERS, CLAIM, new.name}
        for old in sorted(self.folder.iterdir(), key=lambda item: item.name != MODEL_FILE):
            if old.name not in kept and not old.name.startswith("."):
                shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()
        for item in sorted(new.iterdir(), key=lambda item: item.name == MODEL_FILE):
            item.replace(self.folder / item.name)
        if (self.rows / DEAD_LETTERS).is_dir() and not (self.rows / DEAD_LETTERS / EMPTY).exists():
            shutil.rmtree(self.dead_letters, ignore_errors=True)
            (self.rows / DEAD_LETTERS).rename(self.dead_letters)
        shutil.rmtree(self.rows, ignore_errors=True)
        (self.folder / CHECKPOINTS / OPTIONS).unlink(missing_ok=True)


@contextmanager
def claimed(
    sink: OutputOptions, options: Mapping[str, Any], tell: Callable[[str], None]
) -> Iterator[TrainOutput | None]:
    """Checks the output of a training and keeps others out of it until it has ended.

    What a training that cannot be continued has left is removed; an interrupted one can be continued.

    Args:
        sink: where the model goes.
        options: what determines the training; a resumed one must have the same.
        tell: called with lines for the user.

    Yields:
        the output; None if `--resume` finds a training that has ended.

    Raises:
        UsageError: if the output cannot be written, holds something else, or is claimed by another run.
    """
    folder = Path(sink.output)
    check_writable("--output", sink.output)
    made = missing_folders(sink.output)
    claim = OutputClaim(sink.output, uuid.uuid4().hex[:12], "", Process.current())
    try:
        with held(claim, tell):
            output = _opened(folder, sink, options)
            if output is None:
                yield None
                return
            try:
                yield output
            except BaseException as error:
                hopeless = isinstance(error, UsageError | TrainingError) or not (folder / CHECKPOINTS / LAST).exists()
                if hopeless and not output.resumed:
                    _clear(folder)
                raise
    finally:
        remove_empty(made)


@contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    """Says in one line what to do where the disk of an output, or of temporary files, is full; raises `TorchbeamError`."""
    try:
        yield
    except Exception as error:
        path = _full_at(error, folder)
        if path is None:
            raise
        resumable = (folder / CHECKPOINTS / LAST).exists()
        raise TorchbeamError(
            f"{path} cannot be written: no space is left on its disk ({_free(path)}); free some, or train into another "
            f"--output; then {'continue with --resume' if resumable else 'start again'}"
        ) from error


def _full_at(error: BaseException | None, folder: Path) -> Path | None:
    """Where a disk was full, if that is what `error` says."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            where = error.filename2 or error.filename  # of a copy the second is the target
            return Path(os.fsdecode(where)) if isinstance(where, str | bytes) else folder
        if any(text in str(error) for text in _FULL):
            return folder
        error = error.__cause__ or error.__context__
    return None


def _free(path: Path) -> str:
    there = next((each for each in (path, *path.absolute().parents) if each.exists()), Path("/"))
    return f"{shutil.disk_usage(there).free >> 20:,} MB are free"


def _opened(folder: Path, sink: OutputOptions, options: Mapping[str, Any]) -> TrainOutput | None:
    others = [item.name for item in folder.iterdir() if item.name != CLAIM and not item.name.startswith(_NEW)]
    finished, written = (folder / MODEL_FILE).is_file(), (folder / FILE).is_file()
    started = folder / CHECKPOINTS / OPTIONS
    if finished and not written:
        raise UsageError(f"--output {folder} is a model directory that no training has written; write elsewhere")
    if others and not finished and not started.is_file():
        raise UsageError(f"--output {folder} is not empty and holds no model of a training; write elsewhere")
    if sink.resume and started.is_file():
        _check_same(_read(started), options)
        return TrainOutput(folder, resumed=True)
    if sink.resume and finished:
        _check_same(_read(folder / FILE).get("options", {}), options)
        return None
    if others and not sink.overwrite:
        what = "a trained model;" if finished else "a training that has not ended; continue it with --resume, or"
        raise UsageError(f"--output {folder} holds {what} replace it with --overwrite")
    _clear(folder)
    for name in WORK_FOLDERS:
        (folder / name).mkdir()
        (folder / name / TAG).write_text(TAG_TEXT)
    started.write_text(json.dumps(options, indent=2) + "\n")
    return TrainOutput(folder, resumed=False)


def _check_same(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuses to continue a training with other options, whose result would be that of neither."""
    for name in {**before, **now}:
        if before.get(name) != now.get(name):
            was, are = (json.dumps(each.get(name)) for each in (before, now))
            shown = f" was {was}, and is {are} now" if len(was) + len(are) < 200 else " has changed"
            raise UsageError(
                f"--resume continues a training with its options: {name}{shown}; restore it, or use --overwrite"
            )


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read ({error}); start again with --overwrite") from None
    return found if isinstance(found, dict) else {}


def _clear(folder: Path) -> None:
    for name in WORK_FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)
