"""One model on a chunk in pieces: the same answers and failures as all at once, whatever the order of the pieces."""

import threading

import numpy as np
import pyarrow as pa
import pytest
import small_models
from small_models import Save

from handlers.columnar import stage as stages
from handlers.columnar.chains import Rows
from handlers.columnar.stage import ModelStage
from handlers.encode.binding import bind_inputs
from handlers.encode.numeric import BoundNumeric
from handlers.predict.predictor import Predictor
from handlers.stats import Stats

COUNT = 500


def rows() -> Rows:
    """Rows whose ids are neither from 0 nor in order; some fail in the encoder, some in the model, some in the head."""
    random = np.random.default_rng(3)
    a = random.normal(size=COUNT)
    a[::50] = np.nan
    a[7::60] = small_models.RAISES
    a[9::70] = small_models.GIVES_NAN
    return Rows(pa.record_batch({"a": a, "b": random.normal(size=COUNT)}), random.permutation(10 * COUNT)[:COUNT])


@pytest.mark.parametrize("row_bytes", [64, 8 * 33, 8 * COUNT])
@pytest.mark.parametrize("ordered", [False, True])
def test_pieces_change_nothing(save: Save, monkeypatch: pytest.MonkeyPatch, row_bytes: int, ordered: bool) -> None:
    model = save(small_models.Touchy(), task="regression")
    given = rows()
    bound = bind_inputs(model.spec.inputs, (), given.batch)
    stage = ModelStage(model, bound, Predictor(model.load()))
    whole = stage.answer(given, Stats())
    assert len(whole.ids) + len(whole.failures) == COUNT
    assert {failure.stage for failure in whole.failures.values()} == {"encode", "forward", "head"}

    if ordered:
        by_length = np.random.default_rng(4).permutation(COUNT)
        monkeypatch.setattr(BoundNumeric, "order", lambda self, batch: by_length)
    monkeypatch.setattr(stages, "PIECE_BYTES", row_bytes)
    threads = set()
    encode = BoundNumeric.encode

    def noted(self: BoundNumeric, batch: pa.RecordBatch) -> object:
        threads.add(threading.current_thread().name)
        return encode(self, batch)

    monkeypatch.setattr(BoundNumeric, "encode", noted)
    pieces = stage.answer(given, Stats())
    in_pieces = row_bytes < 8 * COUNT  # of two float32
    assert {name.startswith("encode") for name in threads} == {in_pieces}
    assert pieces.ids.tolist() == whole.ids.tolist()
    assert np.allclose(pieces.columns["prediction"].to_pylist(), whole.columns["prediction"].to_pylist(), atol=1e-6)
    assert pieces.failures == whole.failures


def test_an_error_of_an_encoder_ends_the_thread(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save(task="regression")
    given = rows()
    stage = ModelStage(model, bind_inputs(model.spec.inputs, (), given.batch), Predictor(model.load()))
    monkeypatch.setattr(stages, "PIECE_BYTES", 64)

    def broken(self: BoundNumeric, batch: pa.RecordBatch) -> object:
        raise AssertionError("a defect")

    monkeypatch.setattr(BoundNumeric, "encode", broken)
    with pytest.raises(AssertionError, match="a defect"):
        stage.answer(given, Stats())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("encode")]
