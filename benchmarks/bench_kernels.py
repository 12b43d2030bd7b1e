"""Each kernel of the decode step at Dia's true sizes, against its torch reference and its own roofline.

    pytest benchmarks --benchmark-only

On a GPU both run, captured in a graph of many calls over rotating copies of the weights, so that neither the launch
nor the L2 cache is what is measured; a kernel is compared with its reference before it is timed. On a CPU the reference
is all there is. The table's times are those of a round of CALLS calls; microseconds per call, GB/s and percent of the
roofline are in `extra_info` of the JSON (`--benchmark-json FILE`); `--journal FILE` appends a line for each kernel
there, and leaves out what it has already.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch

from benchmarks.journal import Journal
from benchmarks.roofline import copy_bandwidth, data_sheet_bandwidth, synchronize
from dia_engine.kernels import attention, gated_linear, norm_linear, qkv, residual_linear
from dia_engine.kernels import sample_and_advance as next_row
from dia_engine.kernels.advance import RUNNING
from dia_engine.model.config import DiaConfig
from dia_engine.model.delay import OPEN
from dia_engine.model.dia import DiaModel
from dia_engine.runtime.generation import start_requests
from dia_engine.runtime.request import Request
from dia_engine.runtime.runner import Stepper
from dia_engine.sampling_params import ResolvedSamplingParams
from dia_engine.weights.synthetic import random_weights

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
DTYPE = torch.bfloat16
CALLS = 64 if ON_GPU else 1
ROTATED_BYTES = 512 * 2**20
POSITION, TEXT = 512, 200


@dataclass(frozen=True)
class Case:
    """One kernel: `run` and `reference` take a weight (or None) and return what they wrote."""

    run: Callable
    reference: Callable
    weight: torch.Tensor | None
    bytes_read: int
    # What is not timed: before a run whose result is looked at, and what to look at of what it returned.
    reset: Callable[[], None] = lambda: None
    result: Callable = lambda returned: returned


@pytest.fixture(scope="module")
def cases() -> dict[str, Case]:
    """The kernels of one layer, over a state in the middle of a request."""
    full = DiaConfig()
    config = replace(
        full, encoder=replace(full.encoder, num_hidden_layers=1), decoder=replace(full.decoder, num_hidden_layers=1)
    )
    with torch.no_grad():
        model = DiaModel(config, random_weights(config, dtype=DTYPE, device=DEVICE))
        prompt = torch.randint(1024, (POSITION, 9))
        request = Request(torch.randint(1, 200, (TEXT,)), prompt, ResolvedSamplingParams(), seed=1)
        state = start_requests(Stepper(model, graph=False), [request])
        model.step(state)
        return _cases(model, state)


def _cases(model: DiaModel, state) -> dict[str, Case]:
    layer, buffers, residual, rope = model.layers[0], state.buffers, state.residual, model.rope
    keys, values = state.self_cache.layer(0)
    cross_keys, cross_values = state.cross_cache.layer(0)
    eps, norm = layer.self_norm.eps, layer.self_norm.weight

    def projection(run, reference, weight, **more):
        return Case(run, reference, weight, weight.nbytes, **more)

    def adds(inputs, without_text=None):
        def run(weight):
            residual_linear.residual_linear(inputs, weight, residual, norm, without_text)
            return residual.x

        return run, lambda weight: residual_linear.residual_linear_ref(inputs, weight, residual, without_text)

    def qkv_run(function):
        def run(weight):
            function(residual, weight, eps, rope, state.position, buffers.query, keys, values)

        return run

    def normed(out, rows):
        def run(weight):
            norm_linear.norm_linear(rows, weight, eps, out=out)
            return out

        return run, lambda weight: norm_linear.norm_linear_ref(rows, weight, eps)

    def gated(weight):
        gated_linear.gated_linear(residual, weight, eps, out=buffers.hidden)
        return buffers.hidden

    def attends(query, keys, values, last, scratch, out):
        def run(_):
            attention.decode_attention(query, keys, values, last, scratch, out=out)
            return out

        lengths = [position + 1 for position in last.tolist()]  # a capture could not ask the GPU for them
        return run, lambda _: attention.attend(query, keys, values, lengths).flatten(1)

    def row(function):
        def run(_):  # each call goes on to the next row; there are enough
            function(buffers.logits, state, model.embedding, norm)

        return run

    def start_row():
        state.position.fill_(POSITION)
        state.countdown.fill_(RUNNING)
        state.grid[:, POSITION + 1] = OPEN

    self_bytes = 2 * keys[:, :, : POSITION + 1].nbytes
    cross_bytes = 2 * cross_keys[:, :, :TEXT].nbytes
    head = buffers.logits.flatten(1)
    return {
        "qkv, rope, cache": projection(
            qkv_run(qkv.project_qkv), qkv_run(qkv.project_qkv_ref), layer.self_attn.qkv,
            result=lambda _: buffers.query.clone(),
        ),
        "self-attention": Case(
            *attends(buffers.query, keys, values, state.position, buffers.attention, buffers.mixed), None, self_bytes
        ),
        "o, residual": projection(*adds(buffers.mixed), layer.self_attn.o),
        "cross q": projection(*normed(buffers.cross_query.flatten(1), state.with_text), layer.cross_attn.q),
        "cross-attention": Case(
            *attends(
                buffers.cross_query, cross_keys, cross_values, state.last_text, buffers.cross_attention,
                buffers.cross_mixed,
            ),
            None,
            cross_bytes,
        ),
        "cross o, residual": projection(*adds(buffers.cross_mixed, layer.without_text), layer.cross_attn.o),
        "gate, up": projection(
            gated, lambda weight: gated_linear.gated_linear_ref(residual, weight, eps), layer.mlp.gate_up
        ),
        "down, residual": projection(*adds(buffers.hidden), layer.mlp.down),
        "head": projection(*normed(head, residual), model.head),
        "next row": Case(
            row(next_row.next_row), row(next_row.next_row_ref), None, buffers.logits.nbytes, reset=start_row,
            result=lambda _: state.grid[:, POSITION + 1].float(),
        ),
    }  # fmt: skip


NAMES = [
    "qkv, rope, cache", "self-attention", "o, residual", "cross q", "cross-attention", "cross o, residual", "gate, up",
    "down, residual", "head", "next row",
]  # fmt: skip


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
        benchmark.pedantic(_round(one, case.weight), rounds=10, warmup_rounds=2)
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


def _round(one: Callable, weight: torch.Tensor | None) -> Callable[[], None]:
    """CALLS calls over as many copies of the weight as do not fit a cache; captured in a graph on a GPU."""
    count = 1 if weight is None else max(1, ROTATED_BYTES // weight.nbytes)
    copies = [weight] if count == 1 else [weight.clone() for _ in range(count)]

    def calls():
        for index in range(CALLS):
            one(copies[index % len(copies)])

    if not ON_GPU:
        return calls
    calls()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        calls()

    def replay():
        graph.replay()
        synchronize(DEVICE)

    return replay


_measured: list[float] = []


def _bandwidth() -> float:
    if not _measured:
        _measured.append(copy_bandwidth(DEVICE))
    return _measured[0]
