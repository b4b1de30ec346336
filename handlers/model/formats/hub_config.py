"""The fields of `model.yaml` that a directory of Hugging Face's libraries gives itself. Reads JSON only.

Supports directories as `save_pretrained` writes them (`config.json`, `*.safetensors`, tokenizer, image processor) and as
sentence-transformers does (in addition `modules.json` and a folder for each module).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from handlers.errors import UsageError, one_line

CONFIG = "config.json"
MODULES = "modules.json"
# The task by the suffix of an architecture's name.
_TASKS = {
    "ForSequenceClassification": "classification",
    "ForImageClassification": "classification",
}
_POOLING = {"cls_token": "cls", "mean_tokens": "mean", "max_tokens": "max", "lasttoken": "last"}
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json")
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
_WARPED_FROM = 384  # from this size on ConvNeXt resizes both sides and does not crop
_NO_LIMIT = 1_000_000  # tokenizers without a limit give 10**30


def is_hub_directory(folder: Path) -> bool:
    """Whether `folder` is one that `save_pretrained` or sentence-transformers wrote."""
    return (folder / CONFIG).is_file() and ("model_type" in read_json(folder / CONFIG) or (folder / MODULES).is_file())


def with_defaults(content: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """`content` of a `model.yaml` of format huggingface, completed with what the directory itself gives.

    Raises:
        UsageError: where the task or the inputs are neither given nor known from the directory.
    """
    try:
        known = _known(folder)
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # JSON of another shape than transformers writes
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise UsageError(f"{folder}: its JSON files are not those of save_pretrained ({reason})") from None
    if "task" in content and content["task"] != known.get("task"):
        known.pop("labels", None)
    found = known | dict(content)
    if "task" not in found:
        raise UsageError(
            f"{folder}: its architecture {_architecture(folder)} has no known task; write task and format: huggingface into a "
            "model.yaml, or name it: torchbeam init --task=embedding"
        )
    if "inputs" not in found:
        raise UsageError(f"{folder} has neither a tokenizer nor an image processor; write its inputs into a model.yaml")
    limit = max_tokens(folder)
    if limit is not None and isinstance(found["inputs"], list | tuple):
        found["inputs"] = [
            {**each, "max_length": limit} if _is(each, "text") and "max_length" not in each else each
            for each in found["inputs"]
        ]
    image = found.pop("image", None)
    if image and isinstance(found["inputs"], list | tuple):
        found["inputs"] = [_with_processor(each, image) if _is(each, "image") else each for each in found["inputs"]]
    if found["task"] != "embedding":
        found = {
            name: value for name, value in found.items() if name not in ("pooling", "normalize") or name in content
        }
    return found


def _is(given: Any, encoder: str) -> bool:
    return isinstance(given, Mapping) and given.get("encoder") == encoder


def _with_processor(given: Mapping[str, Any], image: Mapping[str, Any]) -> dict[str, Any]:
    """An image input with what the processor does; a size of the input replaces both sizes of the processor."""
    has_size = {"resize", "crop"} & set(given)
    return {name: value for name, value in image.items() if name not in ("resize", "crop") or not has_size} | dict(
        given
    )


def _image(folder: Path) -> dict[str, Any]:
    """What the image processor of a directory does, as fields of an image input."""
    config = next((found for name in _PROCESSORS if (found := read_json(folder / name))), {})
    config = config.get("image_processor", config)
    fields: dict[str, Any] = {}
    size, crop = config.get("size"), config.get("crop_size")
    if config.get("do_resize", True) and size is not None:
        fields["resize"] = _size(size, folder)
        resample = config.get("resample", 2)
        if resample not in (2, 3):
            raise UsageError(
                f"{folder}: the image processor resizes by filter {resample}; supported are 2 (bilinear) and 3 (bicubic)"
            )
        fields["interpolation"] = "bicubic" if resample == 3 else "bilinear"
    if "crop_pct" in config and isinstance(fields.get("resize"), int):  # of ConvNeXt, also used by ResNet
        short = fields["resize"]
        warped = {"resize": [short, short]}
        fields |= {"resize": int(short / config["crop_pct"]), "crop": short} if short < _WARPED_FROM else warped
    if config.get("do_center_crop", False) and crop is not None:
        fields["crop"] = _size(crop, folder)
    if config.get("do_rescale", True):
        fields["scale"] = config.get("rescale_factor", 1 / 255)
    if config.get("do_normalize", True) and "image_mean" in config:
        fields |= {"mean": list(config["image_mean"]), "std": list(config["image_std"])}
    return fields


def _size(size: Any, folder: Path) -> int | list[int]:
    if isinstance(size, int):
        return size
    if isinstance(size, Mapping) and "shortest_edge" in size:
        return int(size["shortest_edge"])
    if isinstance(size, Mapping) and {"height", "width"} <= set(size):
        return [int(size["height"]), int(size["width"])]
    raise UsageError(f"{folder}: the image processor has an unsupported size: {size}")


def max_tokens(folder: Path) -> int | None:
    """The maximum tokens of a text; None where the directory gives no limit."""
    sentence = read_json(folder / "sentence_bert_config.json").get("max_seq_length")
    tokenizer = read_json(folder / "tokenizer_config.json").get("model_max_length")
    positions = read_json(folder / CONFIG).get("max_position_embeddings")
    for limit in (sentence, tokenizer, positions):
        if isinstance(limit, int | float) and 0 < limit < _NO_LIMIT:
            return int(limit)
    return None


def read_json(file: Path) -> dict[str, Any]:
    """The mapping in a JSON file; empty where there is no such file. Raises `UsageError` for anything else in it."""
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read: {error}") from None
    if isinstance(content, list):
        return {str(index): item for index, item in enumerate(content)}
    if not isinstance(content, dict):
        raise UsageError(f"{file} must be a JSON mapping")
    return content


def modules_of(folder: Path) -> list[tuple[str, Path]]:
    """The modules of a directory of sentence-transformers: the class name and the folder of each.

    Raises:
        UsageError: for a folder outside of the directory, which its version would not cover.
    """
    found = []
    for module in read_json(folder / MODULES).values():
        path = module.get("path") if isinstance(module, Mapping) else None
        if not isinstance(path, str) or PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise UsageError(f"{folder / MODULES} names the module folder {path!r}, which is not in the directory")
        found.append((str(module.get("type", "")).rsplit(".", 1)[-1], folder / path))
    return found


def _known(folder: Path) -> dict[str, Any]:
    """The fields that the directory gives."""
    config = read_json(folder / CONFIG)
    fields: dict[str, Any] = {"name": folder.resolve().name, "format": "huggingface"}
    architecture = _architecture(folder)
    task = next((task for end, task in _TASKS.items() if architecture.endswith(end)), None)
    if (folder / MODULES).is_file():
        task = "embedding"
        fields |= _pooling(folder)
    if task == "classification":
        labels = _labels(config)
        if config.get("problem_type") == "multi_label_classification":
            task = "multilabel"
        elif config.get("problem_type") == "regression" or len(labels) == 1:
            task, labels = "regression", []
        if labels:
            fields["labels"] = labels
    if task is not None:
        fields["task"] = task
    if any((folder / name).is_file() for name in _TOKENIZERS):
        fields["inputs"] = [{"name": "text", "encoder": "text"}]
    elif any((folder / name).is_file() for name in _PROCESSORS):
        fields["inputs"] = [{"name": "image", "encoder": "image"}]
        fields["image"] = _image(folder)
    return fields


def _architecture(folder: Path) -> str:
    names = read_json(folder / CONFIG).get("architectures") or [""]
    return str(names[0])


def _labels(config: Mapping[str, Any]) -> list[str]:
    """The names of the classes, in the order of the outputs."""
    by_id = config.get("id2label") or {
        str(index): f"LABEL_{index}" for index in range(int(config.get("num_labels", 2)))
    }
    return [str(by_id[key]) for key in sorted(by_id, key=int)]


def _pooling(folder: Path) -> dict[str, Any]:
    """Pooling and normalization of a directory of sentence-transformers."""
    fields: dict[str, Any] = {"normalize": False}
    for kind, part in modules_of(folder):
        if kind == "Pooling":
            config = read_json(part / CONFIG)
            modes = [
                name.removeprefix("pooling_mode_")
                for name, chosen in config.items()
                if chosen is True and "mode" in name
            ]
            mode = config.get("pooling_mode") if isinstance(config.get("pooling_mode"), str) else None
            found = [mode] if mode else [_POOLING.get(name) for name in modes]
            if len(found) != 1 or found[0] not in _POOLING.values():
                raise UsageError(f"{part}: pooling {', '.join(modes) or mode} is not supported")
            fields["pooling"] = found[0]
        elif kind == "Normalize":
            fields["normalize"] = True
        elif kind not in ("Transformer", "Dense"):
            raise UsageError(
                f"{folder / MODULES}: the module {kind} is not supported; supported are Pooling, Dense, Normalize"
            )
    return fields
