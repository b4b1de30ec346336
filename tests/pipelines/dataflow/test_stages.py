"""Steps with resource hints of their own, in the pipeline that is staged for Dataflow."""

from __future__ import annotations

from pathlib import Path

import pytest
from apache_beam.internal.gcp import auth
from apache_beam.io.filesystems import FileSystems
from fake_dataflow import ACCELERATOR, MIN_RAM, FakeDataflow, StagedPipeline

from pipelines import score

L4, T4 = (f"type:{gpu};count:1;install-nvidia-driver" for gpu in ("nvidia-l4", "nvidia-tesla-t4"))

pytestmark = pytest.mark.slow(6)


def test_three_steps_with_three_environments(
    monkeypatch: pytest.MonkeyPatch, command: list[str], model: Path, service: FakeDataflow, tmp_path: Path
) -> None:
    monkeypatch.setattr(auth._Credentials, "_credentials_init", False)
    monkeypatch.setattr(FileSystems, "_pipeline_options", None)
    file = tmp_path / "models.yaml"
    file.write_text(
        "models:\n"
        f"  - {{name: small, model: {model}, hints: {{min_ram: 4GB}}}}\n"
        f"  - {{name: same, model: {model}, hints: {{min_ram: 4GB}}}}\n"
        f"  - {{name: large, model: {model}, when: small_confidence < 0.8,\n"
        f"     hints: {{accelerator: '{L4}', min_ram: 16GB}}}}\n"
        f"  - {{name: huge, model: {model}, when: large_confidence < 0.8, hints: {{accelerator: '{T4}'}}}}\n"
    )
    arguments = [f"--models={file}" if each.startswith("--model=") else each for each in command]
    assert score.main(arguments) == 0
    staged = StagedPipeline.read(tmp_path / "staging")
    hints = {
        name.split("/")[1].removeprefix("RunInference "): found
        for name, found in staged.hints().items()
        if name.endswith("/BeamML_RunInference")
    }
    assert hints == {
        "small+same": {MIN_RAM: "4000000000"},
        "large": {ACCELERATOR: L4, MIN_RAM: "16000000000"},
        "huge": {ACCELERATOR: T4},
    }
    # Nothing else asks for anything, but what Beam fuses with these steps.
    assert all("/RunInference " in name for name in staged.hints())
    (job,) = service.posted
    assert "no_use_multiple_sdk_containers" in job["environment"]["experiments"]
