"""The installed version of this package."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("torchbeam")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = ""
