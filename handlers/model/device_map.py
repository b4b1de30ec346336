"""The field `placement` of `model.yaml`: a model over several devices and the disk. Imports neither torch nor accelerate."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictInt, StrictStr, ValidationError

from handlers.batching import in_bytes
from handlers.errors import UsageError

DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")


def _device(value: str | int) -> str:
    text = f"cuda:{value}" if isinstance(value, int) else value
    if not re.fullmatch(r"cpu|cuda:\d+", text):
        raise ValueError(f'"{text}" is no device with a memory of its own; write cpu or cuda:N')
    return text


def _device_map(value: str | dict[str, str | int]) -> str | dict[str, str | int]:
    if isinstance(value, dict):
        return {name: device if device == "disk" else _device(device) for name, device in value.items()}
    if value not in DEVICE_MAPS:
        raise ValueError(f"must be one of {', '.join(DEVICE_MAPS)}, or the device of each layer")
    return value


def _memory(text: str) -> str:
    in_bytes(text, "20GB")
    return text


Device = Annotated[StrictStr | StrictInt, AfterValidator(_device)]


class PlacementSpec(BaseModel):
    """Where the layers of a model are that does not fit into one device.

    Attributes:
        device_map: how layers are distributed: `auto`, `balanced`, `balanced_low_0` or `sequential`, as accelerate has them,
            or the device of each layer by its name.
        max_memory: the most that layers may take on each device, as `{cuda:0: 20GB, cpu: 8GB}`; what does not fit stays on
            the disk. By default all of every GPU and the free memory of the host.
        offload_folder: a folder on a fast local disk to which the weights are copied for the time of the run; by default
            they are read from the model directory.
        no_split: names of module classes that stay on one device as a whole, because their layers add up what others gave.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    device_map: Annotated[StrictStr | dict[str, StrictStr | StrictInt], AfterValidator(_device_map)] = "auto"
    max_memory: dict[Device, Annotated[StrictStr, AfterValidator(_memory)]] = {}
    offload_folder: Annotated[StrictStr, Field(min_length=1)] | None = None
    no_split: tuple[StrictStr, ...] = ()

    def bytes_of_devices(self) -> dict[str, int]:
        """`max_memory` in bytes."""
        return {str(device): in_bytes(text, "20GB") for device, text in self.max_memory.items()}

    def check_folder(self) -> None:
        """Raises `UsageError` if the offload folder cannot be written to."""
        if self.offload_folder is None:
            return
        folder = Path(self.offload_folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / ".torchbeam-probe"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UsageError(f"placement.offload_folder {folder} cannot be written to: {error.strerror}") from None


def placed(placement: PlacementSpec | None, device_map: str) -> PlacementSpec:
    """`placement` with another device map, that of `--device_map`; raises `UsageError` if there is no such map."""
    try:
        return PlacementSpec.model_validate(
            {**(placement.model_dump(exclude_defaults=True) if placement else {}), "device_map": device_map}
        )
    except ValidationError:
        raise UsageError(f'--device_map "{device_map}" is not one of {", ".join(DEVICE_MAPS)}') from None
