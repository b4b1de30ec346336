"""How far a model directory is trusted: the variables it may set, whether its code runs, and its required version."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from handlers.errors import UsageError
from handlers.model.environment import check_env_vars, check_name

if TYPE_CHECKING:
    from handlers.model.spec import ModelSpec

CODE_FOLDER = "code"
VERSION_DIGITS = 12

# Classes that only make layers: those of torch.nn, and the built-in networks.
_PLAIN_CLASS = re.compile(r"torch\.nn:[A-Z]\w*|handlers\.nets:(Mlp|Lstm)", re.ASCII)


@dataclass(frozen=True)
class Trust:
    """How far a model directory is trusted. By default its code runs, and `env_vars` may set safe names only.

    Attributes:
        allow_env: names of further environment variables that `env_vars` may set.
        version: the only version that is opened: 12 to 64 hexadecimal digits of `ModelDir.digest`.
        code: whether the model's code may run. Without it a directory is refused that has modules in `code/`, a
            `loader`, `preprocess` or `postprocess`, an `architecture` that is neither a class of `torch.nn` nor a built-in
            network, or TorchScript.

    Raises:
        UsageError: where one of them is not valid.
    """

    allow_env: tuple[str, ...] = ()
    version: str | None = None
    code: bool = True

    def __post_init__(self) -> None:
        try:
            for name in self.allow_env:
                check_name(name)
            if self.version is not None:
                check_version(self.version)
        except ValueError as error:
            raise UsageError(f"Trust: {error}") from None

    def check(self, spec: ModelSpec, files: Collection[str], digest: str, path: str) -> None:
        """Refuses a model that is not trusted so far.

        Args:
            spec: the contents of its `model.yaml`.
            files: its files, relative to the directory.
            digest: the SHA-256 of all of them.
            path: where it is.

        Raises:
            UsageError: with what it is refused for.
        """
        if self.version is not None and not digest.startswith(self.version):
            raise UsageError(f"{path} has version {digest[: len(self.version)]}, not {self.version} (--model_version)")
        check_env_vars(spec.env_vars, self.allow_env, f"{path}/model.yaml")
        if not self.code and (brought := _own_code(spec, files)):
            raise UsageError(
                f"{path} brings code of its own ({brought}), which --no_model_code refuses; export the model with "
                "torch.export, or omit that option if you trust it"
            )


def trust_of(given: object) -> Trust | None:
    """What a caller gave as `trust`; raises `UsageError` for anything but a `Trust` and None."""
    if given is None or isinstance(given, Trust):
        return given
    raise UsageError(
        f"trust must be a torchbeam.Trust, such as Trust(code=False) or Trust(version=…), or None, not {given!r:.80}"
    )


def check_version(text: str) -> str:
    """The digits of a version; raises `ValueError` where there are too few of them, or others."""
    if not re.fullmatch(rf"[0-9a-f]{{{VERSION_DIGITS},64}}", text):
        raise ValueError(f"must be {VERSION_DIGITS} to 64 hexadecimal digits of a version, not {text!r}")
    return text


def _own_code(spec: ModelSpec, files: Collection[str]) -> str:
    """The first part of a model that runs as code; empty if there is none."""
    if brought := next((name for name in sorted(files) if name.startswith(f"{CODE_FOLDER}/")), ""):
        return brought
    for field in ("loader", "preprocess", "postprocess"):
        if value := getattr(spec, field):
            return f"{field}: {value if isinstance(value, str) else value[0]}"
    # It could name any installed function, with arguments of the model's choice.
    if spec.architecture and not _PLAIN_CLASS.fullmatch(spec.architecture):
        return f"architecture: {spec.architecture}"
    return "a TorchScript program" if spec.format == "torchscript" else ""
