"""A Triton driver for an architecture that is not there: compiled PTX runs in the emulator, on CPU tensors."""

import os
import random
from pathlib import Path

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime.cache import get_cache_manager
from triton.runtime.driver import driver

from dia_engine.kernels.architectures import SHARED_MEMORY_LIMIT
from dia_engine.kernels.dispatch import Launch

from .execution import Kernel
from .memory import GlobalMemory

# Older ones have other matrix instructions; 100 and 103 have `tcgen05`, for which there is no switch.
ARCHITECTURES = (80, 86, 87, 89, 90, 120, 121)


def activate(architecture: int, seed: int = 0) -> None:
    """From now on kernel[grid](...) runs in the emulator. May be called again for another architecture.

    Matrix products are compiled to `mma` on every architecture: Triton 3.9 would choose `wgmma` for attention on
    sm_90, which the emulator does not know, so DISABLE_MMA_V3 is set, a switch of Triton's.

    Args:
        architecture: compute capability major * 10 + minor, 80 or newer.
        seed: of the random order in which programs run.
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(f"architecture must be one of {ARCHITECTURES}, got {architecture}")
    os.environ["DISABLE_MMA_V3"] = "1"
    driver.set_active(EmulatedDriver(architecture, random.Random(seed)))


def emulate(launch: Launch) -> None:
    """Run a launch, once `activate` was called; a handler for `intercept_launches`.

    A dependent launch may touch nothing but read `launch.early` before it waits for its predecessor.

    Raises:
        EmulationError: the kernel does what is not allowed, or is not known how to run.
        OutOfResources: it needs more shared memory than there is.
        TypeError: `launch.early` names what is no tensor of the launch.
    """
    for name in launch.early:
        if not isinstance(launch.arguments.get(name), torch.Tensor):
            raise TypeError(f"early must name tensors of the launch, got {name!r}")
    active = driver.active
    active.early = launch.early
    try:
        launch.run()
    finally:
        active.early = ()


class EmulatedDriver:
    """What Triton asks of a driver, for versions 3.5 to 3.9."""

    def __init__(self, architecture: int, order: random.Random) -> None:
        self.architecture, self.order = architecture, order
        self.early: tuple[str, ...] = ()  # arguments that the launch may read before it waits
        self.utils = self

    def launcher_cls(self, source, metadata) -> "Launcher":
        return Launcher(source, metadata)

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)

    def get_current_device(self) -> int:
        return self.architecture  # Triton keeps compiled kernels by device

    def get_current_stream(self, device=None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_device_capability(self, device=None) -> tuple[int, int]:
        return divmod(self.architecture, 10)

    def get_device_properties(self, device) -> dict[str, int]:
        return {"max_shared_mem": SHARED_MEMORY_LIMIT[self.architecture], "multiprocessor_count": 132, "warpSize": 32}

    def load_binary(self, name, binary, shared, device):
        return object(), 1, 0, 0, 1024  # module, function, registers, spills, most threads of a program

    def unload_module(self, module) -> None:
        pass


class Launcher:
    """Runs one compiled kernel."""

    def __init__(self, source, metadata) -> None:
        self.signature, self.metadata = source.signature, metadata
        path = get_cache_manager(metadata.hash).get_file(f"{source.name[:150]}.ptx")
        self.kernel = Kernel(Path(path).read_text())

    def __call__(self, x, y, z, stream, function, packed, launch_metadata, enter, leave, *arguments) -> None:
        active, memory, values = driver.active, GlobalMemory(), []
        for (name, kind), value in zip(self.signature.items(), arguments, strict=True):
            if kind == "constexpr":
                continue
            if isinstance(value, torch.Tensor):
                storage = value.untyped_storage()
                memory.add(name, storage.data_ptr(), storage.nbytes(), name in active.early)
                value = value.data_ptr()
            values.append(int(value))
        # Parameters that are left are scratch memory, which no kernel here uses.
        self.kernel.launch(
            (x, y, z), values, memory, self.metadata.shared, bool(self.metadata.launch_pdl), active.order
        )  # fmt: skip
