"""The metrics that `--fail_below` and `--fail_above` take, by task: those that are better when higher, and when lower."""

from __future__ import annotations

_AVERAGED = tuple(f"{name}_{average}" for name in ("precision", "recall", "f1") for average in ("macro", "weighted"))
_OF_LABELS = tuple(f"{name}_{average}" for name in ("precision", "recall", "f1") for average in ("macro", "micro"))
OF_TWO_CLASSES = ("precision", "recall", "f1")
# Of forecasts: 1 − MAE of the model / MAE of the baseline, on the rows that both have.
SKILLS = ("skill_last_value", "skill_seasonal_naive")

HIGHER: dict[str, tuple[str, ...]] = {
    "classification": (
        *("accuracy", "balanced_accuracy", *_AVERAGED, "matthews_corrcoef", *OF_TWO_CLASSES),
        *("roc_auc", "average_precision"),
    ),
    "multilabel": ("accuracy", *_OF_LABELS),
    "regression": ("r2", "explained_variance", *SKILLS),
}
LOWER: dict[str, tuple[str, ...]] = {
    "classification": ("log_loss", "brier", "expected_calibration_error"),
    "multilabel": ("hamming_loss",),
    "regression": (
        *("mae", "mse", "rmse", "mape", "median_absolute_error", "max_error"),
        *("pinball_0.1", "pinball_0.5", "pinball_0.9"),
    ),
}
ALL_HIGHER = tuple(dict.fromkeys(name for names in HIGHER.values() for name in names))
ALL_LOWER = tuple(dict.fromkeys(name for names in LOWER.values() for name in names))
# What the report shows first, in this order, as far as it is there.
HEADLINE: dict[str, tuple[str, ...]] = {
    "classification": (
        *("accuracy", "balanced_accuracy", "f1_macro", "precision", "recall", "roc_auc", "average_precision"),
        *("log_loss", "brier", "expected_calibration_error"),
    ),
    "multilabel": ("accuracy", "f1_micro", "f1_macro", "precision_micro", "recall_micro", "hamming_loss"),
    "regression": ("mae", "rmse", "r2", "mape", "median_absolute_error", "mean_error", "max_error", *SKILLS),
}
TITLES = {
    "accuracy": "Accuracy",
    "average_precision": "Average precision",
    "balanced_accuracy": "Balanced accuracy",
    "brier": "Brier score",
    "expected_calibration_error": "Calibration error",
    "f1_macro": "F1, macro",
    "f1_micro": "F1, micro",
    "hamming_loss": "Hamming loss",
    "log_loss": "Log loss",
    "mae": "MAE",
    "mape": "MAPE",
    "max_error": "Largest error",
    "mean_error": "Mean error",
    "median_absolute_error": "Median error",
    "precision": "Precision",
    "precision_micro": "Precision, micro",
    "r2": "R²",
    "recall": "Recall",
    "recall_micro": "Recall, micro",
    "rmse": "RMSE",
    "roc_auc": "ROC-AUC",
    "skill_last_value": "Skill over last value",
    "skill_seasonal_naive": "Skill over seasonal naive",
}
