"""The plan of an evaluation, made on the driver, so that every worker treats a row alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from handlers.predict.heads.head import PROBABILITY
from transforms.evaluation.curves import EXACT_SCORES
from transforms.evaluation.fingerprint import Fingerprint

Task = Literal["classification", "multilabel", "regression"]

CLASS, CONFIDENCE, LABELS, NUMBER, FORECAST = (
    "predicted_class",
    "confidence",
    "predicted_labels",
    "prediction",
    "forecast",
)
FORECAST_FROM = "forecast_from"
# Columns of lists that `transforms.evaluation.forecasts` adds to forecasts.
ACTUAL, LAST_VALUE, SEASONAL_NAIVE = "actual", "last_value", "seasonal_naive"
MAX_CLASSES = 1000
MAX_SLICES = 1000
SLICE_BINS = 5
WORST_ROWS = 50


@dataclass(frozen=True)
class EvaluationPlan:
    """How labels and predictions are read and what is computed of them. Picklable; it travels to the workers.

    Attributes:
        task: what kind of answer is evaluated.
        label: the column of the true answers, as it is compared.
        asked: the column that the user named, if `label` is derived from it.
        predicted: the column of the model's answers.
        classes: of a classification, those that have scores; none where rows have no scores.
        positive: the class whose scores make the curves where there are two.
        probabilities: a column `probability_CLASS` for each of `classes` is there.
        confidence: a column `confidence` is there.
        flags_as_numbers: labels true and false mean the classes 1 and 0.
        slices: columns whose values define the slices.
        numeric_slices: those of `slices` that are cut into bins by quantiles.
        baselines: columns of the answers that a forecast has to beat.
        shown: columns of the worst rows.
        fingerprint: of the rows that the model was trained on.
        exact_scores: scores, or residuals, that are kept exactly before they are counted in bins.
    """

    task: Task
    label: str
    predicted: str
    classes: tuple[str, ...] = ()
    positive: str | None = None
    probabilities: bool = False
    confidence: bool = False
    flags_as_numbers: bool = False
    slices: tuple[str, ...] = ()
    numeric_slices: tuple[str, ...] = ()
    asked: str = ""
    baselines: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()
    fingerprint: Fingerprint | None = None
    exact_scores: int = EXACT_SCORES

    @property
    def scored(self) -> bool:
        """Whether there is a score for each of `classes`."""
        return bool(self.classes) and (self.probabilities or self.confidence)

    @property
    def score_columns(self) -> list[str]:
        """The columns `probability_CLASS`."""
        return [PROBABILITY + name for name in self.classes]
