"""Has a request the same bits alone and in a batch? Runs every kernel of a step as compiled, in the PTX emulator.

    python -m tools.ptx_emulator.row_bits --arch 86 90 [--slots 2 5 9 20] [--weights bfloat16 float16:int8 ...]
                                          [--kernels norm ...]

Three requests run alone and then as the first, the middle and the last of each batch. Prints what differs: kernel and
output, weights, slots, place, how many elements; or that a kernel needs more shared memory than there is. Exit status 1
in both cases.
"""

import argparse
import os
import sys
import time

import torch
from triton.runtime.errors import OutOfResources

from dia_engine.kernels.dispatch import intercept_launches

from .driver import ARCHITECTURES, activate, emulate
from .one_step import KERNELS, OneStep

WEIGHTS = tuple(dtype + quant for quant in ("", ":int8", ":nf4") for dtype in ("bfloat16", "float16", "float32"))
FIRST, MIDDLE, LAST = range(3)  # the requests that are compared; the others fill the batch


def batch_of(slots: int) -> list[int]:
    """Requests in the order of their slots: FIRST, MIDDLE and LAST where they belong, as far as there is room."""
    others = list(range(3, slots))
    half = len(others) // 2
    return [FIRST, *others[:half], MIDDLE, *others[half:], LAST][:slots]


def differences(architecture: int, weights: str, batches: list[int], kernels: list[str]) -> list[str]:
    """A line for each kernel that does not fit, and for each output of a request that is not what it is alone."""
    step, lines = OneStep(max(3, *batches), weights), []
    activate(architecture)
    with intercept_launches(emulate, architecture):
        for kernel in kernels:
            try:
                lines += _differences(step, kernel, batches)
            except OutOfResources as error:
                lines.append(f"{kernel} does not fit: {error}")
    return [f"sm_{architecture} {weights}: {line}" for line in lines]


def _differences(step: OneStep, kernel: str, batches: list[int]) -> list[str]:
    alone = {request: step.run(kernel, [request]) for request in (FIRST, MIDDLE, LAST)}
    lines = []
    for slots in batches:
        batch = batch_of(slots)
        together = step.run(kernel, batch)
        for request in alone.keys() & batch:
            slot = batch.index(request)
            for name, expected in alone[request].items():
                count = int((_bits(together[name][slot]) != _bits(expected[0])).sum())
                if count:
                    lines.append(f"{name}: {count} of {expected.numel()} differ in slot {slot} of {slots}")
    return lines


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """As integers, which tell 0.0 from -0.0 and of which NaN equals itself."""
    return tensor.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", type=int, nargs="+", choices=ARCHITECTURES, default=[86, 90], help="capabilities")
    parser.add_argument("--slots", type=int, nargs="+", default=[2, 5, 9, 20], help="requests in a batch")
    parser.add_argument("--weights", nargs="+", choices=WEIGHTS, default=WEIGHTS, help="dtype, or dtype:format")
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, default=list(KERNELS), help="which kernels")
    options = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1 leaves nothing to compile")
    if min(options.slots) < 1:
        parser.error(f"--slots must be at least 1, got {min(options.slots)}")
    failed = False
    for architecture in options.arch:
        for weights in options.weights:
            start = time.perf_counter()
            lines = differences(architecture, weights, options.slots, options.kernels)
            failed |= bool(lines)
            print(*lines, sep="\n", end="\n" if lines else "")
            verdict = f"{len(lines)} faults" if lines else "equal"
            print(f"sm_{architecture} {weights}: {verdict}, {time.perf_counter() - start:.0f} s", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
