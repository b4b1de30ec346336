"""Directories of Hugging Face's libraries as model directories."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import text_models
import torch

from handlers import ModelDir, Predictor
from handlers.columnar.chunks import with_provenance
from handlers.columnar.plan import Chain
from handlers.columnar.planning import make_plan
from handlers.columnar.scorer import Scorer
from handlers.errors import UsageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A classifier as save_pretrained writes it, without a model.yaml."""
    target = tmp_path / "reviews"
    text_models.classifier().save_pretrained(target)
    text_models.tokenizer().save_pretrained(target)
    return target


def edit(folder: Path, **fields: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))


def embeddings(model: ModelDir, texts: list[str]) -> np.ndarray:
    chunk = with_provenance(pa.record_batch({"text": texts}), "f", 0)
    predictor = Predictor(model.load())
    scored = Scorer(model, make_plan(model, predictor, chunk, Chain.of(model.spec)), predictor).score(chunk)
    assert scored.predictions.num_rows == len(texts), scored.dead_letters.to_pylist()
    column = scored.predictions.column("embedding")
    assert pa.types.is_fixed_size_list(column.type)
    return np.array(column.to_pylist(), np.float32)


def test_a_directory_needs_no_model_yaml(folder: Path) -> None:
    model = ModelDir(folder)
    assert (model.spec.name, model.spec.task, model.spec.labels) == (
        "reviews",
        "classification",
        ("negative", "positive", "neutral"),
    )
    before = model.version
    lines = ["format: huggingface", "task: classification", "labels: [a, b, c]", "inputs: [{name: t, encoder: text}]"]
    (folder / "model.yaml").write_text("\n".join(lines))
    after = ModelDir(folder)
    assert after.spec.labels == ("a", "b", "c")
    assert after.spec.inputs[0].name == "t"
    assert getattr(after.spec.inputs[0], "max_length", None) == 16
    assert after.version != before


def test_tasks_that_the_configuration_tells(folder: Path) -> None:
    edit(folder, problem_type="multi_label_classification")
    assert ModelDir(folder).spec.task == "multilabel"
    edit(folder, problem_type=None, id2label={"0": "score"})
    assert (ModelDir(folder).spec.task, ModelDir(folder).spec.labels) == ("regression", None)
    edit(folder, architectures=["BertForMaskedLM"])
    with pytest.raises(UsageError, match="BertForMaskedLM has no known task"):
        ModelDir(folder)


class TestRefusals:
    def test_pickled_weights(self, folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        torch.save(text_models.classifier().state_dict(), folder / "pytorch_model.bin")
        with pytest.raises(UsageError, match=r"its weights are pickled \(pytorch_model.bin\)"):
            ModelDir(folder).load()

    def test_no_weights(self, folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        with pytest.raises(UsageError, match="it has no weights"):
            ModelDir(folder).load()

    def test_code_of_its_own(self, folder: Path) -> None:
        edit(folder, auto_map={"AutoModelForSequenceClassification": "modeling.Net"})
        (folder / "modeling.py").write_text("raise SystemExit('it ran')")
        with pytest.raises(UsageError, match="names custom code"):
            ModelDir(folder).load()

    @pytest.mark.parametrize("name", ["Net", "pipeline", "AutoModel", "__name__"])
    def test_an_architecture_that_is_no_model(self, folder: Path, name: str) -> None:
        edit(folder, architectures=[name])
        (folder / "model.yaml").write_text("format: huggingface\ntask: raw\n")
        with pytest.raises(UsageError, match="which transformers does not have"):
            ModelDir(folder).load()

    @pytest.mark.parametrize("part", ["../outside.safetensors", ".hidden.safetensors", "sub/part.safetensors"])
    def test_parts_of_weights_that_the_version_may_not_cover(self, folder: Path, part: str) -> None:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": part}}))
        with pytest.raises(UsageError, match="which is not in the directory"):
            ModelDir(folder).load()

    def test_damaged_weights(self, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"\xff" * 100)
        with pytest.raises(UsageError, match="cannot be loaded by transformers"):
            ModelDir(folder).load()

    def test_no_json(self, folder: Path) -> None:
        (folder / "model.yaml").write_text("format: huggingface\ntask: raw\n")
        (folder / "config.json").write_text("{")
        with pytest.raises(UsageError, match=r"config\.json cannot be read"):
            ModelDir(folder)

    @pytest.mark.parametrize("fields", [{"id2label": {"a": "x"}}, {"id2label": 3}, {"architectures": 7}])
    def test_a_configuration_of_another_shape(self, folder: Path, fields: dict[str, Any]) -> None:
        edit(folder, **fields)
        with pytest.raises(UsageError, match="are not those of save_pretrained"):
            ModelDir(folder)

    @pytest.mark.parametrize("processor", [{"size": 8, "image_mean": [0.5]}, {"image_processor": 3}])
    def test_a_processor_of_another_shape(self, folder: Path, processor: dict[str, Any]) -> None:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name).unlink()
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
        with pytest.raises(UsageError, match="are not those of save_pretrained"):
            ModelDir(folder)

    def test_unknown_pooling(self, tmp_path: Path) -> None:
        copy = shutil.copytree(text_models.minilm(), tmp_path / "m")
        (copy / "1_Pooling" / "config.json").write_text('{"pooling_mode_weightedmean_tokens": true}')
        with pytest.raises(UsageError, match="pooling weightedmean_tokens is not supported"):
            ModelDir(copy)
        (copy / "modules.json").write_text('[{"type": "sentence_transformers.models.CNN", "path": "1_CNN"}]')
        with pytest.raises(UsageError, match="the module CNN is not supported"):
            ModelDir(copy)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last", "max"])
@pytest.mark.parametrize("normalize", [False, True])
def test_pooling_by_hand(tmp_path: Path, pooling: str, normalize: bool) -> None:
    model = ModelDir.save(
        text_models.encoder(),
        tmp_path / "m",
        format="huggingface",
        tokenizer=text_models.tokenizer(),
        task="embedding",
        pooling=pooling,
        normalize=normalize,
    )
    texts = ["good film", "a", "the film was not very good", ""]
    found = embeddings(model, texts)
    for text, vector in zip(texts, found, strict=True):
        with torch.inference_mode():
            tokens = text_models.encoder()(**text_models.tokenizer()(text, return_tensors="pt")).last_hidden_state[0]
        expected = {"mean": tokens.mean(0), "cls": tokens[0], "last": tokens[-1], "max": tokens.max(0).values}[pooling]
        expected = expected / expected.norm() if normalize else expected
        assert np.allclose(vector, expected.numpy(), atol=1e-6)


@pytest.mark.slow(15)
def test_minilm_is_what_sentence_transformers_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from sentence_transformers import SentenceTransformer

    texts = [
        "",
        "one",
        "😀 emoji ✓",
        "Ünïcödé",
        "word " * 5000,
        *[" ".join(["many words"] * count) for count in (3, 40, 200)],
    ]
    expected = SentenceTransformer(str(text_models.minilm()), device="cpu").encode(texts)
    found = embeddings(ModelDir(text_models.minilm()), texts)
    assert (1 - (found * expected).sum(axis=1)).max() < 1e-5


def test_a_dense_layer_of_sentence_transformers(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    target = tmp_path / "m"
    text_models.encoder().save_pretrained(target)
    text_models.tokenizer().save_pretrained(target)
    (target / "1_Pooling").mkdir()
    (target / "1_Pooling" / "config.json").write_text(
        '{"pooling_mode_cls_token": true, "word_embedding_dimension": 16}'
    )
    (target / "2_Dense").mkdir()
    config = {
        "in_features": 16,
        "out_features": 3,
        "bias": True,
        "activation_function": "torch.nn.modules.activation.Tanh",
    }
    (target / "2_Dense" / "config.json").write_text(json.dumps(config))
    weight, bias = torch.arange(48.0).reshape(3, 16) / 50, torch.tensor([0.1, 0.2, 0.3])
    save_file({"linear.weight": weight, "linear.bias": bias}, target / "2_Dense" / "model.safetensors")
    kinds = {"Transformer": "", "Pooling": "1_Pooling", "Dense": "2_Dense"}
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in kinds.items()]
    (target / "modules.json").write_text(json.dumps(modules))
    with torch.inference_mode():
        cls = text_models.encoder()(**text_models.tokenizer()("good", return_tensors="pt")).last_hidden_state[0, 0]
    expected = torch.tanh(weight @ cls + bias)
    assert np.allclose(embeddings(ModelDir(target), ["good"])[0], expected.numpy(), atol=1e-6)


@pytest.mark.parametrize("path", ["../other", "/other", None])
def test_modules_outside_of_the_directory_are_refused(folder: Path, path: str | None) -> None:
    modules = [{"type": "sentence_transformers.models.Pooling", "path": path}]
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UsageError, match="which is not in the directory"):
        ModelDir(str(folder))
