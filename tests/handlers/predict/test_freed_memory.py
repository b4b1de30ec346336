"""What glibc does with freed memory, by the pages that are faulted in when it is used again."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not glibc")

# The pages of 2 MiB blocks that are taken from the system over ten rounds, of 4 KiB or more each.
_FAULTS = """
import resource, sys
from handlers.predict import freed_memory

for name in sys.argv[1:]:
    getattr(freed_memory, name)()
held = bytearray(1)
before = None
for _ in range(11):
    blocks = [bytearray(b"x") * (2 << 20) for _ in range(4)]
    del blocks
    if before is None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*calls: str, **variables: str) -> int:
    """The page faults after these calls, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", _FAULTS, *calls], capture_output=True, text=True, check=True, env=os.environ | variables
    )
    return int(done.stdout)


def test_blocks_are_kept_or_returned() -> None:
    assert faults("keep") < 100
    assert faults("give_back") > 1000
    assert faults("keep", "give_back") > 1000
    assert faults("give_back", "keep") > 1000  # a model on the disk keeps its bound whatever is loaded after it


def test_the_environment_wins() -> None:
    assert faults("keep", MALLOC_MMAP_THRESHOLD_="100000") > 1000
