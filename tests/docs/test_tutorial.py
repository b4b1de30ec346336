"""The commands of the tutorial, run one after the other as a reader would."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
TUTORIAL = ROOT / "docs/tutorial.md"

pytestmark = pytest.mark.slow(60)


def test_every_command_works(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, arguments in (("python", ""), ("torchbeam", " -m torchbeam")):
        (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable}{arguments} "$@"\n')
        (programs / name).chmod(0o755)
    here = {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    blocks = re.findall(r"```bash\n(.*?)```", TUTORIAL.read_text(), re.DOTALL)
    assert len(blocks) == 7
    shown = ""
    for block in blocks:
        done = subprocess.run(
            ["bash", "-e", "-o", "pipefail"],
            input=block,
            cwd=tmp_path,
            env=os.environ | here,
            capture_output=True,
            text=True,
            timeout=1200,
            check=False,
        )
        assert done.returncode == 0, f"{block}\n{done.stdout}{done.stderr}"
        shown += done.stdout
    assert re.search(r"rows dead +2\b", shown)
    assert "(is named like an id" in shown
    for made in ("models/tumours/model.yaml", "evaluation/report.html", "comparison/report.html"):
        assert (tmp_path / made).is_file()
    assert re.search(r"growth: worst_radius / mean_radius", (tmp_path / "models/shape/model.yaml").read_text())
