"""Where a model computes and in what dtype: what a user names, checked."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from ..kernels.driver import load_driver
from ..messages import first_line, shown
from .threads import one_thread

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def resolve_device(device: str | torch.device | None) -> torch.device:
    """A device that torch knows and this machine has; None chooses "cuda" if there is one, else "cpu".

    Raises:
        ValueError: the name is unknown, there is no such device here, or it is a GPU and Triton cannot compile its
            driver module.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
        if resolved.type == "cuda":
            load_driver()
    except (RuntimeError, AssertionError, TypeError, NotImplementedError, ImportError) as error:
        # torch asserts where it was built without CUDA
        reason = first_line(error).split(". ")[0]
        raise ValueError(f"device {shown(str(device))} cannot be used here: {reason}") from None
    if resolved.type == "meta":
        raise ValueError("device 'meta' cannot be used: its tensors have no data")
    return resolved


def resolve_dtype(dtype: str | torch.dtype, argument: str = "dtype") -> torch.dtype:
    """A dtype to compute in, from its name or itself. `argument` is what an error calls it.

    Raises:
        ValueError: any other dtype.
    """
    name = str(getattr(dtype, "value", dtype)).removeprefix("torch.")
    if name not in DTYPES:
        raise ValueError(f"{argument} must be one of {', '.join(DTYPES)}, got {shown(dtype)}")
    return DTYPES[name]


@contextmanager
def computing(device: torch.device, *, alone: bool = False) -> Iterator[None]:
    """What a caller has switched on around a call (autocast, inference mode) must not change what is computed.

    A GPU becomes the current one in here: streams, graphs and kernel launches ask for that. `alone` computes on one
    thread, see `one_thread`.
    """
    # no_grad comes after inference_mode(False), which switches gradients on.
    modes = torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False)
    on_device = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    with modes[0], modes[1], modes[2], on_device, one_thread(alone):
        yield
