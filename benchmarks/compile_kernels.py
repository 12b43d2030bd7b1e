"""Compiles the kernels of a decode step for the GPU at hand, side by side: Triton keeps them on the disk, and whoever
runs them next, in any process, does not wait for a compiler.

    python -m benchmarks.compile_kernels [--slots 1 16 64] [--quant none int8 nf4]

Each process makes steps of one layer at Dia's sizes, for some numbers of requests at once in one format.
"""

import argparse
import itertools
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor

import torch

from dia_engine.runtime.runner import SLOT_COUNTS
from dia_engine.weights.recipes import RECIPES

from .command import at_least, run
from .kernel_cases import step_cases

QUANTS = ("none", "int8", "nf4")


def main() -> None:
    options = _arguments()
    if not torch.cuda.is_available():
        raise ValueError("kernels are compiled for a GPU, and torch finds no CUDA device here")
    started = time.monotonic()
    steps = list(itertools.product(sorted(options.slots, reverse=True), options.quant))
    with compilers() as processes:
        list(processes.map(_compile_step, steps))
    print(f"steps of {len(steps)} kinds compiled in {time.monotonic() - started:.1f} s")


def compilers() -> ProcessPoolExecutor:
    """Processes to compile in, with cores left for this one."""
    return ProcessPoolExecutor(compiler_count(), mp_context=multiprocessing.get_context("spawn"))


def compiler_count() -> int:
    """How many processes compile side by side; each has memory of the GPU."""
    return max(1, min(14, (os.cpu_count() or 1) - 2))


def _compile_step(step: tuple[int, str]) -> None:
    """`step`: requests at once, and "none" or the name of a recipe."""
    slots, quant = step
    torch.set_num_threads(1)
    step_cases(slots, None if quant == "none" else quant)  # makes a step


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--slots", type=at_least(1), nargs="+", default=SLOT_COUNTS, help="requests in the batch (%(default)s)"
    )
    parser.add_argument("--quant", nargs="+", choices=("none", *RECIPES), default=QUANTS, help="(%(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    run(main)
