"""Removes what runs leave in an output besides their files: temporary files and empty folders."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from handlers.paths import is_remote
from transforms.file_ops import join, remove_tree, written_below

ABANDONED = 24 * 3600.0  # seconds without a write after which files of a run without a claim are abandoned

_PREFIX = "_tmp-"
_RUN_ID = re.compile(r"[0-9a-f]{12}")


def temporary_folder(output: str, run_id: str) -> str:
    """The folder that a run writes to until it publishes; readers skip names that begin with an underscore."""
    return join(output, f"{_PREFIX}{run_id}")


def clean_up(output: str, run_id: str) -> None:
    """Removes the temporary folder of a failed run; ignores errors."""
    folder = temporary_folder(output, run_id)
    if not is_remote(output):
        # Renamed first: workers that outlive the run then find nothing to write to, also while the folder is removed.
        with suppress(OSError):
            folder = str(Path(folder).rename(temporary_folder(output, uuid.uuid4().hex[:12])))
    with suppress(Exception):  # the error of the run is the one to report
        remove_tree(folder)


def remove_abandoned(output: str, run_id: str, dead: str | None, now: float | None = None) -> list[str]:
    """Removes the temporary folders of runs that were killed; the run `run_id` must have claimed `output`.

    Args:
        output: the output, claimed by the run `run_id`.
        run_id: the run whose folder is kept.
        dead: the run whose dead claim was taken over. Folders of other runs are removed after a day without a write:
            they may belong to a job that was submitted without a claim.
        now: the current Unix time, for tests.

    Returns:
        the names of the folders that were removed.
    """
    now = time.time() if now is None else now
    removed = []
    for name, written in sorted(written_below(output, _PREFIX).items()):
        owner = name.removeprefix(_PREFIX)
        if owner == run_id or not _RUN_ID.fullmatch(owner):
            continue
        if owner == dead or (written is not None and now - written > ABANDONED):
            remove_tree(join(output, name))
            removed.append(name)
    return removed


def missing_folders(*paths: str) -> list[Path]:
    """The folders that would be created for `paths`, innermost first; none for paths in object stores."""
    found: list[Path] = []
    for path in paths:
        if not is_remote(path):
            folder = Path(path).absolute()
            found += [each for each in (folder, *folder.parents) if not each.exists() and each not in found]
    return sorted(found, key=lambda folder: len(folder.parts), reverse=True)


def remove_empty(folders: Sequence[Path]) -> None:
    """Removes the empty ones of `folders`, which are sorted innermost first."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()
