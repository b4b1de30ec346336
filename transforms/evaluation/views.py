"""The rows of a run of several models as one of them sees them: with its outputs under the names of a run of one model."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import pyarrow as pa

from handlers.graph.spec import NAME
from transforms.evaluation.settle import TASKS, is_output

_VERSION, _ERROR = "model_version", "error"


@dataclass(frozen=True)
class View:
    """Which columns one model of a run sees. Picklable; it travels to the workers.

    Attributes:
        name: of the model in the run.
        columns: name in the run and name for the evaluation, in the order of the columns.
    """

    name: str
    columns: tuple[tuple[str, str], ...]

    def schema(self, schema: pa.Schema) -> pa.Schema:
        """The columns of `schema` that the model sees."""
        return pa.schema([schema.field(name).with_name(seen) for name, seen in self.columns])

    def rows(self, chunk: pa.RecordBatch) -> pa.RecordBatch:
        """The rows of `chunk` with the columns that the model sees."""
        arrays = [chunk.column(name) for name, _ in self.columns]
        return pa.RecordBatch.from_arrays(arrays, names=[seen for _, seen in self.columns])


def models_of(schema: pa.Schema, named: Collection[str] = ()) -> tuple[str, ...]:
    """The models of a run of several that have answers to evaluate; none for a run of one model.

    Args:
        schema: the columns of the predictions.
        named: the models that the report of the run names, if there is one.
    """
    if not named and any(task in schema.names for task in TASKS):
        return ()
    found = named or [name.removesuffix(f"_{_VERSION}") for name in schema.names if name.endswith(f"_{_VERSION}")]
    return tuple(
        name for name in found if NAME.fullmatch(name) and any(f"{name}_{task}" in schema.names for task in TASKS)
    )


def view(schema: pa.Schema, name: str, models: Sequence[str]) -> View:
    """The view of the model `name` in a run of `models`: the input columns, and of the outputs its own."""
    by_length = sorted(models, key=len, reverse=True)  # the name of one may begin with that of another
    columns = []
    for each in schema.names:
        owner = next((model for model in by_length if _is_of(each, model)), None)
        if owner == name and not each.endswith(f"_{_ERROR}"):
            columns.append((each, each.removeprefix(f"{name}_")))
        elif owner is None and not is_output(each):
            columns.append((each, each))
    return View(name, tuple(columns))


def _is_of(column: str, model: str) -> bool:
    made = column.removeprefix(f"{model}_")
    return made != column and (is_output(made) or made == _ERROR)
