"""Full float32 precision, whatever a caller has allowed torch to round to: TF32 (10 bits) on a GPU, cuDNN's default for
convolutions, and bfloat16 (7 bits) on a CPU after `torch.set_float32_matmul_precision("medium")`."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_backends: Any = torch.backends  # torch puts other objects in the place of its modules, which type checkers cannot see
_SETTINGS = (_backends.cudnn.conv, _backends.cuda.matmul, _backends.mkldnn.conv, _backends.mkldnn.matmul)
_lock = threading.Lock()
_inside = 0  # how many threads are in `full_float32`
_before: list[str] = []  # what the settings were before the first came


@contextmanager
def full_float32() -> Iterator[None]:
    """Products and convolutions of float32 tensors are not rounded in here.

    torch has one setting of each kind for the process. They are as they were when the last thread has left; meanwhile
    other products of the process are exact too.
    """
    global _inside, _before
    with _lock:
        if not _inside:
            _before = [setting.fp32_precision for setting in _SETTINGS]
            for setting in _SETTINGS:
                setting.fp32_precision = "ieee"
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside = max(0, _inside - 1)  # it is 0 already in a process that was forked in here
            if not _inside:
                _restore()


def _restore() -> None:
    for setting, value in zip(_SETTINGS, _before, strict=False):
        setting.fp32_precision = value


def _forget_threads() -> None:
    """In a forked process the threads that were in `full_float32` are gone, and the lock may be held for ever."""
    global _lock, _inside
    _lock = threading.Lock()
    if _inside:
        _inside = 0
        _restore()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)
