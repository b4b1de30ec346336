"""Text through tokenizers and transformers, against transformers called by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import text_models
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from handlers import ModelDir, Predictor
from handlers.columnar import stage as stages
from handlers.columnar.chunks import with_provenance
from handlers.columnar.plan import Chain
from handlers.columnar.planning import make_plan
from handlers.columnar.scorer import Scored, Scorer
from handlers.elements.handler import TorchModelHandler
from handlers.encode.binding import bind_inputs
from handlers.encode.specs import input_spec
from handlers.encode.text import BoundText
from handlers.errors import UsageError
from handlers.tensors import Ragged

TEXTS = ["good film", "", "the film was not very good", "bad " * 40, "😀 ünknown", "a"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelDir:
    return ModelDir.save(
        text_models.classifier(),
        tmp_path_factory.mktemp("text") / "reviews",
        format="huggingface",
        tokenizer=text_models.tokenizer(),
    )


def scorer(model: ModelDir, sample: pa.RecordBatch) -> Scorer:
    predictor = Predictor(model.load())
    return Scorer(model, make_plan(model, predictor, sample, Chain.of(model.spec)), predictor)


def score(model: ModelDir, batch: pa.RecordBatch) -> Scored:
    chunk = with_provenance(batch, "f", 0)
    return scorer(model, chunk).score(chunk)


def by_hand(texts: list[str], second: list[str] | None = None, module: Any = None) -> np.ndarray:
    """Probabilities of the classes, one text at a time."""
    module = module or text_models.classifier()
    tokenizer = text_models.tokenizer()
    found = []
    for index, text in enumerate(texts):
        pair = () if second is None else (second[index],)
        tokens = tokenizer(text, *pair, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            found.append(module(**tokens).logits.softmax(1)[0])
    return torch.stack(found).numpy()


def test_it_tells_what_it_is(model: ModelDir) -> None:
    assert (model.spec.task, model.spec.labels) == ("classification", ("negative", "positive", "neutral"))
    (given,) = model.spec.inputs
    assert (given.encoder, given.name, getattr(given, "max_length", None)) == ("text", "text", 16)


def test_classification_as_by_hand(model: ModelDir) -> None:
    scored = score(model, pa.record_batch({"id": range(len(TEXTS)), "review": TEXTS}))
    expected = by_hand(TEXTS)
    labels = [text_models.LABELS[index] for index in expected.argmax(1)]
    assert scored.predictions.column("predicted_class").to_pylist() == labels
    assert np.allclose(scored.predictions.column("confidence").to_numpy(), expected.max(1), atol=1e-6)
    assert scored.predictions.column("id").to_pylist() == list(range(len(TEXTS)))
    assert dict(scored.stats.counts) == {"texts_truncated": 1}


def test_null_is_a_dead_letter_unless_filled(model: ModelDir, tmp_path: Path) -> None:
    batch = pa.record_batch({"text": ["good", None, "bad"]})
    scored = score(model, batch)
    (letter,) = scored.dead_letters.column("dead_letter").to_pylist()
    assert (letter["row"], letter["stage"], letter["type"]) == (1, "encode", "NullValue")
    assert 'column "text" holds null' in letter["message"]
    filled = ModelDir.save(
        text_models.classifier(),
        tmp_path / "filled",
        format="huggingface",
        tokenizer=text_models.tokenizer(),
        inputs=[{"name": "text", "encoder": "text", "fill": "a b"}],
    )
    found = score(filled, batch).predictions.column("confidence").to_numpy()
    assert np.allclose(found, by_hand(["good", "a b", "bad"]).max(1), atol=1e-6)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_types_of_text(model: ModelDir, kind: pa.DataType) -> None:
    array = (
        pa.array(["good", "bad"]).dictionary_encode()
        if pa.types.is_dictionary(kind)
        else pa.array(["good", "bad"], kind)
    )
    found = score(model, pa.record_batch({"text": array})).predictions.column("confidence").to_numpy()
    assert np.allclose(found, by_hand(["good", "bad"]).max(1), atol=1e-6)


class TestColumns:
    def save(self, folder: Path, **fields: Any) -> ModelDir:
        return ModelDir.save(
            text_models.classifier(),
            folder / "m",
            format="huggingface",
            tokenizer=text_models.tokenizer(),
            inputs=[{"name": "text", "encoder": "text", **fields}],
        )

    def test_two_columns_are_a_pair(self, tmp_path: Path) -> None:
        batch = pa.record_batch({"q": ["good film", "a"], "a": ["bad", "b c"]})
        found = score(self.save(tmp_path, columns=["q", "a"]), batch).predictions.column("confidence").to_numpy()
        assert np.allclose(found, by_hand(["good film", "a"], ["bad", "b c"]).max(1), atol=1e-6)

    def test_joined_with_a_prefix(self, tmp_path: Path) -> None:
        batch = pa.record_batch({"q": ["good", "a"], "a": ["bad", "b"], "z": ["c", "d"]})
        saved = self.save(tmp_path, columns=["q", "a", "z"], join=" ", prefix="the ")
        found = score(saved, batch).predictions.column("confidence").to_numpy()
        assert np.allclose(found, by_hand(["the good bad c", "the a b d"]).max(1), atol=1e-6)

    def test_refusals(self, model: ModelDir, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match='column "text" holds int64; the text input "text" needs text'):
            score(model, pa.record_batch({"text": [1, 2]}))
        with pytest.raises(UsageError, match="columns of text are a, b; write its columns"):
            score(model, pa.record_batch({"a": ["x"], "b": ["y"]}))
        with pytest.raises(UsageError, match="no column holds text"):
            score(model, pa.record_batch({"a": [1]}))
        with pytest.raises(UsageError, match="has 3 columns; set join"):
            score(self.save(tmp_path, columns=["a", "b", "c"]), pa.record_batch({name: ["x"] for name in "abc"}))
        with pytest.raises(UsageError, match="tokenizer must name a folder in the model directory"):
            self.save(tmp_path, tokenizer="../elsewhere")
        with pytest.raises(UsageError, match="timestamp is an option of the numeric encoder"):
            self.save(tmp_path, timestamp="s")
        with pytest.raises(UsageError, match="pooling is an option of format huggingface with task embedding"):
            ModelDir.save(
                text_models.classifier(), tmp_path / "p", format="huggingface", pooling="mean", inputs=[{"name": "x"}]
            )

    def test_a_directory_without_a_tokenizer(self, tmp_path: Path) -> None:
        saved = self.save(tmp_path)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (Path(saved.path) / name).unlink()
        with pytest.raises(UsageError, match="has no tokenizer"):
            score(ModelDir(saved.path), pa.record_batch({"text": ["a"]}))


def test_chunks_of_other_schemas(model: ModelDir) -> None:
    """A later chunk may lack the column or hold other types; that costs its rows."""
    found = scorer(model, with_provenance(pa.record_batch({"text": ["a"]}), "f", 0))
    missing = found.stage.answer(rows_of(pa.record_batch({"other": ["a", "b"]})), stages.Stats())
    assert {failure.type for failure in missing.failures.values()} == {"MissingColumn"}
    wrong = found.stage.answer(rows_of(pa.record_batch({"text": [1.5]})), stages.Stats())
    assert {failure.type for failure in wrong.failures.values()} == {"WrongType"}


def rows_of(batch: pa.RecordBatch) -> stages.Rows:
    return stages.Rows(batch, np.arange(batch.num_rows))


@settings(max_examples=20, deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from(["good", "bad", "film", "?"]), max_size=30).map(" ".join), min_size=1, max_size=40
    )
)
def test_an_answer_does_not_depend_on_the_neighbours(texts: list[str]) -> None:
    found = _shared().score(with_provenance(pa.record_batch({"text": texts}), "f", 0)).predictions.column("confidence")
    assert np.allclose(found.to_numpy(), by_hand(texts, module=_module()).max(1), atol=1e-6)


_CACHE: dict[str, Any] = {}


def _module() -> Any:
    return _CACHE.setdefault("module", text_models.classifier())


def _shared() -> Scorer:
    return _CACHE["scorer"]


@pytest.fixture(scope="module", autouse=True)
def _scorer_for_properties(model: ModelDir) -> None:
    _CACHE["scorer"] = scorer(model, with_provenance(pa.record_batch({"text": ["a"]}), "f", 0))


def test_pieces_in_order_of_length(model: ModelDir, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [" ".join(["good"] * (index * 7 % 23)) for index in range(50)]
    expected = score(model, pa.record_batch({"text": texts})).predictions
    monkeypatch.setattr(BoundText, "row_bytes", property(lambda self: (64 << 20) // 8))
    found = score(model, pa.record_batch({"text": texts}))
    assert len(found.stats.micro_batches) >= 50 // 8
    assert np.allclose(found.predictions.column("confidence"), expected.column("confidence"), atol=1e-6)


def test_raw_outputs_of_one_vector_a_token(tmp_path: Path) -> None:
    saved = ModelDir.save(
        text_models.encoder(), tmp_path / "raw", format="huggingface", tokenizer=text_models.tokenizer(), task="raw"
    )
    texts = ["good film", "a", "the film was bad"]
    column = score(saved, pa.record_batch({"text": texts})).predictions.column("last_hidden_state")
    assert column.type == pa.list_(pa.list_(pa.float32(), 16))
    for text, found in zip(texts, column.to_pylist(), strict=True):
        tokens = text_models.tokenizer()(text, return_tensors="pt")
        with torch.inference_mode():
            expected = text_models.encoder()(**tokens).last_hidden_state[0].numpy()
        assert np.allclose(found, expected, atol=1e-6)


def test_an_architecture_of_ones_own_with_a_tokenizer(tmp_path: Path) -> None:
    """`encoder: text` for a module that takes tokens and a mask by names of its own."""
    text_models.tokenizer().save_pretrained(tmp_path)
    spec = input_spec(name="tokens", columns=["t"], encoder="text", max_length=4)
    batch = pa.record_batch({"t": ["good", "a b c d e"]})
    (bound,) = bind_inputs([spec], (), batch, ("tokens", "mask"))
    ready = bound.prepare(tmp_path)
    encoded = ready.encode(batch)
    tokens = encoded.tensors["tokens"]
    assert isinstance(tokens, Ragged)
    assert [row.tolist() for row in tokens.rows()] == [[2, 4, 3], [2, 11, 12, 3]]
    assert ready.padding is not None
    assert (ready.padding.mask, ready.padding.value_of("tokens")) == ("mask", 0)
    assert encoded.counts == {"texts_truncated": 1}


def test_elements_through_the_same_encoder(model: ModelDir) -> None:
    handler = TorchModelHandler(model, head=True)
    loaded = handler.load_model()
    results = list(handler.run_inference([{"text": text} for text in TEXTS], loaded))
    found = [result.inference["confidence"] for result in results]
    assert np.allclose(found, by_hand(TEXTS).max(1), atol=1e-6)


def test_bytes_that_are_not_utf8_fail_their_row_alone(model: ModelDir) -> None:
    data = b"good\xff\xfefilm"
    offsets = pa.py_buffer(np.array([0, 4, 6, 10], np.int32).tobytes())
    array = pa.Array.from_buffers(pa.string(), 3, [None, offsets, pa.py_buffer(data)])
    sample = pa.RecordBatch.from_pydict({"text": ["good"]})
    predictor = Predictor(model.load())
    (bound,) = bind_inputs(model.spec.inputs, predictor.model.inputs, sample, predictor.model.parameters)
    encoded = bound.prepare(model.local()).encode(pa.RecordBatch.from_arrays([array], names=["text"]))
    assert {row: failure.type for row, failure in encoded.failures.items()} == {1: "UnicodeDecodeError"}
    ids = encoded.tensors["input_ids"]
    assert isinstance(ids, Ragged)
    assert ids.rows()[0].tolist() == text_models.tokenizer()("good")["input_ids"]
