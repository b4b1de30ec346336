"""Checks and completes the arguments of a run on Dataflow before heavy imports.

`settle` adds arguments for Beam; it never changes an option that the user gave.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from handlers.errors import TorchbeamError, UsageError
from handlers.paths import is_remote
from pipelines.command.hosts import host_of, is_loopback
from pipelines.command.options import ModelOptions

RUNNER = "DataflowRunner"

# The single process of a GPU worker processes this many chunks at once, so that some are read, encoded and written while
# the model uses the GPU. Dataflow's default of 12 threads would need the GPU memory of 12 micro-batches.
GPU_THREADS = 4

ONE_PROCESS = "no_use_multiple_sdk_containers"
_BUCKET_PATH = re.compile(r"gs://[a-z0-9][-_a-z0-9.]+[a-z0-9]/.*")


class StillRunning(KeyboardInterrupt):
    """This process was interrupted; the job continues."""


class NotFollowedError(TorchbeamError):
    """The state of the job is unknown from now on; it may continue."""


def settle(model: ModelOptions, arguments: Sequence[str]) -> tuple[ModelOptions, tuple[str, ...]]:
    """Checks the options of a run on Dataflow and adds defaults for GPUs.

    Args:
        model: our options of the model.
        arguments: Beam's arguments, as the user gave them.

    Raises:
        UsageError: for missing options, and for options that Dataflow would refuse or ignore only after workers start.
    """
    given = _parse(arguments)
    added = _check_launch(given)
    gpu = _check_accelerator(model, given)
    if gpu is None:
        return model, (*arguments, *added)
    if _slots(model, given, gpu) == 1 and not _has_experiment(given, ONE_PROCESS):
        # Dataflow starts a Python process for each vCPU of a worker. Each would load the model, but only one of them
        # gets the GPU: the others would fail.
        added.append(f"--experiments={ONE_PROCESS}")
    if given.threads is None and _slots(model, given, gpu) == 1:
        added.append(f"--number_of_worker_harness_threads={GPU_THREADS}")
    # A GPU was requested: a worker that does not see one must fail, not score on its CPU at the price of a GPU.
    device = "cuda" if model.device == "auto" else model.device
    return replace(model, device=device), (*arguments, *added)


def check_credentials(arguments: Sequence[str]) -> None:
    """Raises `UsageError` if this machine has no Google credentials.

    Without credentials Beam continues and then retries access to buckets for minutes.
    """
    given = _parse(arguments)
    if given.no_auth or _on_this_machine(given):
        return
    import google.auth

    try:
        google.auth.default()
    except google.auth.exceptions.DefaultCredentialsError:
        raise UsageError(
            "there are no Google credentials here; log in with: gcloud auth application-default login, or name the key of a "
            "service account in the environment variable GOOGLE_APPLICATION_CREDENTIALS"
        ) from None


def is_emulated(arguments: Sequence[str]) -> bool:
    """Whether the Dataflow endpoint is an emulator on this machine, with files staged to its disk."""
    given = _parse(arguments)
    return _on_this_machine(given) and not is_remote(given.temp_location or "")


def from_template(arguments: Sequence[str]) -> bool:
    """Whether a template launcher passed the arguments, which may include some that this version of Beam does not know."""
    return _parse(arguments).template_location is not None


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The few Beam options that matter here, parsed without Beam, whose import takes seconds."""
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False, exit_on_error=False)
    for name in ("project", "region", "temp_location", "template_location", "setup_file", "flexrs_goal", "dry_run"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--dataflow_endpoint", default="")
    parser.add_argument("--machine_type", "--worker_machine_type", dest="machine_type")
    parser.add_argument("--number_of_worker_harness_threads", dest="threads")
    for name in ("streaming", "no_auth"):
        parser.add_argument(f"--{name}", action="store_true")
    for name in ("dataflow_service_option", "experiment", "resource_hint"):
        parser.add_argument(f"--{name}", f"--{name}s", dest=f"{name}s", action="append", default=[])
    try:
        return parser.parse_known_args(list(arguments))[0]
    except argparse.ArgumentError as error:
        raise UsageError(str(error)) from None


def _check_launch(given: argparse.Namespace) -> list[str]:
    """Checks what every job needs; returns the arguments to add."""
    if given.dry_run is not None:
        raise UsageError("--dry_run leaves nothing to follow or to report; torchbeam doctor checks without a run")
    if given.streaming:
        raise UsageError("--streaming does not go with this command, which reads its input to the end; leave it out")
    added = []
    region = given.region or os.environ.get("CLOUDSDK_COMPUTE_REGION")
    if given.region is None and region:
        added.append(f"--region={region}")
    examples = {"project": "my-project", "region": "europe-west1", "temp_location": "gs://my-bucket/tmp"}
    missing = [name for name in examples if not (region if name == "region" else getattr(given, name))]
    if missing:
        wanted = ", ".join(f"--{name}" for name in missing)
        raise UsageError(f"Dataflow needs {wanted}; for example --{missing[0]}={examples[missing[0]]}")
    # An endpoint on this machine is an emulator, which stages to local folders.
    if not _on_this_machine(given) and not _BUCKET_PATH.fullmatch(given.temp_location):
        raise UsageError(
            f'--temp_location "{given.temp_location}" is no path in a bucket; write it as gs://my-bucket/tmp'
        )
    if given.setup_file is not None:
        file = Path(given.setup_file)
        if file.name not in ("setup.py", "pyproject.toml") or not file.is_file():
            raise UsageError(f'--setup_file "{file}" is no setup.py or pyproject.toml that can be read')
        if not file.is_absolute():  # Beam changes to the folder in the path, and "setup.py" has none
            added.append(f"--setup_file={file.absolute()}")
    return added


def _on_this_machine(given: argparse.Namespace) -> bool:
    return is_loopback(host_of(given.dataflow_endpoint))


def _check_accelerator(model: ModelOptions, given: argparse.Namespace) -> str | None:
    """The GPUs of a worker in Dataflow's notation; None if it has none."""
    # Dataflow also accepts the older name of the pool option.
    options = [*_split(given.dataflow_service_options), *_split(given.experiments)]
    pool = [option.partition("=")[2] for option in options if option.startswith("worker_accelerator=")]
    of_all_steps = [hint.partition("=")[2] for hint in given.resource_hints if hint.startswith("accelerator=")]
    hints = [name for name in ("accelerator", "min_ram") if getattr(model, name) is not None]
    if pool and (hints or of_all_steps):
        hint = hints[0] if hints else "resource_hint=accelerator"
        raise UsageError(
            f"--{hint} asks for workers of the inference step alone (right fitting), worker_accelerator in "
            "--dataflow_service_options for GPUs on all workers, and Dataflow does not take both; leave one of them out"
        )
    for name in hints:
        if any(hint.startswith(name) for hint in given.resource_hints):
            raise UsageError(
                f"--resource_hint={name}=… is for all steps and would replace --{name}, which is for the inference step "
                "alone; leave one of them out"
            )
    if hints and given.flexrs_goal:
        raise UsageError(
            f"--{hints[0]} (right fitting) does not go with --flexrs_goal on Dataflow; leave one of them out"
        )
    asked = model.accelerator or next(reversed(pool or of_all_steps), None)
    if asked is None or "type:nvidia" not in asked:
        return None
    if "install-nvidia-driver" not in asked:
        raise UsageError(
            f'the accelerator "{asked}" comes without a driver, so that PyTorch would not see it; add ;install-nvidia-driver'
        )
    return asked


def _slots(model: ModelOptions, given: argparse.Namespace, accelerator: str) -> int:
    """How many processes of a worker can load the model on a GPU; checks that Dataflow starts no more."""
    count = int(_part(accelerator, "count", r"\d+") or 1)
    slots = model.model_copies * count
    if slots == 1:
        if "use_nvidia_mps" in accelerator:
            raise UsageError("use_nvidia_mps lets processes share a GPU; say how many with --model_copies")
        return slots
    machine = _part(accelerator, "machine_type", r"[^;]+") or given.machine_type
    why = f"--model_copies={model.model_copies} and {count} GPU(s) on a worker are for {slots} processes"
    if _has_experiment(given, ONE_PROCESS):
        raise UsageError(f"{why}, but --experiments={ONE_PROCESS} allows one; leave it out")
    if machine is None:
        raise UsageError(f"{why}, and Dataflow starts one for each vCPU; name a --machine_type with {slots} vCPUs")
    match = re.search(r"custom-(\d+)-|-(\d+)(?:-lssd)?$", machine)
    vcpus = int(match.group(1) or match.group(2)) if match else slots
    if vcpus > slots:
        raise UsageError(
            f"{why}, but Dataflow starts one for each of the {vcpus} vCPUs of {machine}, and those without a slot fail; "
            f"say --model_copies={-(-vcpus // count)}, or take a smaller machine"
        )
    return slots


def _part(accelerator: str, name: str, pattern: str) -> str | None:
    match = re.search(rf"(?:^|;){name}:({pattern})", accelerator)
    return match.group(1) if match else None


def _has_experiment(given: argparse.Namespace, name: str) -> bool:
    return name in _split(given.experiments)


def _split(values: Sequence[str]) -> list[str]:
    return [part.strip() for value in values for part in value.split(",")]
