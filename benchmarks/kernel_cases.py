"""Each kernel of the decode step at Dia's true sizes, ready to be run over rotating copies of its weight."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch

from dia_engine.kernels import attention, gated_linear, norm_linear, qkv, residual_linear
from dia_engine.kernels import sample_and_advance as next_row
from dia_engine.kernels.advance import RUNNING
from dia_engine.kernels.quantized import FORMATS, Weight
from dia_engine.model.config import DiaConfig
from dia_engine.model.delay import OPEN
from dia_engine.model.dia import DiaModel
from dia_engine.runtime.request import Request
from dia_engine.sampling_params import ResolvedSamplingParams
from dia_engine.weights.recipes import RECIPES, chosen_formats
from dia_engine.weights.synthetic import random_weights

from .batch import start_batch
from .roofline import synchronize

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
    weight: Weight | None
    bytes_read: int
    # What is not timed: before a run whose result is looked at, and what to look at of what it returned.
    reset: Callable[[], None] = lambda: None
    result: Callable = lambda returned: returned


def step_cases(slots: int, quant: str | None = None) -> dict[str, Case]:
    """The kernels of one layer, over a state of `slots` requests in the middle."""
    full = DiaConfig()
    config = replace(
        full, encoder=replace(full.encoder, num_hidden_layers=1), decoder=replace(full.decoder, num_hidden_layers=1)
    )
    with torch.no_grad():
        formats = chosen_formats(RECIPES[quant], config) if quant else {}
        weights = {
            name: FORMATS[formats[name]].quantize(weight, DTYPE) if name in formats else weight
            for name, weight in random_weights(config, dtype=DTYPE, device=DEVICE).items()
        }
        model = DiaModel(config, weights)
        prompt = torch.randint(1024, (POSITION, 9))
        text = torch.randint(1, 200, (TEXT,))
        state = start_batch(model, [Request(text, prompt, ResolvedSamplingParams(), seed=1)] * slots)
        model.step(state)
        return _cases(model, state)


def _cases(model: DiaModel, state) -> dict[str, Case]:
    layer, buffers, residual, rope = model.layers[0], state.buffers, state.residual, model.rope
    keys, values = state.self_cache.layer(0)
    cross_keys, cross_values = state.cross_cache.layer(0)
    eps, norm = layer.self_norm.eps, layer.self_norm.weight

    def projection(run, reference, weight, **more):
        return Case(run, reference, weight, weight.nbytes, **more)

    def adds(inputs, uncond_cross_out=None):
        def run(weight):
            residual_linear.residual_linear(inputs, weight, residual, norm, uncond_cross_out)
            return residual.x

        return run, lambda weight: residual_linear.residual_linear_ref(inputs, weight, residual, uncond_cross_out)

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
            *attends(buffers.query, keys, values, state.position, buffers.attention, buffers.attn_out), None, self_bytes
        ),
        "o, residual": projection(*adds(buffers.attn_out), layer.self_attn.o),
        "cross q": projection(*normed(buffers.cross_query.flatten(1), state.cond_residual), layer.cross_attn.q),
        "cross-attention": Case(
            *attends(
                buffers.cross_query, cross_keys, cross_values, state.last_text, buffers.cross_attention,
                buffers.cross_attn_out,
            ),
            None,
            cross_bytes,
        ),
        "cross o, residual": projection(*adds(buffers.cross_attn_out, layer.uncond_cross_out), layer.cross_attn.o),
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


def rotated(one: Callable, weight: Weight | None) -> Callable[[], None]:
    """CALLS calls over as many copies of the weight as do not fit a cache; captured in a graph on a GPU."""
    count = 1 if weight is None else max(1, ROTATED_BYTES // weight.nbytes)
    copies = [weight] if count == 1 else [copied(weight) for _ in range(count)]

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


def copied(weight: Weight) -> Weight:
    """The same numbers elsewhere in memory."""
    if isinstance(weight, torch.Tensor):
        return weight.clone()
    values = {field.name: getattr(weight, field.name) for field in fields(weight)}
    return replace(weight, **{name: value.clone() for name, value in values.items() if isinstance(value, torch.Tensor)})
