"""Models larger than a device or the memory of a host: layers over GPUs, CPU and disk, by accelerate.

Layers on the disk are read from safetensors files when they are called, and leave the memory after that, so that a model needs no
more than what `max_memory` allows and its largest layer. Needs the extra `large`.
"""

from __future__ import annotations

import functools
import logging
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from handlers.errors import UsageError, one_line
from handlers.model.device_map import PlacementSpec
from handlers.predict import freed_memory
from handlers.private import scratch_folder


def dispatch(
    make: Callable[[], torch.nn.Module], files: Sequence[Path], placement: PlacementSpec
) -> tuple[torch.nn.Module, torch.device]:
    """A module with its weights where `placement` says.

    Args:
        make: makes the module, without weights; called with empty parameters, which take no memory.
        files: safetensors files with its weights.
        placement: where layers are.

    Returns:
        The module, in evaluation mode, and the device of its inputs.

    Raises:
        UsageError: if accelerate is missing, the weights do not fit the module, or the placement cannot work.
    """
    accelerate = library()
    with accelerate.init_empty_weights():
        module = make().eval()
    files = local_copies(files, placement, module)
    tensors = _tensors(files)
    names = set(module.state_dict())
    if wrong := sorted(names ^ tensors.keys()):
        what = "is not in the weights" if wrong[0] in names else "is not in the model"
        raise UsageError(f'"{wrong[0]}" {what}, so {files[0]} does not fit it')
    device_map = settle(module, placement)
    index: dict[str, dict[str, str]] = {}
    for name in names:
        file, stored = tensors[name]
        device = _device_of(name, device_map)
        if device == "disk":
            dtype = str(module.state_dict()[name].dtype).removeprefix("torch.")
            index[name] = {"safetensors_file": str(file), "weight_name": stored, "dtype": dtype}
            continue
        with safe_open(str(file), "pt") as opened:
            value = opened.get_tensor(stored)
            accelerate.utils.set_module_tensor_to_device(module, name, device, value=value.clone())
    accelerate.dispatch_model(module, device_map, offload_index=index or None, force_hooks=True)
    return one_at_a_time(module), main_device(device_map)


def library() -> Any:
    """accelerate, which logs errors only."""
    try:
        import accelerate
    except ImportError:
        raise UsageError("placement and --device_map need accelerate; pip install 'torchbeam[large]'") from None
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    return accelerate


def settle(module: torch.nn.Module, placement: PlacementSpec) -> dict[str, str | int]:
    """The device of each layer of a module without weights: `cpu`, `disk`, or the index of a GPU.

    Raises:
        UsageError: for GPUs that are not there, layers that `device_map` does not name, or too little memory.
    """
    limits = memory_limits(placement)
    if isinstance(placement.device_map, dict):
        device_map = {name: _index(device) for name, device in placement.device_map.items()}
        _check_gpus(device_map.values(), "device_map")
        if missing := [name for name in module.state_dict() if _device_of(name, device_map) is None]:
            raise UsageError(f'placement.device_map names no device for "{missing[0]}"')
        return device_map
    utils = library().utils
    no_split = [*placement.no_split, *(getattr(module, "_no_split_modules", None) or ())]
    largest = max((sum(p.nbytes for p in each.parameters(recurse=False)) for each in module.modules()), default=0)
    most = max(limits.values(), default=0)
    if largest > most:
        raise UsageError(
            f"placement.max_memory: the largest layer takes {_gigabytes(largest)}, and no device has more than "
            f"{_gigabytes(most)}; allow a device more"
        )
    if placement.device_map != "sequential":
        limits = utils.get_balanced_memory(
            module, limits, no_split_module_classes=no_split, low_zero=placement.device_map == "balanced_low_0"
        )
    found: dict[str, str | int] = utils.infer_auto_device_map(module, limits, no_split_module_classes=no_split)
    return found


def memory_limits(placement: PlacementSpec) -> dict[str | int, int]:
    """`max_memory` as accelerate takes it; all that there is if it is not given."""
    given = {_index(device): size for device, size in placement.bytes_of_devices().items()}
    _check_gpus(given, "max_memory")
    found: dict[str | int, int] = library().utils.get_max_memory(given or None)
    return found


def main_device(device_map: Mapping[str, str | int]) -> torch.device:
    """The device of the inputs: the first GPU that has layers, else the CPU."""
    gpus = [device for device in device_map.values() if device not in ("cpu", "disk")]
    return torch.device("cuda", int(gpus[0])) if gpus else torch.device("cpu")


def one_at_a_time(module: torch.nn.Module) -> torch.nn.Module:
    """Puts a lock around `forward`: layers come and go during a call, so that threads cannot share them."""
    lock, forward = threading.Lock(), module.forward
    freed_memory.give_back()

    @functools.wraps(forward)
    def locked(*args: Any, **kwargs: Any) -> Any:
        with lock:
            return forward(*args, **kwargs)

    module.forward = locked
    return module


def local_copies(files: Sequence[Path], placement: PlacementSpec, owner: object) -> list[Path]:
    """The files, copied into the offload folder if there is one; the copies are removed with `owner`, or when the process ends."""
    if placement.offload_folder is None:
        return list(files)
    placement.check_folder()
    folder = scratch_folder(Path(placement.offload_folder), owner)
    try:
        return [Path(shutil.copy(file, folder)) for file in files]
    except OSError as error:
        raise UsageError(f"placement.offload_folder {placement.offload_folder}: {one_line(error)}") from None


def _tensors(files: Sequence[Path]) -> dict[str, tuple[Path, str]]:
    """Where each tensor is: its file and its name there, which differs for tensors that share their memory."""
    found: dict[str, tuple[Path, str]] = {}
    for file in files:
        with safe_open(str(file), "pt") as opened:
            names = set(opened.keys())
            found |= {name: (file, name) for name in names}
            shared = (opened.metadata() or {}).items()  # as safetensors.torch.save_model writes them
            found |= {name: (file, kept) for name, kept in shared if kept in names and name != "format"}
    return found


def _device_of(name: str, device_map: Mapping[str, str | int]) -> str | int | None:
    while name not in device_map:
        if not name:
            return None
        name = name.rpartition(".")[0]
    return device_map[name]


def _index(device: str | int) -> str | int:
    text = str(device)
    return int(text.removeprefix("cuda:")) if text.startswith("cuda:") else device


def _check_gpus(devices: Any, field: str) -> None:
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for device in devices:
        if isinstance(device, int) and device >= there:
            seen = f"{there} GPU(s)" if there else "no GPU"
            raise UsageError(f"placement.{field} names cuda:{device}, but this process sees {seen}")


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.3g} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"
