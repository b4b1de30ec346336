from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

from transforms.processes import Process


def test_this_process_lives() -> None:
    process = Process.current()
    assert process.is_here
    assert process.is_alive()


def test_a_number_that_was_given_again_is_another_process() -> None:
    assert not replace(Process.current(), started="1").is_alive()


def test_a_process_that_has_ended_is_dead_before_its_parent_has_asked() -> None:
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as child:
        process = replace(Process.current(), id=child.pid, started="")
        assert process.is_alive()
        assert child.stdin is not None
        child.stdin.close()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert not process.is_alive()
    assert not process.is_alive()


def test_elsewhere_nothing_can_be_said() -> None:
    assert not replace(Process.current(), space="another host").is_here
