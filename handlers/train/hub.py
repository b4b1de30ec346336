"""A model of a Hugging Face directory with a new head, to be fine-tuned. Needs `transformers`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from handlers.errors import UsageError, one_line
from handlers.model.formats.huggingface import OFFLINE, checked_config, import_transformers

_CLASSES = {"text": "AutoModelForSequenceClassification", "image": "AutoModelForImageClassification"}
_PROBLEMS = {
    "classification": "single_label_classification",
    "multilabel": "multi_label_classification",
    "regression": "regression",
}


def with_head(folder: Path, encoder: str, task: str, names: Sequence[str]) -> tuple[torch.nn.Module, dict[str, Any]]:
    """The model of a directory with a head for these labels; a head of another size there is replaced.

    Args:
        folder: as `save_pretrained` or sentence-transformers wrote it; nothing is fetched and none of its code runs.
        encoder: of the input: `text` or `image`.
        task: what is learned.
        names: of the labels, in order; empty texts for the numbers of a regression.

    Returns:
        The model, and the arguments of `ModelDir.save` for its tokenizer or image processor.

    Raises:
        UsageError: where it cannot be loaded safely, or has no head for such labels.
    """
    transformers = import_transformers()
    checked_config(folder)
    ids = {index: name or f"value_{index}" for index, name in enumerate(names)}
    try:
        model = getattr(transformers, _CLASSES[encoder]).from_pretrained(
            folder,
            use_safetensors=True,
            num_labels=len(names),
            id2label=ids,
            label2id={name: index for index, name in ids.items()},
            problem_type=_PROBLEMS[task],
            ignore_mismatched_sizes=True,
            **OFFLINE,
        )
        if encoder == "text":
            parts = {"tokenizer": transformers.AutoTokenizer.from_pretrained(folder, **OFFLINE)}
        else:
            parts = {"image_processor": transformers.AutoImageProcessor.from_pretrained(folder, **OFFLINE)}
    except Exception as error:
        raise UsageError(
            f"{folder} cannot be fine-tuned for {encoder}: {type(error).__name__}: {one_line(error)}"
        ) from None
    return model, parts
