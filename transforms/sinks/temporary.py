"""What a run leaves in its output beside its files, and how that goes: temporary files, and folders without anything."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from handlers.paths import is_remote
from transforms.file_ops import join, remove_tree, written_below

ABANDONED = 24 * 3600.0  # seconds without a write, after which files of a run without a claim are nobody's

_PREFIX = "_tmp-"
_RUN_ID = re.compile(r"[0-9a-f]{12}")


def temporary_folder(output: str, run_id: str) -> str:
    """Where a run writes until it is published; readers skip names that begin with an underscore."""
    return join(output, f"{_PREFIX}{run_id}")


def clean_up(output: str, run_id: str) -> None:
    """Removes the temporary folder of a run that failed, as well as it can."""
    folder = temporary_folder(output, run_id)
    if not is_remote(output):
        # Under another name first: workers that outlive the run find nothing to write to, also while this is removed.
        with suppress(OSError):
            folder = str(Path(folder).rename(temporary_folder(output, uuid.uuid4().hex[:12])))
    with suppress(Exception):  # the run has failed with an error of its own, which is the one to be told
        remove_tree(folder)


def remove_abandoned(output: str, run_id: str, dead: str | None, now: float | None = None) -> list[str]:
    """Removes the temporary folders of runs that were killed; the run `run_id` must have claimed `output`.

    Args:
        output: whose claim keeps other runs out.
        run_id: whose folder stays.
        dead: the run whose dead claim was taken over. Folders of others go once nothing was written to them for a day:
            they may belong to a job that was submitted from where no claim could be made.
        now: in Unix time, for tests.

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
    """The folders that would be made for `paths`, the innermost first; none where a path is in an object store."""
    found: list[Path] = []
    for path in paths:
        if not is_remote(path):
            folder = Path(path).absolute()
            found += [each for each in (folder, *folder.parents) if not each.exists() and each not in found]
    return sorted(found, key=lambda folder: len(folder.parts), reverse=True)


def remove_empty(folders: Sequence[Path]) -> None:
    """Removes those of `folders`, the innermost first, that are there and in which nothing is."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()
