"""Where a model computes and in what dtype: what a user names, checked, and good defaults."""

import math

import torch

from .kernels.driver import load_driver
from .model.config import DiaConfig
from .model.dia import parameter_shapes

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# Below this many parameters a CPU step is bound by calls, not by memory, and float32 costs nothing.
SMALL_MODEL = 100_000_000


def checked_device(device: str | torch.device | None) -> torch.device:
    """A device that torch knows and this machine has; None chooses.

    Raises:
        ValueError: the name is unknown, there is no such device here, or it is a GPU and Triton cannot compile its
            driver module.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        checked = torch.device(device)
        torch.empty(0, device=checked)
        if checked.type == "cuda":
            load_driver()
    except (RuntimeError, AssertionError, TypeError, NotImplementedError, ImportError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]
        raise ValueError(f"device {device!r} cannot be used here: {reason}") from None
    if checked.type == "meta":
        raise ValueError("device 'meta' holds no numbers")
    return checked


def checked_dtype(dtype: str | torch.dtype, argument: str = "dtype") -> torch.dtype:
    """A dtype to compute in, from its name or itself. `argument` is what an error calls it.

    Raises:
        ValueError: any other dtype.
    """
    name = str(getattr(dtype, "value", dtype)).removeprefix("torch.")
    if name not in DTYPES:
        raise ValueError(f"{argument} must be one of {', '.join(DTYPES)}, got {dtype!r}")
    return DTYPES[name]


def default_dtype(config: DiaConfig, device: torch.device) -> torch.dtype:
    """The dtype that is fastest without harm on a device; see `Engine.load`."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if sum(math.prod(shape) for shape in parameter_shapes(config).values()) < SMALL_MODEL:
        return torch.float32
    native = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if native else torch.float32
