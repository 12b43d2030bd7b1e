"""Each kernel of the decode step at Dia's true sizes, against its torch reference and its own roofline.

    pytest benchmarks --benchmark-only

On a GPU both run, captured in a graph of many calls over rotating copies of the weights, so that neither the launch
nor the L2 cache is what is measured; a kernel is compared with its reference before it is timed. On a CPU the reference
is all there is. The table's times are those of a round of CALLS calls; microseconds per call, GB/s and percent of the
roofline are in `extra_info` of the JSON (`--benchmark-json FILE`); `--journal FILE` appends a line for each kernel
there, and leaves out what it has already.
"""

import pytest
import torch

from benchmarks.journal import Journal
from benchmarks.kernel_cases import CALLS, DEVICE, DTYPE, ON_GPU, Case, rotated, step_cases
from benchmarks.roofline import copy_bandwidth, data_sheet_bandwidth

NAMES = [
    "qkv, rope, cache", "self-attention", "o, residual", "cross q", "cross-attention", "cross o, residual", "gate, up",
    "down, residual", "head", "next row",
]  # fmt: skip


@pytest.fixture(scope="module")
def cases() -> dict[str, Case]:
    """Of a step of one request."""
    return step_cases(slots=1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("provider", ["kernel", "reference"] if ON_GPU else ["reference"])
def test_kernel(cases, benchmark, name, provider, request):
    path, entry = request.config.getoption("--journal", None), f"{name}, {provider}"
    journal = Journal(path) if path else None
    if journal and journal.entry("kernels", entry):
        pytest.skip("measured already")
    case = cases[name]
    with torch.no_grad():
        if provider == "kernel":
            _verify(case)
        one = case.run if provider == "kernel" or not ON_GPU else case.reference
        benchmark.pedantic(rotated(one, case.weight), rounds=10, warmup_rounds=2)
    seconds = benchmark.stats.stats.median / CALLS
    peak = data_sheet_bandwidth(DEVICE)
    figures = {
        "us_per_call": 1e6 * seconds,
        "gigabytes_per_second": case.bytes_read / seconds / 1e9,
        "roofline_percent": 100 * case.bytes_read / seconds / _bandwidth(),
        "peak_percent": None if peak is None else 100 * case.bytes_read / seconds / peak,
    }
    benchmark.extra_info.update(figures)
    if journal:
        journal.append("kernels", entry, "measured", **figures)


def _verify(case: Case) -> None:
    """Before timing: the kernel's result is the reference's, up to the rounding of the dtype."""
    case.reset()
    reference = case.result(case.reference(case.weight)).float().clone()
    case.reset()
    kernel = case.result(case.run(case.weight)).float()
    error = (kernel - reference).norm() / reference.norm()
    if not error <= 4 * torch.finfo(DTYPE).eps:
        raise AssertionError(f"the kernel is off its reference by {error:.2%}")


_measured: list[float] = []


def _bandwidth() -> float:
    if not _measured:
        _measured.append(copy_bandwidth(DEVICE))
    return _measured[0]
