"""Folders private to this user in the temporary directory, where other users may create files beforehand."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import stat
import tempfile
import time
import weakref
from collections.abc import Callable
from pathlib import Path

from handlers.errors import UsageError

_SCRATCH = "torchbeam-"
_LOCK = ".lock"
_actions: list[Callable[[], object]] = []
_YOUNG_SECONDS = 60  # a folder may not be locked yet


def private_folder(name: str) -> Path:
    """The folder `NAME-UID` in the temporary directory, made where it is missing.

    Raises:
        UsageError: where it cannot be made, or another user could read or write there: where it is a link or no folder,
            belongs to someone else, or lets others in. It is never repaired, since what is in it may be theirs.
    """
    if not hasattr(os, "getuid"):  # Windows, where each user has a temporary directory
        folder = Path(tempfile.gettempdir()) / f"{name}-user"
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    folder = Path(tempfile.gettempdir()) / f"{name}-{os.getuid()}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
    except FileExistsError:
        pass  # a file or a dangling link, checked below
    except OSError as error:
        raise UsageError(f"{folder} cannot be made: {error.strerror}; set TMPDIR to a folder that you own") from None
    if problem := _problem(folder.lstat()):
        raise UsageError(f"{folder} is not used: it {problem}; remove it, or set TMPDIR to a folder that you own")
    return folder


def scratch_folder(parent: Path, owner: object) -> Path:
    """A new folder in `parent` that this user alone may read. It is removed with `owner`, or when the process ends.

    What killed processes left there is removed first.
    """
    import fcntl  # not available on Windows

    for left in parent.glob(f"{_SCRATCH}*/{_LOCK}"):
        with contextlib.suppress(OSError):  # in use, or someone else's
            if time.time() - left.stat().st_mtime > _YOUNG_SECONDS:
                with left.open("a") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(left.parent)
    folder = Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=parent))
    held = (folder / _LOCK).open("w")  # the kernel drops the lock when the process ends, however it ends
    fcntl.flock(held, fcntl.LOCK_EX)

    def remove() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        held.close()

    at_end(weakref.finalize(owner, remove))
    return folder


def at_end(action: Callable[[], object]) -> None:
    """Calls `action` before this process ends by itself, also where a command ends it with `os._exit`."""
    if not _actions:
        atexit.register(clean_up)
    _actions.append(action)


def clean_up() -> None:
    """Does what `at_end` was given; once."""
    while _actions:
        with contextlib.suppress(Exception):
            _actions.pop()()


def _problem(status: os.stat_result) -> str:
    """Why a folder is not this user's alone; empty where it is."""
    if stat.S_ISLNK(status.st_mode):
        return "is a link, which may lead to a folder of someone else"
    if not stat.S_ISDIR(status.st_mode):
        return "is no folder"
    if status.st_uid != os.getuid():
        return f"belongs to user {status.st_uid}, not to you"
    if stat.S_IMODE(status.st_mode) & 0o077:
        return f"lets other users in (mode {stat.S_IMODE(status.st_mode):04o})"
    return ""
