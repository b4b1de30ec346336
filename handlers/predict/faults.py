"""What an error of a model means: memory ran out, the device is lost, the model is broken, or a bad row."""

from __future__ import annotations

import logging
import os
import re
import threading

import torch

from handlers.errors import one_line

SUSPECT_AFTER = 1000
_CUDA_ERROR = re.compile("CUDA (error|failure)")  # failure is what ONNX Runtime says
_log = logging.getLogger(__name__)

# Libraries on the GPU that cannot have their workspace report it with other messages, and so do other frameworks.
_MEMORY = (
    *("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED"),
    *("Failed to allocate memory for requested buffer", "bad_alloc", "bad allocation"),
)


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the device or of the host."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(word in str(error) for word in _MEMORY)


def device_lost(error: BaseException, device: torch.device) -> bool:
    """Whether this process can use `device` no more: a sticky error, as CUDA's documentation calls it.

    Not every error of CUDA is one (an invalid launch configuration is not), so the device is asked: after a sticky error
    even the smallest operation fails.
    """
    if out_of_memory(error) or not (isinstance(error, torch.AcceleratorError) or _CUDA_ERROR.search(str(error))):
        return False
    if device.type != "cuda":
        return True
    try:
        torch.zeros(1, device=device).add_(1).cpu()
    except RuntimeError as still:
        return not out_of_memory(still)
    return False


def leave_lost_process() -> None:
    """Ends this process if it is a separate worker, which its runner replaces and retries. Call it in an `except`."""
    if "WORKER_ID" in os.environ:
        _log.exception("the accelerator is lost; this worker process ends, so that a new one can take over")
        logging.shutdown()
        os._exit(70)


class Health:
    """Distinguishes a broken model from bad rows, so that a million rows are not halved one by one in vain.

    A model counts as broken in this process if it has never given an answer, has failed on `SUSPECT_AFTER` rows
    in a run with one and the same error, and fails with that error on zeros too.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kind = ""
        self._failed = 0
        self._on_zeros: str | None = None
        self.answered = False

    @property
    def suspect(self) -> bool:
        """Whether enough rows have failed to try it on zeros."""
        return not self.answered and self._failed >= SUSPECT_AFTER and self._on_zeros in (None, self._kind)

    def failed(self, error: Exception) -> None:
        """Records that the model failed on a single row."""
        if self.answered:
            return
        kind = _kind(error)
        with self._lock:
            self._failed = self._failed + 1 if kind == self._kind else 1
            self._kind = kind

    def tried_zeros(self, error: Exception | None) -> None:
        """Records the result on zeros: failed with `error`, or answered."""
        self._on_zeros = "" if error is None else _kind(error)

    @property
    def zeros_needed(self) -> bool:
        """Whether it has not been tried on zeros yet."""
        return self._on_zeros is None


def _kind(error: Exception) -> str:
    """The error without its numbers, which differ from row to row."""
    return f"{type(error).__name__}: {re.sub(r'[0-9.]+', '#', one_line(error))}"
