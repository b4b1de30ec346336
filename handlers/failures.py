"""A row that a stage refused, and why. What encoders, functions, heads and sources give for a row at fault."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RowFailure:
    """Why one row could not be scored.

    Attributes:
        stage: `read`, `features`, `preprocess`, `encode`, `forward`, `head` or `postprocess`.
        type: the class of the error, or what a check found: `NotFinite`, `NullValue`, `WrongLength`, ….
        message: on one line.
        raw: the text of a row whose values do not fit the columns; None for every row that could be read.
    """

    stage: str
    type: str
    message: str
    raw: str | None = None


RowFailures = dict[int, RowFailure]  # by the index of the row in its batch, or by its id
