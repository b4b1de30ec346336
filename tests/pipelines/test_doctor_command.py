"""The doctor as a command: its process, its help, its streams."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipelines import cli

pytestmark = pytest.mark.slow(10)


@pytest.fixture
def copy(model: Path, tmp_path: Path) -> Path:
    """A model directory to spoil."""
    return Path(shutil.copytree(model, tmp_path / "copy"))


def change(model: Path, **fields: object) -> None:
    file = model / "model.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | fields))


class TestCommand:
    def test_help_imports_neither_torch_nor_beam(self) -> None:
        program = (
            "import sys\nfrom pipelines import doctor\n"
            "try: doctor.main(['--help'])\nexcept SystemExit as e: assert e.code == 0\n"
            "heavy = {'torch', 'apache_beam', 'pyarrow', 'pandas'} & set(sys.modules)\nassert not heavy, heavy"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "0 no problem was found" in " ".join(done.stdout.split())

    def test_as_module(self, copy: Path) -> None:
        change(copy, colour="red")
        command = [sys.executable, "-m", "pipelines.doctor", f"--model={copy}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"COLUMNS": "80"})
        assert done.returncode == 2
        assert 'unknown field "colour"' in done.stdout
        assert done.stdout.splitlines()[-1] == "1 problem, no warnings"
        assert done.stderr == ""

    def test_environment_of_the_model_is_set_before_torch_is_imported(self, copy: Path) -> None:
        change(copy, env_vars={"OMP_NUM_THREADS": "1"})
        program = (
            f"from pipelines import doctor; doctor.main(['--model={copy}'])\n"
            "import torch; assert torch.get_num_threads() == 1, torch.get_num_threads()"
        )
        environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr

    def test_verbose_shows_tracebacks(self, tmp_path: Path) -> None:
        command = [sys.executable, "-m", "pipelines.doctor", f"--model={tmp_path / 'nowhere'}"]
        done = subprocess.run([*command, "--verbose"], capture_output=True, text=True, check=False)
        assert "Traceback" not in done.stdout
        assert "Traceback" in done.stderr

    def test_console_script(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["doctor"]) == 0
        assert "no problems, no warnings" in capsys.readouterr().out
