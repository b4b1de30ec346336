"""`score`: datasets of Ray."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from handlers.batching import Batching
from handlers.columnar.chunks import dead_letter_schema
from handlers.errors import UsageError
from handlers.model.directory import ModelDir, opened
from handlers.model.trust import Trust
from handlers.paths import is_remote
from handlers.predict.placement import Placement, Precision
from transforms.inference.score import SAMPLE_ROWS, Score, check_takes_rows
from transforms.ray.actor import ScoreBatches, Task, dead_letters_of, first_rows, predictions_of
from transforms.shipping import Shipped, ship

if TYPE_CHECKING:
    from ray.data import Dataset

_RAY_ROWS = 8_192  # of a batch: Ray wants a number where there are GPUs


@dataclass(frozen=True)
class RayScores:
    """What becomes of the rows of a dataset of Ray; computed when it is consumed.

    Attributes:
        predictions: the scored rows.
        dead_letters: the rows that could not be scored, as they came in, with `dead_letter`: stage, type, message, source
            (`task-` and the id of Ray's task), row (its number in that task, from 0), model_version and raw.
    """

    predictions: Dataset
    dead_letters: Dataset


def score(
    ds: Dataset,
    model: ModelDir | str | os.PathLike[str],
    *,
    columns: Sequence[str] = ("*",),
    probabilities: bool = False,
    preprocess: Sequence[str] = (),
    postprocess: Sequence[str] = (),
    device: str = "auto",
    precision: Precision = "float32",
    batch_size: int | None = None,
    trust: Trust | None = None,
    ship_model: bool | None = None,
    concurrency: int | tuple[int, int] | None = None,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    materialize: bool = False,
) -> RayScores:
    """Scores a dataset of Ray with `map_batches`: the same columns and reasons as `torchbeam score`, without Beam.

    The output columns are determined here by scoring the first 1,000 rows, which Ray reads for it. Every actor loads the
    model once. The nodes need this package in the version of the driver. Tensor columns come back as lists of their numbers.

    Args:
        ds: the rows.
        model: a model directory, its path, or the path of a bare `.pt2` or TorchScript file; local or remote.
        columns: names and patterns of the columns that are copied into the predictions.
        probabilities: whether a classification also gives the probability of every class.
        preprocess: functions on rows, as `module:function`, after those of the model directory.
        postprocess: functions on predictions, likewise.
        device: `auto` is the GPU that Ray assigned to the actor (`num_gpus`), else the CPU. `cpu`, `cuda` and `cuda:N` leave
            that to this package.
        precision: `float32`, `bfloat16` or `float16`.
        batch_size: rows of a call of the model; None chooses by the bytes of a row.
        trust: how far the model directory of a path is trusted.
        ship_model: whether Ray copies the model to the actors. None copies local ones where the cluster has several nodes;
            with False every node reads the path itself, which must be shared.
        concurrency: the number of actors, or the least and the most of them. None is 1 to what the CPUs, or with `num_gpus`
            the GPUs, of the cluster allow.
        num_cpus: CPUs of an actor; None is Ray's default of 1, or 0 with GPUs.
        num_gpus: GPUs of an actor, as 1 or 0.5; None is none.
        materialize: whether the rows are scored now, and kept in Ray's object store, so that `predictions` and
            `dead_letters` together score them once. Without it, consuming each of them scores all rows.

    Raises:
        UsageError: where Ray is not installed, for another kind of data, columns or functions that do not match the model,
            or a model with `sequences`.
        BrokenModelError: if the model fails on each of the first rows, and on zeros.
    """
    _check(ds, concurrency, num_gpus)
    directory = opened(model, trust)
    check_takes_rows(directory)
    placement, batching = Placement(device, precision), Batching(batch_size=batch_size)
    sample = _sample(ds)
    plan = Score(
        directory,
        sample.schema,
        sample,
        columns=columns,
        preprocess=preprocess,
        postprocess=postprocess,
        probabilities=probabilities,
        batching=batching,
    ).plan
    plan = replace(plan, output=_decoded(plan.output, sample.schema))
    placed, zipped = _placed(directory, ship_model)
    task = Task(placed, zipped, sample.schema, plan, placement, batching)
    scored = partial(_scored, ds, task, concurrency, num_cpus, num_gpus)
    if not materialize:
        return RayScores(scored("predictions"), scored("dead_letters"))
    both = scored("both").materialize()
    letters = {"schema": dead_letter_schema(sample.schema)}
    return RayScores(
        both.map_batches(predictions_of, batch_format="pyarrow", batch_size=None),
        both.map_batches(dead_letters_of, batch_format="pyarrow", batch_size=None, fn_kwargs=letters),
    )


def _check(ds: Any, concurrency: Any, num_gpus: float | None) -> None:
    try:
        from ray.data import Dataset
    except ImportError:
        raise UsageError("scoring datasets of Ray needs Ray; pip install 'torchbeam[ray]'") from None
    if not isinstance(ds, Dataset):
        raise UsageError(f"ds must be a Dataset of Ray, not a {type(ds).__name__}; ray.data.from_… makes one")
    least, most = concurrency if isinstance(concurrency, tuple) else (concurrency, concurrency)
    if concurrency is not None and not 1 <= least <= most:
        raise UsageError(f"concurrency must be 1 or more, or the least and the most, not {concurrency}")
    if num_gpus is not None and num_gpus < 0:
        raise UsageError(f"num_gpus must be 0 or more, not {num_gpus}")


def _sample(ds: Dataset) -> pa.Table:
    """The first rows, in the columns of the dataset."""
    tables = ds.limit(SAMPLE_ROWS).iter_batches(batch_size=SAMPLE_ROWS, batch_format="pyarrow")
    if parts := first_rows(iter(tables)):
        return pa.Table.from_batches(parts)
    known = ds.schema()
    schema = known.base_schema if known is not None else None
    if not isinstance(schema, pa.Schema) or not schema.names:
        raise UsageError("the dataset has neither rows nor columns, so there is nothing to score")
    return schema.empty_table()


def _decoded(output: pa.Schema, given: pa.Schema) -> pa.Schema:
    """`output` without dictionaries, of which Ray's blocks would each have their own, but for those of the dataset."""
    return pa.schema(
        [
            field.with_type(field.type.value_type)
            if pa.types.is_dictionary(field.type) and field.name not in given.names
            else field
            for field in output
        ]
    )


def _scored(
    ds: Dataset,
    task: Task,
    concurrency: int | tuple[int, int] | None,
    num_cpus: float | None,
    num_gpus: float | None,
    gives: str,
) -> Dataset:
    from ray.data import ActorPoolStrategy

    least, most = concurrency if isinstance(concurrency, tuple) else (concurrency, concurrency)
    return ds.map_batches(
        ScoreBatches,
        fn_constructor_args=(task, gives),
        batch_format="pyarrow",
        batch_size=_RAY_ROWS,
        zero_copy_batch=True,
        compute=ActorPoolStrategy(min_size=least or 1, max_size=most or _most(num_cpus, num_gpus)),
        num_cpus=num_cpus,
        num_gpus=num_gpus or None,
    )


def _most(num_cpus: float | None, num_gpus: float | None) -> int:
    """How many actors the cluster has room for."""
    import ray

    resources = ray.cluster_resources()
    if num_gpus:
        return max(1, int(resources.get("GPU", 0) / num_gpus))
    return max(1, int(resources.get("CPU", 1) / (num_cpus or 1)))


def _placed(model: ModelDir, ship_model: bool | None) -> tuple[ModelDir | Shipped, Any]:
    """The model as actors open it, and the object with its zip file where it is shipped."""
    import ray

    if is_remote(model.path) or ship_model is False or (ship_model is None and len(ray.nodes()) < 2):
        return model, None
    with tempfile.TemporaryDirectory(prefix="torchbeam-") as folder:
        shipped, file = ship(model, Path(folder))
        return replace(shipped, trust=model.trust), ray.put(file.read_bytes())
