"""Every product y = x W^T that this CPU can run, for a decode step's matrices, and where the rule picks a slow one.

    python -m benchmarks.cpu_products

The rule (`kernels/cpu/variants.py` for the compiled code; without it `kernels/linear.py::step_product` and
`kernels/cpu/onednn.py::pack_for_device`) goes by features of the CPU and measures nothing, so that two starts on a
machine compute the same bits. Here the products, in every variant of the compiled code that the CPU runs and by
torch, are timed in turn, over copies of the weight that no cache holds. One product must serve every number of rows,
so a rule is judged by the rows of one request."""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import cycle

import torch

from dia_engine.devices.device import DTYPES
from dia_engine.kernels.cpu.build import library, library_of
from dia_engine.kernels.cpu.matmul import multiply
from dia_engine.kernels.cpu.onednn import PackedInt8Weight, multiplies_int8, pack_for_device
from dia_engine.kernels.cpu.structures import is_compilable
from dia_engine.kernels.cpu.variants import VARIANTS, Variant, chosen_variant
from dia_engine.kernels.linear import (
    multiply_packed,
    multiply_read_back,
    multiply_rows_first,
    step_product,
)
from dia_engine.kernels.quantized import FORMATS
from dia_engine.model.config import DiaConfig
from dia_engine.model.shapes import parameter_shapes
from dia_engine.weights.source import resolve_model

from .command import add_json_argument, at_least, run, write_report
from .roofline import is_read_in_step
from .setting import cpu_setting

ONE_REQUEST = 2  # rows of a step
WRONG = 1.10  # times the fastest product's time
COPIES_BYTES, MOST_COPIES = 2**28, 32  # of each weight

NAMES = {
    multiply_rows_first: "F.linear",
    multiply: "C",
    multiply_packed: "oneDNN",
    multiply_read_back: "read back",
}


def main() -> None:
    options = _arguments()
    shapes = step_shapes(resolve_model(options.model).config)
    report = {**cpu_setting(), "model": options.model, "results": []}
    print(f"{report['device']}, {report['cores']} cores, {report['capability']}, torch {report['torch']}")
    print("GB/s of weights in their own format, multiples of the fastest product's time; * is what the rule chooses")
    for kind in options.kinds:
        for shape, names in shapes.items():
            for result in measure(kind, shape, options.rows, options.rounds):
                report["results"].append({**result, "matrices": names})
                write_report(options.json, report)
                print(line(report["results"][-1]), flush=True)
    print(verdict(report["results"]))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu_products", description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="synthetic:full", help="hub id, folder or synthetic:... (%(default)s)")
    kinds = [*DTYPES, *FORMATS]
    help_of_kinds = f"of {', '.join(kinds)}; the last two are multiplied in bfloat16 (%(default)s)"
    parser.add_argument(
        "--kinds", nargs="+", default=["bfloat16", *FORMATS], choices=kinds, metavar="KIND", help=help_of_kinds
    )
    parser.add_argument("--rows", nargs="+", type=at_least(1), default=[2, 8, 32], help="of x (%(default)s)")
    parser.add_argument(
        "--rounds", type=at_least(1), default=15, help="calls of each product, of which the median counts"
    )
    add_json_argument(parser)
    return parser.parse_args()


def step_shapes(config: DiaConfig) -> dict[tuple[int, int], list[str]]:
    """The matrices of a decode step, by shape; each with what it is of a layer."""
    shapes: dict[tuple[int, int], list[str]] = {}
    for name, shape in parameter_shapes(config).items():
        if len(shape) == 2 and is_read_in_step(name):
            part = name.removesuffix(".weight").split(".", 1)[1]
            part = part.split(".", 2)[2] if part.startswith("layers.") else part
            known = shapes.setdefault(shape, [])
            known += [part] if part not in known else []
    return shapes


def measure(kind: str, shape: tuple[int, int], rows: list[int], rounds: int) -> list[dict]:
    """Time all products with a weight of one shape.

    Args:
        kind: name of a dtype or of a quantized format.
        shape: (N, K) of the weight.
        rows: numbers of rows of x, each of which gives a result.

    Returns:
        results with "kind", "shape", "rows", "chosen", and by product "gigabytes_per_second", "milliseconds" (medians).
    """
    weight = _weight(kind, shape)
    products = {name: _with_copies(product, form) for name, (product, form) in candidates(weight).items()}
    chosen = _chosen(weight)
    results = []
    for count in rows:
        x = torch.randn(count, shape[1]).to(weight.dtype)
        seconds = _medians({name: partial(product, x) for name, product in products.items()}, rounds)
        results.append(
            {
                "kind": kind,
                "shape": list(shape),
                "rows": count,
                "chosen": chosen,
                "milliseconds": {name: 1000 * each for name, each in seconds.items()},
                "gigabytes_per_second": {name: weight.nbytes / each / 1e9 for name, each in seconds.items()},
            }
        )
    return results


def _weight(kind: str, shape: tuple[int, int]):
    matrix = torch.randn(shape) * shape[1] ** -0.5
    return FORMATS[kind].quantize(matrix, torch.bfloat16) if kind in FORMATS else matrix.to(DTYPES[kind])


def candidates(weight) -> dict[str, tuple[Callable, object]]:
    """Products that this machine has for a weight, by name, each with the weight in its form."""
    found = {
        _name(variant): (partial(multiply, functions=library_of(variant)), weight)
        for variant in VARIANTS
        if variant.runs_here() and is_compilable(weight) and library_of(variant) is not None
    }
    if isinstance(weight, torch.Tensor):
        return found | {NAMES[multiply_rows_first]: (multiply_rows_first, weight)}
    if weight.title == "int8" and multiplies_int8():
        found[NAMES[multiply_packed]] = multiply_packed, PackedInt8Weight.pack(weight)
    return {**found, NAMES[multiply_read_back]: (multiply_read_back, weight)}


def _name(variant: Variant) -> str:
    return f"{NAMES[multiply]} {variant.name}"


def _chosen(weight) -> str:
    """The name of what a step multiplies a weight with."""
    variant = chosen_variant()
    if variant is not None and is_compilable(weight) and library() is not None:
        return _name(variant)
    return NAMES[step_product(pack_for_device(weight))]


def _with_copies(product: Callable, weight) -> Callable[[torch.Tensor], torch.Tensor]:
    """The product as a function of x, with another copy of the weight at each call."""
    copies = cycle([weight, *(_copy(weight) for _ in range(min(MOST_COPIES, COPIES_BYTES // weight.nbytes)))])
    return lambda x: product(x, next(copies))


def _copy(weight):
    if isinstance(weight, torch.Tensor):
        return weight.clone()
    if isinstance(weight, PackedInt8Weight):
        return PackedInt8Weight.pack(weight.unpack())
    return type(weight).join([weight], "cpu")


def _medians(calls: dict[str, Callable[[], torch.Tensor]], rounds: int) -> dict[str, float]:
    """Median seconds of each call; all are called once in each round."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            if number:  # first calls allocate and compile
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(each) for name, each in times.items()}


def line(result: dict) -> str:
    least = min(result["milliseconds"].values())
    cells = [
        f"{'*' if name == result['chosen'] else ' '}{name} {result['gigabytes_per_second'][name]:.1f} "
        f"({milliseconds / least:.2f}x)"
        for name, milliseconds in result["milliseconds"].items()
    ]
    rows, columns = result["shape"]
    return f"{result['kind']:9}{rows:6} x {columns:<5}{result['rows']:3} rows  " + "  ".join(cells)


def verdict(results: list[dict]) -> str:
    """Where the rule's product takes longer than WRONG times the fastest, for the rows of one request."""
    slow, judged = [], [result for result in results if result["rows"] == ONE_REQUEST]
    if not judged:
        return f"the rule was not judged: that takes {ONE_REQUEST} among --rows, those of one request"
    for result in judged:
        times = result["milliseconds"]
        name = min(times, key=times.__getitem__)
        ratio = times[result["chosen"]] / times[name]
        if ratio > WRONG:
            slow.append(
                f"the rule is wrong: {result['kind']} {result['shape'][0]} x {result['shape'][1]} with "
                f"{ONE_REQUEST} rows takes {ratio:.2f}x as long with {result['chosen']} as with {name}"
            )
    return (
        "\n".join(slow)
        or "the rule is right: nowhere more than 10 % slower than the fastest, with the rows of one request"
    )


if __name__ == "__main__":
    with torch.no_grad():
        run(main)
