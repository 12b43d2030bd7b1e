"""Times the ways to cut up each projection of a decode step, on the GPU at hand: where `Tiling.choose` gets its sizes.

    python -m benchmarks.tilings [--slots 1 16 64] [--quant none int8 nf4] [--json FILE]

Every way gives the same bits. For each projection and number of requests: microseconds per launch as chosen, and the
fastest ways. Kernels are compiled by several processes first.
"""

import argparse
import dataclasses
import itertools
import timeit
from collections.abc import Iterator
from contextlib import AbstractContextManager
from operator import itemgetter
from unittest import mock

import torch
import triton

from dia_engine.kernels.dispatch import Architecture, architecture
from dia_engine.kernels.gated_linear import TILE as GATED_TILE
from dia_engine.kernels.matmul import Tiling
from dia_engine.kernels.quantized import NF4Weight, Weight
from dia_engine.weights.recipes import RECIPES

from .command import add_json_argument, at_least, run, write_report
from .compile_kernels import compiler_count, compilers
from .kernel_cases import CALLS, DEVICE, Case, rotated, step_cases

PROJECTIONS = ("qkv, rope, cache", "o, residual", "cross q", "gate, up", "down, residual", "head")
ROUNDS = 5
STAGES = (2, 3, 4, 5, 7)
SHOWN = 4  # of the fastest


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", type=at_least(1), nargs="+", default=(1, 16, 64), help="requests in the batch")
    parser.add_argument("--quant", nargs="+", choices=("none", *RECIPES), default=("none", "int8", "nf4"))
    add_json_argument(parser)
    return parser.parse_args()


def main() -> int:
    options = _arguments()
    if not torch.cuda.is_available():
        raise ValueError("tilings are timed on a GPU, and torch finds no CUDA device here")
    report = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "results": [],
    }
    for slots, quant in itertools.product(options.slots, options.quant):
        compile_all(slots, quant)
        for name, case in cases(slots, quant).items():
            result = {"slots": slots, "quant": quant, "projection": name, **timed(name, case, slots)}
            report["results"].append(result)
            write_report(options.json, report)
            print(_line(result), flush=True)
    return 0


def cases(slots: int, quant: str) -> dict[str, Case]:
    every = step_cases(slots, None if quant == "none" else quant)
    return {name: every[name] for name in PROJECTIONS}


def candidates(name: str, weight: Weight, rows: int, target: Architecture) -> Iterator[dict[str, int]]:
    """Changes to the chosen tiling that leave the order of sums alone."""
    least = GATED_TILE if name == "gate, up" else 16
    unit = Tiling.choose(weight, least, rows, target).unit
    columns = (unit,) if isinstance(weight, NF4Weight) else (unit // 2, unit)
    heights = (8,) if rows <= 8 else (16,) if rows <= 16 else (16, 32, 64)
    for tile, block_m, block_k, stages in itertools.product((16, 32, 64), heights, columns, STAGES):
        if tile >= least:
            yield {"tile": tile, "block_m": block_m, "block_k": block_k, "stages": stages}


def compile_all(slots: int, quant: str) -> None:
    """Fill Triton's cache from several processes."""
    count = compiler_count()
    with compilers() as processes:
        list(processes.map(_compile_share, [(slots, quant, index, count) for index in range(count)]))


def _compile_share(share: tuple[int, str, int, int]) -> None:
    slots, quant, index, count = share
    for name, case in cases(slots, quant).items():
        for change in itertools.islice(_candidates(name, case, slots), index, None, count):
            _runs(case, change)


def _candidates(name: str, case: Case, slots: int) -> Iterator[dict[str, int]]:
    return candidates(name, case.weight, 2 * slots, architecture(DEVICE))


def timed(name: str, case: Case, slots: int) -> dict:
    """Microseconds per launch as chosen, and of each candidate that fits, the fastest first."""
    fitting = [change for change in _candidates(name, case, slots) if _runs(case, change)]
    times = sorted(((_microseconds(case, change), change) for change in fitting), key=itemgetter(0))
    return {"chosen": _microseconds(case, {}), "candidates": times}


def _runs(case: Case, change: dict[str, int]) -> bool:
    """Compile and launch once; False if it needs more shared memory than there is."""
    try:
        with _forced(change), torch.no_grad():
            case.run(case.weight)
    except triton.runtime.errors.OutOfResources:
        return False
    return True


def _microseconds(case: Case, change: dict[str, int]) -> float:
    with _forced(change), torch.no_grad():
        replay = rotated(case.run, case.weight)
    replay()
    return round(1e6 * min(timeit.repeat(replay, number=1, repeat=ROUNDS)) / CALLS, 2)


def _forced(change: dict[str, int]) -> AbstractContextManager:
    choose = Tiling.choose
    return mock.patch.object(Tiling, "choose", lambda *given: dataclasses.replace(choose(*given), **change))


def _line(result: dict) -> str:
    fastest = "; ".join(
        f"{time:.2f} " + " ".join(f"{key}={value}" for key, value in change.items())
        for time, change in result["candidates"][:SHOWN]
    )
    title = f"{result['slots']:3} {result['quant']:5} {result['projection']:17}"
    return f"{title} {result['chosen']:7.2f} us; fastest {fastest}"


if __name__ == "__main__":
    run(main)
