"""Which tensors go to a Triton kernel and which to its torch twin, and how a kernel is launched.

A kernel wrapper asks `uses_triton`, runs the twin if not, and otherwise calls `launch`, which makes a `Launch` and runs
it. Inside `launches_to(handler, ...)` every wrapper launches, whatever the device, and the handler gets the `Launch`
instead: to run it in Triton's interpreter on CPU tensors (TRITON_INTERPRET=1), to count it, or to compile it for a GPU
that is not there.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

try:
    import triton
    import triton.language as tl
    from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

    WHY_NO_TRITON = None
except ImportError as error:
    WHY_NO_TRITON = str(error)

    class _Absent:
        """Stands for Triton where it cannot be installed: kernels can be defined there, not launched."""

        def __getattr__(self, name):
            return self

        def __call__(self, *args, **kwargs):
            return self

    triton = tl = gdc_launch_dependents = gdc_wait = _Absent()

INTERPRETER = 0  # stands for the architecture
HOPPER = 90  # the first architecture with dependent launches, as compute capability major * 10 + minor


@dataclass(frozen=True)
class Launch:
    """A kernel with all that it is launched with. `constants` are compiled in, `arguments` are not."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, torch.Tensor | int | None]
    constants: dict[str, Any]
    warps: int
    stages: int
    fuses_multiply_add: bool
    dependent: bool  # starts while its predecessor still runs, see `begin`

    @property
    def options(self) -> dict[str, Any]:
        """Triton's compile options. Fusing is named at each launch because its default differs between versions."""
        options = {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": self.fuses_multiply_add}
        return options | ({"launch_pdl": True} if self.dependent else {})

    def run(self) -> None:
        self.kernel[self.grid](**self.arguments, **self.constants, DEPENDENT=self.dependent, **self.options)


class _Detour(NamedTuple):
    handler: Callable[[Launch], None]
    architecture: int


_detour: ContextVar[_Detour | None] = ContextVar("detour", default=None)


@contextmanager
def launches_to(handler: Callable[[Launch], None], architecture: int) -> Iterator[None]:
    """Give every launch to `handler`, with the constants chosen for `architecture`, or INTERPRETER."""
    token = _detour.set(_Detour(handler, architecture))
    try:
        yield
    finally:
        _detour.reset(token)


def uses_triton(tensor: torch.Tensor) -> bool:
    """Whether an operation on this tensor is a kernel's or the twin's.

    Raises:
        RuntimeError: it is a kernel's, and there is no Triton that has what the kernels need.
    """
    kernel = tensor.is_cuda or _detour.get() is not None
    if kernel and WHY_NO_TRITON:
        raise RuntimeError(f"a GPU needs Triton 3.4 or newer, which comes with torch 2.8: {WHY_NO_TRITON}")
    return kernel


def require_contiguous(**tensors: torch.Tensor) -> None:
    """Kernels compute addresses from shapes.

    Raises:
        ValueError: a tensor with other strides; the message names it.
    """
    for name, tensor in tensors.items():
        if not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous, got strides {tensor.stride()} for shape {list(tensor.shape)}")


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter."""
    detour = _detour.get()
    return detour is not None and detour.architecture == INTERPRETER


def architecture(device: torch.device) -> int:
    """Compute capability of a device, major * 10 + minor."""
    detour = _detour.get()
    return detour.architecture if detour else _device_architecture(device)


@functools.cache
def _device_architecture(device: torch.device) -> int:
    major, minor = torch.cuda.get_device_capability(device)
    return major * 10 + minor


def launch(
    kernel,
    grid: tuple[int, ...],
    arguments: dict[str, torch.Tensor | int | None],
    constants: dict[str, Any],
    warps: int,
    stages: int,
    device: torch.device,
    fuses_multiply_add: bool = True,
) -> None:
    dependent = architecture(device) >= HOPPER
    described = Launch(kernel, grid, arguments, constants, warps, stages, fuses_multiply_add, dependent)
    detour = _detour.get()
    if detour:
        detour.handler(described)
    else:
        described.run()


@triton.jit
def begin(DEPENDENT: tl.constexpr):
    """Wait until the kernel before is done, then let the one after this start.

    Every program of every kernel calls this before its first read of what a kernel wrote and before its first write, so
    being done is transitive along the chain of launches. The second call stands right after the first: behind an
    unrolled loop of loads ptxas moves all the loads before it and spills their results.
    """
    if DEPENDENT:
        gdc_wait()
        gdc_launch_dependents()
