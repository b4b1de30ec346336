"""The option of a run of several models. Imports neither torch nor Beam."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.command.options import option
from pipelines.command.values import path


@dataclass(frozen=True)
class SeveralModelsOptions:
    """Several models in one run."""

    TITLE = "several models"

    models: str | None = option(
        "models.yaml: several models in one run, with conditions, cascades, a split or a comparison, instead of --model; "
        "local, gs:// or s3://; see docs/several-models.md",
        None,
        parse=path,
        metavar="FILE",
    )
