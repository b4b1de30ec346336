"""Builds a wheel of this package as it is imported here, for workers that do not have it."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from handlers.errors import UsageError

PACKAGES = ("handlers", "pipelines", "torchbeam", "transforms")


def build_wheel(folder: Path) -> Path:
    """Writes the wheel to `folder` and returns its path.

    It contains the imported files, from an installation or an editable source tree, so that workers run the same code as
    this process. A regular build would need the source tree and a build system.

    Raises:
        UsageError: if the package is not installed, so that its dependencies are unknown.
    """
    try:
        installed = distribution("torchbeam")
    except PackageNotFoundError:
        raise UsageError(
            "torchbeam is not installed here, so it cannot be sent to the workers; install it, or name an image that "
            "has it with --sdk_container_image"
        ) from None
    root = Path(__file__).parents[2]
    contents = {
        path.relative_to(root).as_posix(): path.read_bytes()
        for package in PACKAGES
        for path in sorted((root / package).rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    about = f"torchbeam-{installed.version}.dist-info"
    contents[f"{about}/METADATA"] = (installed.read_text("METADATA") or "").encode()
    contents[f"{about}/entry_points.txt"] = (installed.read_text("entry_points.txt") or "").encode()
    contents[f"{about}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: torchbeam\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    record = [f"{name},sha256={_digest(data)},{len(data)}" for name, data in contents.items()]
    contents[f"{about}/RECORD"] = "\n".join([*record, f"{about}/RECORD,,", ""]).encode()
    wheel = folder / f"torchbeam-{installed.version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    return wheel


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
