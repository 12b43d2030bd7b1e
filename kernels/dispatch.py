"""Which tensors go to a Triton kernel and which to its torch reference, and how a kernel is launched.

A kernel wrapper asks `uses_triton`, runs the reference if not, and otherwise calls `launch`, which makes a `Launch` and
runs it. Inside `intercept_launches(handler, ...)` every wrapper launches, whatever the device, and the handler gets the
`Launch` instead: to run it in Triton's interpreter on CPU tensors (TRITON_INTERPRET=1), to count it, or to compile it
for a GPU that is not there.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from .tuning import dependent_launches_are_wanted

OLDEST_TRITON = (3, 5)  # the first with dots of 8 columns; comes with torch 2.9


def _too_old(version: str) -> str | None:
    """What is wrong with a version of Triton, None if nothing is."""
    major, minor = version.split(".")[:2]
    return None if (int(major), int(minor)) >= OLDEST_TRITON else f"found {version}"


try:
    import triton
    import triton.language as tl

    WHY_NO_TRITON = _too_old(triton.__version__)
except ImportError as error:
    WHY_NO_TRITON = f"found none ({error})"

if WHY_NO_TRITON:

    class _Absent:
        """Stands for Triton where it cannot be used: kernels can be defined there, not launched."""

        def __getattr__(self, name: str) -> "_Absent":
            return self

        def __call__(self, *args: object, **kwargs: object) -> "_Absent":
            return self

    triton = tl = _Absent()

try:
    from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
except ImportError:  # no Triton, or one built for AMD GPUs alone: there are no dependent launches
    gdc_launch_dependents = gdc_wait = None

Architecture = int | str  # NVIDIA: compute capability major * 10 + minor. AMD: the name, such as "gfx942"
INTERPRETER = 0  # stands for the architecture
HOPPER = 90  # the first architecture with dependent launches

_dependent_launches_failed = False  # for good, see `disable_dependent_launches`


@dataclass(frozen=True)
class Launch:
    """A kernel with all that it is launched with. `constants` are compiled in, `arguments` are not.

    `early` names the arguments that a dependent launch reads before it waits for its predecessor: the predecessor does
    not write them, and they were complete before it began. `registers` is how many the compiler may use per thread;
    without it, it may keep to fewer than there is room for, and spill.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, torch.Tensor | int | None]
    constants: dict[str, Any]
    warps: int
    stages: int
    fuses_multiply_add: bool
    dependent: bool  # starts while its predecessor still runs, see `pdl_sync`
    early: tuple[str, ...] = ()
    registers: int | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Triton's compile options. Fusing is named at each launch because its default differs between versions."""
        options = {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": self.fuses_multiply_add}
        if self.registers is not None:
            options["maxnreg"] = self.registers
        return options | ({"launch_pdl": True} if self.dependent else {})

    def run(self) -> None:
        """On the current device, whatever device the tensors are on."""
        self.kernel[self.grid](**self.arguments, **self.constants, DEPENDENT=self.dependent, **self.options)


class _Interception(NamedTuple):
    handler: Callable[[Launch], None]
    architecture: Architecture


_interception: ContextVar[_Interception | None] = ContextVar("interception", default=None)


@contextmanager
def intercept_launches(handler: Callable[[Launch], None], architecture: Architecture) -> Iterator[None]:
    """Give every launch to `handler`, with the constants chosen for `architecture`, or INTERPRETER."""
    token = _interception.set(_Interception(handler, architecture))
    try:
        yield
    finally:
        _interception.reset(token)


def require_triton() -> None:
    """
    Raises:
        RuntimeError: there is no Triton that has what the kernels need.
    """
    if WHY_NO_TRITON:
        oldest = ".".join(map(str, OLDEST_TRITON))
        raise RuntimeError(
            f"a GPU needs Triton {oldest} or newer, {WHY_NO_TRITON}: it comes with torch 2.9, "
            "pip install -U 'torch>=2.9'"
        )


def uses_triton(tensor: torch.Tensor) -> bool:
    """Whether an operation on this tensor is a kernel's or its reference's.

    Raises:
        RuntimeError: it is a kernel's, see `require_triton`.
    """
    kernel = tensor.is_cuda or _interception.get() is not None
    if kernel:
        require_triton()
    return kernel


def require_contiguous(**tensors: torch.Tensor) -> None:
    """Kernels compute addresses from shapes.

    Raises:
        ValueError: a tensor with other strides; the message names it.
    """
    for name, tensor in tensors.items():
        if not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous, got strides {tensor.stride()} for shape {list(tensor.shape)}")


def architecture(device: torch.device) -> Architecture:
    """What kernels on a device are compiled for, or INTERPRETER."""
    interception = _interception.get()
    return interception.architecture if interception else _device_architecture(device)


@functools.cache
def _device_architecture(device: torch.device) -> Architecture:
    if torch.version.hip:
        name = torch.cuda.get_device_properties(device).gcnArchName  # with features, such as "gfx942:sramecc+:xnack-"
        return name.partition(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return major * 10 + minor


def takes_ptx(device: torch.device) -> bool:
    """Whether kernels on a device may contain inline assembly."""
    target = architecture(device)
    return isinstance(target, int) and target != INTERPRETER


def launches_are_dependent(device: torch.device) -> bool:
    """Whether kernels on a device start while their predecessor still runs (programmatic dependent launch).

    From Hopper on, unless the environment variable DIA_PDL is 0. One request's step took 0.90 ms so on an H200 and 1.00
    ms without (int8). Kernels should not do more before `pdl_sync` than compute addresses: asking there for their first
    weights to come to the L2 cache made it 0.98 ms.

    Raises:
        ValueError: the environment variable DIA_PDL is neither 0 nor 1.
    """
    target = architecture(device)
    if not isinstance(target, int) or target < HOPPER or _dependent_launches_failed:
        return False
    return dependent_launches_are_wanted()


def disable_dependent_launches(device: torch.device) -> bool:
    """Turn dependent launches off for the rest of the process, as a driver has refused them.

    Returns:
        whether they were on for `device`, so that what failed is worth another try.
    """
    global _dependent_launches_failed
    were_on = launches_are_dependent(device)
    _dependent_launches_failed |= were_on
    return were_on


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    arguments: dict[str, torch.Tensor | int | None],
    constants: dict[str, Any],
    warps: int,
    stages: int,
    device: torch.device,
    fuses_multiply_add: bool = True,
    early: tuple[str, ...] = (),
    dependent: bool = True,
    registers: int | None = None,
) -> None:
    """Launch a kernel; a `dependent` one may start while its predecessor still runs, where that is done."""
    dependent = dependent and launches_are_dependent(device)
    described = Launch(
        kernel, grid, arguments, constants, warps, stages, fuses_multiply_add, dependent, early, registers
    )
    interception = _interception.get()
    if interception:
        interception.handler(described)
    else:
        with torch.cuda.device(device):
            described.run()


@triton.jit
def pdl_sync(DEPENDENT: tl.constexpr):
    """Programmatic dependent launch: wait for the preceding kernel, then allow the following one to start.

    Every program of every kernel calls this before its first read of what the kernel before wrote and before its first
    write, so being done is transitive along the chain of launches: when a kernel starts, all before its predecessor are
    done, and what they wrote may be read past the L1 cache (`.cg`) even before this call. The second call stands right
    after the first: behind an unrolled loop of loads ptxas moves all the loads before it and spills their results.
    """
    if DEPENDENT:
        gdc_wait()
        gdc_launch_dependents()


@triton.jit
def prefetch_l2(addresses):
    """Ask for the 128-byte lines at these pointers, or int64 addresses, to come to the L2 cache."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
        "=r,l",
        [addresses.to(tl.int64)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )
