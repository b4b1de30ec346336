"""The plan of a run of several models: what the driver settles, so that every worker treats a row alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

from handlers.batching import ResourceHints
from handlers.columnar.plan import Plan
from handlers.graph.spec import ModelSplit
from handlers.model.directory import ModelDir
from handlers.model.trust import Trust
from handlers.predict.placement import Placement

# The model that `split` chose for a row.
CHOSEN = "model"
CHOSEN_FIELD = pa.field(CHOSEN, pa.dictionary(pa.int32(), pa.string()))
# Between stages: the first failure of a model with `on_failure: continue` on a row.
FAILURE = "__failure__"
FAILURE_FIELD = pa.field(
    FAILURE,
    pa.struct([pa.field(name, pa.string()) for name in ("stage", "type", "message", "model", "version")]),
)


@dataclass(frozen=True)
class ByKey:
    """A model for each value of a column.

    Attributes:
        column: the column of the key.
        folder: where the models are, for messages.
        models: the path of the model of each key. A key that is not among them has no model: nothing is made of its text.
        default: the path of the model of all other rows; None makes them dead letters.
        memory: the most bytes of parameters and buffers that are held in a process.
        trust: how far the models are trusted.
        registry: the folder of the registry that the models may be in; empty for the one of the environment.
        sample: rows that each model is planned with; settled by the plan of the run.
    """

    column: str
    folder: str
    models: Mapping[str, str]
    default: str | None
    memory: int
    trust: Trust | None = None
    registry: str = ""
    sample: pa.RecordBatch | None = None

    def path_of(self, key: str | None) -> str | None:
        """The path of the model of a key, null included; None where there is none."""
        return self.default if key is None else self.models.get(key, self.default)


@dataclass(frozen=True)
class ModelSettings:
    """How one model takes part in a run.

    Attributes:
        name: of the model in the run, under which the others know it.
        model: its directory; with `by_key` the default, or else the first, to plan the run with.
        when: an SQL expression over the row and the outputs of earlier models; the model runs where it is true.
        inputs_from: earlier models whose outputs it has as columns; it runs where they have answered.
        continues: a row that it fails on keeps the answers of the others.
        placement: where it runs in every worker.
        batch_size: rows of a micro-batch; None chooses by the bytes of a row.
        hints: resource hints of its step.
        by_key: where there is a model for each value of a column.
    """

    name: str
    model: ModelDir
    when: str | None = None
    inputs_from: tuple[str, ...] = ()
    continues: bool = False
    placement: Placement = Placement()
    batch_size: int | None = None
    hints: ResourceHints = ResourceHints()
    by_key: ByKey | None = None


@dataclass(frozen=True)
class Node:
    """One model of a plan.

    Attributes:
        settings: how it takes part.
        plan: how it scores the rows that it is given.
        outputs: its output columns: name in the run, and name in the output of its plan.
        version: the column of its version in the run, which is null where it did not answer.
        error: the column of its failures, where it continues.
        when_columns: the columns that `when` is computed from.
        extra: columns that it has beside those of the input: name for the model, and name in the run.
        split: whether it runs only where the split chose it.
        stage: the index of the step that it runs in.
        bytes: of its parameters and buffers.
    """

    settings: ModelSettings
    plan: Plan
    outputs: tuple[tuple[str, str], ...]
    version: str
    error: str | None
    when_columns: tuple[str, ...]
    extra: tuple[tuple[str, str], ...]
    split: bool
    stage: int
    bytes: int

    @property
    def name(self) -> str:
        """The name of the model in the run."""
        return self.settings.name

    @property
    def schema(self) -> pa.Schema:
        """The output columns of its plan."""
        found: pa.Schema = self.plan.output
        return found

    @property
    def columns(self) -> list[str]:
        """The names of all columns that it adds."""
        return [name for name, _ in self.outputs] + ([self.error] if self.error else [])


@dataclass(frozen=True)
class GraphPlan:
    """What is settled on the driver before a run of several models. Picklable; it travels to the workers.

    Attributes:
        nodes: the models, in the order in which they are given.
        inputs: the columns of the input, without provenance.
        carried: those of them that go into the output.
        needed: those without which a file cannot be scored.
        output: schema of the predictions.
        split: how rows are split among models.
        version: stands for all models and how they work together.
    """

    nodes: tuple[Node, ...]
    inputs: pa.Schema
    carried: tuple[str, ...]
    needed: frozenset[str]
    output: pa.Schema
    split: ModelSplit | None
    version: str

    @property
    def stages(self) -> list[list[Node]]:
        """The models of each step, in the order in which they run."""
        found: list[list[Node]] = [[] for _ in range(1 + max(node.stage for node in self.nodes))]
        for node in self.nodes:
            found[node.stage].append(node)
        return found
