"""Ten refreshes: the memory of the models that left is given back."""

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from handlers.columnar.chunks import with_provenance
from handlers.columnar.handler import ColumnarModelHandler
from handlers.columnar.plan import Chain
from handlers.columnar.planning import make_plan
from handlers.columnar.refreshing import ScorerRefresher
from handlers.model.directory import ModelDir
from handlers.predict.predictor import Predictor
from handlers.refresh.watch import ModelWatch, Refresh

pytestmark = pytest.mark.slow(20)
WIDTH = 2000  # 16 MB of weights
FORMATS: dict[str, dict[str, Any]] = {
    "safetensors": {},
    "torch_export": {"format": "torch_export", "example": (torch.ones(2, 4),)},  # such a program is part of a cycle
}


class Wide(torch.nn.Sequential):
    """Four numbers in, two out."""

    def __init__(self) -> None:
        super().__init__(torch.nn.Linear(4, WIDTH), torch.nn.Linear(WIDTH, WIDTH), torch.nn.Linear(WIDTH, 2))


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.parametrize("kind", FORMATS)
def test_ten_refreshes_do_not_grow_memory(tmp_path: Path, kind: str) -> None:
    def write(version: int) -> ModelDir:
        return ModelDir.save(
            Wide(), tmp_path / f"models/{version}", inputs=[{"name": "x", "columns": ["f_*"]}], **FORMATS[kind]
        )

    rows = with_provenance(pa.record_batch({f"f_{i}": np.ones(1000) for i in range(4)}), "s", 0)
    first = write(1)
    plan = make_plan(first, Predictor(first.load()), rows.slice(0, 10), Chain.of(first.spec))
    refresh = Refresh(ModelWatch(f"{tmp_path}/models/*"), 86_400)
    handler = ColumnarModelHandler(first, plan, refresh=refresh, sample=rows.slice(0, 10))
    refresher = handler.load_model()
    assert isinstance(refresher, ScorerRefresher)
    sizes = []
    for version in range(2, 13):
        left = weakref.ref(refresher.current.predictor.module)
        newest = write(version).version
        refresher.look()
        refresher.look()
        (scored,) = handler.run_inference([rows], refresher)
        assert set(scored.predictions.column("model_version").to_pylist()) == {newest}
        refresher.look()
        assert left() is None
        sizes.append(resident())
    assert sizes[-1] < 1.2 * sizes[0]
    assert sizes[-1] - sizes[0] < 2 * 4 * WIDTH * WIDTH, sizes  # ten models were ten times 16 MB
