"""The inputs that are found in the columns of the training rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from prepared_folders import customers, prepared_folder

from handlers.encode.specs import CategoricalInput, NumericInput, SequenceInput
from handlers.errors import UsageError
from handlers.train.inputs import MISSING, find_inputs


def test_every_kind_of_column(tmp_path: Path) -> None:
    table = customers().drop_columns(["visits", "spent"])
    found = find_inputs(prepared_folder(tmp_path, table, "churned").train, "churned")
    numbers, missing, country, days = found.inputs
    assert isinstance(numbers, NumericInput)
    assert numbers.columns == ("age", "is_new")
    assert isinstance(missing, NumericInput)
    assert (missing.columns, missing.allow_nonfinite) == (("income",), True)
    assert missing.fill != missing.fill  # NaN
    assert isinstance(country, CategoricalInput)
    assert country.categories == (MISSING, "BE", "DE", "NL")
    assert (country.unknown, country.fill) == (4, MISSING)
    assert isinstance(days, NumericInput)
    assert (days.columns, days.shape) == (("last_days",), (3,))
    assert list(found.left_out) == ["customer_id", "constant", "note"]


def test_list_columns_of_an_lstm(tmp_path: Path) -> None:
    lists = [[1.0] * (1 + row % 3) for row in range(40)]
    table = pa.table({"price": lists, "sales": lists, "other": [[1, 2]] * 40, "y": [0, 1] * 20})
    shards = prepared_folder(tmp_path, table, "y").train
    steps, other = find_inputs(shards, "y", sequences=True).inputs
    assert isinstance(steps, SequenceInput)
    assert (steps.columns, steps.mask) == (("price", "sales"), "lengths")
    assert isinstance(other, NumericInput)
    assert other.columns == ("other",)
    assert set(find_inputs(shards, "y").left_out) == {"price", "sales"}


def test_columns_that_cannot_be_keywords_and_the_split(tmp_path: Path) -> None:
    table = pa.table(
        {"home country": ["a", "b"] * 20, "self": ["c", "d"] * 20, "who": ["e", "f"] * 20, "y": [0, 1] * 20}
    )
    found = find_inputs(prepared_folder(tmp_path, table, "y").train, "y", leave_out=["who"])
    assert [each.name for each in found.inputs] == ["column_0", "column_1"]
    assert found.left_out == {"who": "rows are split by it"}


def test_nothing_to_learn_from(tmp_path: Path) -> None:
    table = pa.table({"when": pa.array(np.arange(40), pa.timestamp("s")), "y": [0, 1] * 20})
    shards = prepared_folder(tmp_path, table, "y").train
    with pytest.raises(
        UsageError, match=r"no input to learn from.*when: holds timestamp\[s\]; compute numbers from it"
    ):
        find_inputs(shards, "y")
    with pytest.raises(UsageError, match="a list column, the steps of a sequence is needed"):
        find_inputs(shards, "y", sequences=True)
