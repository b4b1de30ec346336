"""Giving back the memory of a model that left while its process goes on."""

from __future__ import annotations

import ctypes
import gc
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch

from handlers.predict.predictor import Predictor

_lock = threading.RLock()  # a finalizer may end one while another begins
_exempting = 0


def is_cyclic(predictor: Predictor) -> bool:
    """Whether the model is part of a reference cycle, as programs of torch.export are: only a collection frees it."""
    return isinstance(predictor.module, torch.fx.GraphModule)


def exempt() -> None:
    """Leaves what there is now out of later collections, which stop all threads: 0.3 to 0.9 s with torch and Beam imported.

    What is left out and part of a cycle is not freed before everyone who called this has called `end_exempt`.
    """
    global _exempting
    with _lock:
        _exempting += 1
        gc.collect()
        gc.freeze()


def end_exempt() -> None:
    """Ends one `exempt`."""
    global _exempting
    with _lock:
        _exempting -= 1
        if not _exempting:
            gc.unfreeze()


def reclaimer(predictor: Predictor) -> Callable[[], None]:
    """A function that gives back the memory of a model, to be called when nothing refers to `predictor` any more.

    It keeps no reference to the model.
    """
    alive, on_gpu = _reference(predictor.module), predictor.device.type == "cuda"
    # One that is still there is part of a cycle, as programs of torch.export are.
    return lambda: reclaim(collect=alive() is not None, on_gpu=on_gpu)


def reclaim(*, collect: bool, on_gpu: bool) -> None:
    """Gives freed memory back to the system; with `collect` also that of objects in cycles."""
    if collect:
        gc.collect()
    if on_gpu:
        torch.cuda.empty_cache()
    # glibc keeps freed memory: 365 loads of 20 MB took 1.6 GB where 100 MB were in use.
    with suppress(AttributeError, OSError):  # other C libraries have no such function
        ctypes.CDLL(None).malloc_trim(0)


def _reference(module: Any) -> Callable[[], Any]:
    try:
        return weakref.ref(module)
    except TypeError:
        return lambda: None
