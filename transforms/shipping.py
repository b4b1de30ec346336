"""How a model directory reaches the workers of Spark and Ray: as a zip file that they distribute."""

from __future__ import annotations

import tempfile
import zipfile
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from handlers.errors import UsageError
from handlers.model import files
from handlers.model.directory import ModelDir
from handlers.model.trust import Trust


@dataclass(frozen=True)
class Shipped:
    """A model in a zip file that the engine distributes. Picklable; it travels to the workers.

    Attributes:
        name: of the zip file.
        sha256: of the zip file.
        file: the name of the model where it is one file; empty for a directory.
        digest: of the model.
        trust: how far it is trusted.
    """

    name: str
    sha256: str
    file: str
    digest: str
    trust: Trust

    def open(self, root: Path) -> ModelDir:
        """The model on this machine, unpacked once below `root`, the folder of the zip file.

        Raises:
            UsageError: where the zip file or the model is not the one that was shipped.
        """
        zipped = root / self.name
        if not zipped.is_file() or files.sha256(zipped) != self.sha256:
            raise UsageError(f"{zipped} is missing here, or is not the model that was shipped")
        folder = zipped.with_suffix("")
        if not folder.is_dir():
            # Several processes may do this at once. The first one wins, and a killed one leaves no half of a model.
            with tempfile.TemporaryDirectory(dir=root, prefix="unpacking-") as temporary:
                with zipfile.ZipFile(zipped) as archive:
                    archive.extractall(temporary)
                with suppress(OSError):
                    Path(temporary).rename(folder)
                Path(temporary).mkdir(exist_ok=True)  # for its removal
        return ModelDir(folder / self.file, replace(self.trust, version=self.digest))


def ship(model: ModelDir, folder: Path) -> tuple[Shipped, Path]:
    """Packs a model into a zip file in `folder`."""
    local = model.local()
    names = files.names(local)
    zipped = folder / f"torchbeam-model-{model.digest}.zip"
    with zipfile.ZipFile(zipped, "w", strict_timestamps=False) as archive:  # not compressed: weights hardly get smaller
        for name in names:
            archive.write(local / name if local.is_dir() else local, name)
    file = "" if local.is_dir() else names[0]
    return Shipped(zipped.name, files.sha256(zipped), file, model.digest, model.trust), zipped
