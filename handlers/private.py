"""Folders private to this user in the temporary directory, where other users may create files beforehand."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from handlers.errors import UsageError


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
