"""The plan of a run: what the driver settles, so that every worker treats a row alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

from handlers.columnar.chains import Step, function_step
from handlers.columnar.features import feature_step
from handlers.encode.base import BoundInput
from handlers.model.spec import ModelSpec
from handlers.model_code import ModelCode


@dataclass(frozen=True)
class Chain:
    """The user's functions of a run, as `module:function`: those of the model directory, then those of the command."""

    features: Mapping[str, str]
    preprocess: tuple[str, ...] = ()
    postprocess: tuple[str, ...] = ()

    @staticmethod
    def of(spec: ModelSpec, preprocess: tuple[str, ...] = (), postprocess: tuple[str, ...] = ()) -> Chain:
        """The chain of a model with further functions after its own."""
        return Chain(spec.features, spec.preprocess + preprocess, spec.postprocess + postprocess)

    def before(self, code: ModelCode) -> list[Step]:
        """The steps before the model, of functions in `code` or installed."""
        steps = [feature_step(dict(self.features))] if self.features else []
        return steps + [function_step(name, "preprocess", code) for name in self.preprocess]

    def after(self, code: ModelCode) -> list[Step]:
        """The steps after the model."""
        return [function_step(name, "postprocess", code) for name in self.postprocess]


@dataclass(frozen=True)
class Plan:
    """What is settled on the driver before a run. Picklable; it travels to the workers.

    Attributes:
        chain: the functions before and after the model.
        inputs: how columns become the model's inputs.
        carried: input columns that go into the output.
        needed: input columns without which a file cannot be scored.
        output: schema of the predictions; None leaves each chunk as it is, which is how the schema is found.
        probabilities: whether a classification gives the probability of every class.
    """

    chain: Chain
    inputs: tuple[BoundInput, ...]
    carried: tuple[str, ...]
    needed: frozenset[str]
    output: pa.Schema | None = None
    probabilities: bool = False
