"""Format huggingface: a directory as `save_pretrained` or sentence-transformers writes it. Needs `transformers`.

Nothing is fetched and no code of the directory runs: `local_files_only`, `trust_remote_code=False`, safetensors alone.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from handlers.errors import TorchbeamError, UsageError, one_line
from handlers.model.device_map import PlacementSpec
from handlers.model.formats.hub_config import CONFIG, modules_of, read_json
from handlers.model.spec import ModelSpec
from handlers.model_code import ModelCode
from handlers.predict.loaded import LoadedModel

OFFLINE = {"local_files_only": True, "trust_remote_code": False}
_ACTIVATIONS = {"Identity": torch.nn.Identity, "Tanh": torch.nn.Tanh, "ReLU": torch.nn.ReLU, "GELU": torch.nn.GELU}


class Embedder(torch.nn.Module):
    """A transformer whose token vectors are pooled to one vector per row; returns `{"embedding": (rows, k)}`.

    Pooling is that of sentence-transformers: `mean` over the real tokens, `cls` (the first), `last` (the last real one) or
    `max`.
    """

    def __init__(self, backbone: torch.nn.Module, pooling: str, layers: torch.nn.Module, *, normalize: bool) -> None:
        super().__init__()
        self.backbone: Any = backbone
        self.layers: Any = layers
        self._pooling = pooling
        self._normalize = normalize

    def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """`inputs` as the transformer takes them, `attention_mask` of (rows, tokens) among them."""
        tokens = self.backbone(**inputs).last_hidden_state
        mask = inputs.get("attention_mask", torch.ones(tokens.shape[:2], dtype=torch.int64, device=tokens.device))
        vectors = self.layers(_pooled(tokens, mask, self._pooling))
        return {"embedding": torch.nn.functional.normalize(vectors, dim=1) if self._normalize else vectors}


def load(spec: ModelSpec, folder: Path, _code: ModelCode) -> LoadedModel:
    """Loads the model of a directory; raises `UsageError` where it cannot be loaded safely."""
    transformers = import_transformers()
    config = checked_config(folder)
    kind: Any = transformers.AutoModel
    if spec.task != "embedding":
        kind = _architecture(transformers, config, folder)
    try:
        if spec.placement is not None:
            return _placed(kind, spec, folder, spec.placement)
        module = kind.from_pretrained(folder, use_safetensors=True, **OFFLINE)
        if spec.task == "embedding":
            return _embedder(module, spec, folder)
    except TorchbeamError:
        raise
    except Exception as error:
        raise UsageError(
            f"{folder} cannot be loaded by transformers: {type(error).__name__}: {one_line(error)}"
        ) from None
    module.eval()
    return LoadedModel(module, _parameters(module))


def checked_config(folder: Path) -> dict[str, Any]:
    """The contents of `config.json`; raises `UsageError` for a directory that cannot be loaded safely."""
    if not any(folder.glob("*.safetensors")):
        pickled = next((file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern)), None)
        what = f"its weights are pickled ({pickled})" if pickled else "it has no weights (*.safetensors)"
        raise UsageError(f"{folder} is refused: {what}; write it again with save_pretrained, which writes safetensors")
    config = read_json(folder / CONFIG)
    if "auto_map" in config:
        raise UsageError(f"{folder} is refused: its {CONFIG} names custom code (auto_map), which is never run")
    for index in folder.glob("*.index.json"):  # whose parts must be files of the directory, which its version covers
        parts = read_json(index).get("weight_map", {})
        if outside := next((part for part in parts.values() if not re.fullmatch(r"\w[\w.\-]*", str(part))), None):
            raise UsageError(f"{folder} is refused: {index.name} names {outside!r}, which is not in the directory")
    return config


class _Copies:
    """Stands for copies of weights: they are removed with it."""


def _placed(kind: Any, spec: ModelSpec, folder: Path, placement: PlacementSpec) -> LoadedModel:
    """The model with its layers on several devices; transformers reads those on the disk from the safetensors files."""
    from handlers.model import dispatch

    accelerate = dispatch.library()
    with accelerate.init_empty_weights():
        empty = kind.from_config(_config(folder)) if hasattr(kind, "from_config") else kind(_config(folder))
    device_map = dispatch.settle(empty, placement)
    source, copies = folder, _Copies()
    if placement.offload_folder is not None:
        files = sorted(file for file in folder.iterdir() if file.suffix in (".safetensors", ".json"))
        source = dispatch.local_copies(files, placement, copies)[0].parent
    module = kind.from_pretrained(source, use_safetensors=True, device_map=device_map, **OFFLINE)
    module.weights_on_disk = copies  # kept as long as the module
    device = dispatch.main_device(device_map)
    module = dispatch.one_at_a_time(module.eval())
    if spec.task == "embedding":
        return replace(_embedder(module, spec, folder, device), device=device)
    return LoadedModel(module, _parameters(module), device=device)


def _config(folder: Path) -> Any:
    return import_transformers().AutoConfig.from_pretrained(folder, **OFFLINE)


def save(module: torch.nn.Module, folder: Path, _example: object) -> Path:
    """Writes `module`, a `PreTrainedModel`, into `folder`."""
    write = getattr(module, "save_pretrained", None)
    if write is None:
        raise UsageError(f"format huggingface needs a model of transformers, not a {type(module).__name__}")
    import_transformers()
    write(folder)
    return folder / CONFIG


def import_transformers() -> Any:
    """The library, offline and silent; raises `UsageError` where it is not installed."""
    # Read on import; without it an unreachable hub is waited for.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        import transformers
    except ImportError:
        raise UsageError("format huggingface needs transformers; pip install 'torchbeam[text]'") from None
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    return transformers


def _architecture(transformers: Any, config: Mapping[str, Any], folder: Path) -> Any:
    """The class that `config.json` names, if it is one of the models of transformers."""
    name = str((config.get("architectures") or [""])[0])
    kind = getattr(transformers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise UsageError(f'{folder}/{CONFIG} names the architecture "{name}", which transformers does not have')
    return kind


def _embedder(
    backbone: torch.nn.Module, spec: ModelSpec, folder: Path, device: torch.device | None = None
) -> LoadedModel:
    layers = [_dense(part).to(device) for kind, part in modules_of(folder) if kind == "Dense"]
    module = Embedder(backbone, spec.pooling or "mean", torch.nn.Sequential(*layers), normalize=bool(spec.normalize))
    return LoadedModel(module.eval(), _parameters(backbone), keywords=frozenset(_parameters(backbone)))


def _dense(folder: Path) -> torch.nn.Module:
    """A dense layer of sentence-transformers."""
    from safetensors.torch import load_file

    config = read_json(folder / CONFIG)
    activation = str(config.get("activation_function", "Identity")).rsplit(".", 1)[-1]
    if activation not in _ACTIVATIONS or not (folder / "model.safetensors").is_file():
        raise UsageError(f"{folder}: a dense layer needs model.safetensors and one of {', '.join(_ACTIVATIONS)}")
    layer = torch.nn.Linear(int(config["in_features"]), int(config["out_features"]), bool(config.get("bias", True)))
    weights = {name.removeprefix("linear."): tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    layer.load_state_dict(weights)
    return torch.nn.Sequential(layer, _ACTIVATIONS[activation]())


def _parameters(module: torch.nn.Module) -> tuple[str, ...]:
    kinds = inspect.Parameter
    parameters = inspect.signature(module.forward).parameters.values()
    return tuple(each.name for each in parameters if each.kind not in (kinds.VAR_KEYWORD, kinds.VAR_POSITIONAL))


def _pooled(tokens: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """One vector per row of `tokens`, (rows, tokens, k)."""
    if pooling == "cls":
        return tokens[:, 0]
    if pooling == "last":
        last = mask.shape[1] - 1 - mask.flip(1).argmax(dim=1)
        return tokens[torch.arange(len(tokens), device=tokens.device), last]
    weights = mask.unsqueeze(-1).to(tokens.dtype)
    if pooling == "max":
        return tokens.masked_fill(weights == 0, -torch.inf).max(dim=1).values
    return (tokens * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-9)
