"""Compile projections of the 1.6B model and compare the shared memory that they need with what an architecture has.

    python -m tests.kernels.compiled_tilings sample|all

`sample`: float32 with quantized weights, whose operands pass through shared memory, and the widest tiles, of the
largest and the longest matrix. `all`: every dtype and weight format for the architectures that the tests of
`kernel_report` leave out, which compile every kernel for the others. Prints what does not fit and then the number of
builds; exit status 1 if something does not fit.
"""

import itertools
import sys

import torch
import triton
from triton.backends.compiler import GPUTarget

from benchmarks.kernel_report import distinct, source, step_launches, title
from dia_engine.kernels.architectures import SHARED_MEMORY_LIMIT
from dia_engine.model.config import DiaConfig

SAMPLE = [
    (86, "float32", "int8", 1),
    (86, "float32", "int8", 16),
    (86, "float32", "nf4", 16),
    (80, "float32", "int8", 16),
    (86, "bfloat16", None, 16),
    (86, "bfloat16", "int8", 64),
    (86, "bfloat16", "nf4", 64),
    (90, "bfloat16", "nf4", 64),
]
ALL = list(
    itertools.product(
        [75, 100],
        ["bfloat16", "float16", "float32"],
        [None, "int8", "nf4"],
        [1, 8, 16, 64],  # 8, 16, 32 and 64 input rows of a program
    )
)


def projections(architecture, dtype, quant, slots):
    """The distinct launches of a step that multiply by a matrix."""
    launches = step_launches(DiaConfig(), slots, getattr(torch, dtype), architecture, quant)
    return distinct([launch for launch in launches if "weight_ptr" in launch.arguments])


def is_large(launch):
    """Gate and up, and down: the largest matrix and the longest rows."""
    return 16384 in launch.arguments["weight_ptr"].shape or launch.constants["K"] == 8192


def main(scope):
    failed, built = False, 0
    for case in SAMPLE if scope == "sample" else ALL:
        for launch in projections(*case):
            if scope == "sample" and not is_large(launch):
                continue
            compiled = triton.compile(source(launch), target=GPUTarget("cuda", case[0], 32), options=launch.options)
            built += 1
            if compiled.metadata.shared > SHARED_MEMORY_LIMIT[case[0]]:
                failed = True
                print(*case, title(launch), compiled.metadata.shared, "of", SHARED_MEMORY_LIMIT[case[0]], flush=True)
    print(built, "builds")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
