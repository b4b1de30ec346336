"""The contestants, each as its own documentation says, at the settings that `benchmarks.search` has found."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Peer:
    """One contestant.

    Attributes:
        title: what it is, for the table.
        target: `module:function`; the function takes a `Job` and a `Clock`.
        needs: modules without which it is not measured.
        grid: values of its settings among which `benchmarks.search` looks; the first ones are where it begins.
        is_command: the function takes a `Job` and gives the command line of another program, whose whole time counts.
        scores: whether it writes an output, which is compared.
    """

    title: str
    target: str
    needs: tuple[str, ...] = ()
    grid: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    is_command: bool = False
    scores: bool = True

    def missing(self) -> str | None:
        """Why it cannot be measured here; None if it can."""
        absent = [name for name in self.needs if importlib.util.find_spec(name) is None]
        return f"{', '.join(absent)} cannot be imported" if absent else None


_HERE = __name__
# What is fastest on a machine is tried by `benchmarks.search`; what it has found is in benchmarks/settings.json.
_ROWS = (8192, 2048, 32_768, 131_072)
PEERS = {
    "loop": Peer(
        "pyarrow and torch, one batch after the other",
        f"{_HERE}.loop:loop",
        grid={"read_rows": (131_072, 65_536, 1_048_576), "batch_rows": (8192, 2048, 32_768)},
    ),
    "loop_readahead": Peer(
        "the loop, and a thread that reads ahead",
        f"{_HERE}.loop:loop_readahead",
        grid={"read_rows": (131_072, 65_536, 1_048_576), "batch_rows": (8192, 2048, 32_768)},
    ),
    "torchbeam": Peer("`torchbeam score`, in process", f"{_HERE}.ours:torchbeam"),
    "torchbeam_spark": Peer(
        "`torchbeam score --runner=SparkRunner`, the command", f"{_HERE}.ours:spark_command", is_command=True
    ),
    "torchbeam_frame": Peer("`torchbeam.spark.score(frame, model)`", f"{_HERE}.spark:torchbeam_frame", ("pyspark",)),
    "stock": Peer(
        "Beam's `RunInference`, `PytorchModelHandlerTensor`",
        f"{_HERE}.stock:stock",
        grid={"batch_rows": (256, 1024, 8192)},
    ),
    "predict_batch_udf": Peer(
        "`predict_batch_udf` of Spark",
        f"{_HERE}.spark:predict_batch_udf",
        ("pyspark",),
        {"columns": ("array", "struct", "separate"), "batch_rows": _ROWS, "arrow_rows": (8192, 10_000, 65_536)},
    ),
    "spark_iterator": Peer(
        "`mapInArrow` of Spark",
        f"{_HERE}.spark:spark_iterator",
        ("pyspark",),
        {"arrow_rows": (8192, 10_000, 65_536), "batch_rows": (8192, 2048)},
    ),
    "ray_data": Peer(
        "`map_batches` of Ray Data",
        f"{_HERE}.ray_data:ray_data",
        ("ray",),
        {
            "batch_format": ("pyarrow", "numpy"),
            "actors": (1, 2),
            "actor_cpus": (1, 0.5),
            "threads": (1, 2),
            "batch_rows": (131_072, 8192, 32_768),
        },
    ),
    "daft": Peer(
        "`@daft.method.batch` of Daft",
        f"{_HERE}.daft_udf:daft_udf",
        ("daft",),
        {
            "use_process": (False, True, None),
            "instances": (1, 2, None),
            "batch_rows": (131_072, 8192, 32_768, None),
            "threads": (1, 2),
        },
    ),
    "elements_loop": Peer("a loop over batches of dictionaries", f"{_HERE}.elements:loop", grid={"batch_rows": _ROWS}),
    "elements_nothing": Peer("the pipeline without a model", f"{_HERE}.elements:nothing", scores=False),
    "elements_stock": Peer(
        "`RunInference`, `PytorchModelHandlerTensor`",
        f"{_HERE}.elements:stock",
        grid={"batch_rows": (None, 256, 1024)},
    ),
    "elements_stock_dicts": Peer("`RunInference`, `PytorchModelHandlerKeyedTensor`", f"{_HERE}.elements:stock_dicts"),
    "elements_handler": Peer("`RunInference`, `TorchModelHandler`", f"{_HERE}.elements:handler"),
    "elements_torchbeam": Peer("`RunTorchInference`, `TorchModelHandler`", f"{_HERE}.elements:torchbeam"),
    "texts_loop": Peer(
        "a loop in order of arrival",
        f"{_HERE}.media:texts_loop",
        ("sentence_transformers",),
        {"batch_rows": (32, 8, 64)},
    ),
    "sentence_transformers": Peer(
        "`SentenceTransformer.encode`",
        f"{_HERE}.media:sentence_transformers",
        ("sentence_transformers",),
        {"batch_rows": (32, 16, 64, 128)},
    ),
    "images_loop": Peer(
        "a loop, decoding in threads", f"{_HERE}.media:images_loop", ("torchvision",), {"batch_rows": (32, 8, 64)}
    ),
    "imports": Peer("`import apache_beam, torch`", f"{_HERE}.ours:imports", is_command=True, scores=False),
    "torchbeam_command": Peer("`torchbeam score`, the command", f"{_HERE}.ours:command", is_command=True),
}
