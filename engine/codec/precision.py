"""Convolutions in float32 on a GPU, where torch would let cuDNN round their inputs to TF32, 10 bits."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_lock = threading.Lock()
_inside = 0  # how many threads are in `full_float32`
_before = "none"  # what the setting was before the first came


@contextmanager
def full_float32() -> Iterator[None]:
    """Convolutions of float32 tensors are not rounded to TF32 in here.

    torch has one setting for the process. It is as it was when the last thread has left, and meanwhile other
    convolutions of the process are exact too.
    """
    global _inside, _before
    conv = torch.backends.cudnn.conv  # type: ignore[attr-defined]  # torch puts another object in the module's place
    with _lock:
        if not _inside:
            _before = conv.fp32_precision
            conv.fp32_precision = "ieee"
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                conv.fp32_precision = _before
