"""Folders in the temporary directory: only those of this user alone are used."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from handlers.errors import UsageError
from handlers.model import remote
from handlers.predict.slots import take_slot
from handlers.private import private_folder


@pytest.fixture(autouse=True)
def temp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_it_is_made_for_this_user_alone_and_found_again(temp: Path) -> None:
    folder = private_folder("torchbeam-x")
    assert folder == temp / f"torchbeam-x-{os.getuid()}"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (folder / "file").touch()
    assert (private_folder("torchbeam-x") / "file").exists()


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o750, 0o701])
def test_one_that_lets_others_in(temp: Path, mode: int) -> None:
    private_folder("torchbeam-x").chmod(mode)
    with pytest.raises(
        UsageError, match=rf"is not used: it lets other users in \(mode {mode:04o}\); .*TMPDIR"
    ) as error:
        private_folder("torchbeam-x")
    assert "\n" not in str(error.value)


def test_a_link(temp: Path) -> None:
    (temp / "real").mkdir(mode=0o700)
    (temp / f"torchbeam-x-{os.getuid()}").symlink_to(temp / "real")
    with pytest.raises(UsageError, match="it is a link"):
        private_folder("torchbeam-x")


def test_a_link_to_nothing_and_a_file(temp: Path) -> None:
    link = temp / f"torchbeam-x-{os.getuid()}"
    link.symlink_to(temp / "nowhere")
    with pytest.raises(UsageError, match="it is a link"):
        private_folder("torchbeam-x")
    link.unlink()
    link.touch()
    with pytest.raises(UsageError, match="it is no folder"):
        private_folder("torchbeam-x")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_one_of_another_user(temp: Path) -> None:
    os.chown(private_folder("torchbeam-x"), 12345, -1)
    with pytest.raises(UsageError, match="belongs to user 12345"):
        private_folder("torchbeam-x")


def test_who_uses_them(temp: Path) -> None:
    """The copies of models and the slots of GPUs."""
    for name in ("torchbeam-models", "torchbeam-slots"):
        private_folder(name).chmod(0o777)
    with pytest.raises(UsageError, match=r"torchbeam-models-.* is not used"):
        remote.download("tiny://models/m", lambda _: "")
    with pytest.raises(UsageError, match=r"torchbeam-slots-.* is not used"):
        take_slot(1)
    assert not list((temp / f"torchbeam-slots-{os.getuid()}").iterdir())
