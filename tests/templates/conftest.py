"""The tests of templates use what those of the command do: its table, its model, the stand-in for Dataflow."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "pipelines"))
sys.path.append(str(Path(__file__).parents[2] / "templates"))
