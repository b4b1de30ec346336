"""What processes do with a registry at the same time; a module of its own, since a new process imports it whole."""

from __future__ import annotations

from handlers.errors import TorchbeamError
from handlers.model.registry import find_version
from transforms.registry.registry import ModelRegistry


def promote_many(folder: str, seed: int, times: int) -> list[str]:
    """Promotes versions 1 and 2 in turn; gives the lines of the promotions that lost."""
    registry = ModelRegistry(folder)
    lines = []
    for number in range(times):
        try:
            registry.promote(f"credit@{(seed + number) % 2 + 1}", "champion")
        except TorchbeamError as error:
            lines.append(str(error))
    return lines


def read_many(folder: str, times: int) -> set[int]:
    """The versions that an alias was seen at; raises for a file that is not whole."""
    return {find_version(folder, "credit", "champion") for _ in range(times)}


def push_many(folder: str, model: str, times: int) -> list[str]:
    """Pushes a model; each version must be complete as soon as it has its name."""
    registry = ModelRegistry(folder)
    pushed = []
    for _ in range(times):
        pushed.append(registry.push(model, "credit"))
        for found in registry.models():
            for version in found.versions:
                registry.open(f"{found.name}@{version}")
    return pushed
