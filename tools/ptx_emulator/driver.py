"""A Triton driver for an architecture that is not there: launches run the compiled PTX in the emulator, on CPU tensors."""

import random
from pathlib import Path

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime.cache import get_cache_manager
from triton.runtime.driver import driver

from . import machine

SHARED_MEMORY = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 120: 101376}  # bytes that a program may use


def activate(architecture: int, seed: int = 0) -> None:
    """From now on kernel[grid](...) runs in the emulator. May be called again for another architecture.

    Args:
        architecture: a key of SHARED_MEMORY, compute capability major * 10 + minor.
        seed: of the random order in which programs run.
    """
    if architecture not in SHARED_MEMORY:
        raise ValueError(f"architecture must be one of {sorted(SHARED_MEMORY)}, got {architecture}")
    driver.set_active(EmulatedDriver(architecture, random.Random(seed)))


class EmulatedDriver:
    """What Triton asks of a driver, for versions 3.5 to 3.9."""

    def __init__(self, architecture: int, order: random.Random) -> None:
        self.architecture, self.order = architecture, order
        self.utils = self

    def launcher_cls(self, source, metadata) -> "Launcher":
        return Launcher(source, metadata, self.order)

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
        return {"max_shared_mem": SHARED_MEMORY[self.architecture], "multiprocessor_count": 132, "warpSize": 32}

    def load_binary(self, name, binary, shared, device):
        return object(), 1, 0, 0, 1024  # module, function, registers, spills, most threads of a program

    def unload_module(self, module) -> None:
        pass


class Launcher:
    """Runs one compiled kernel."""

    def __init__(self, source, metadata, order: random.Random) -> None:
        self.signature, self.metadata, self.order = source.signature, metadata, order
        path = get_cache_manager(metadata.hash).get_file(f"{source.name[:150]}.ptx")
        self.kernel = machine.Kernel(Path(path).read_text())

    def __call__(self, x, y, z, stream, function, packed, launch_metadata, enter, leave, *arguments) -> None:
        machine.MEM.clear()
        parameters = []
        for (name, kind), value in zip(self.signature.items(), arguments):
            if kind == "constexpr":
                continue
            if isinstance(value, torch.Tensor):
                storage = value.untyped_storage()
                machine.MEM.add(storage.data_ptr(), storage.nbytes(), value, name)
                value = value.data_ptr()
            parameters.append(int(value))
        parameters += [0] * (len(self.kernel.params) - len(parameters))  # scratch memory, which no kernel here uses
        machine.run(
            self.kernel, (x, y, z), parameters, self.metadata.shared, order=self.order,
            check_wait=self.metadata.launch_pdl,
        )  # fmt: skip
