"""The compiled step of a CPU, stage by stage against the torch references that define it."""

import multiprocessing
import os
import threading
import time

import pytest
import torch

from benchmarks.batch import start_batch
from dia_engine.kernels.attention import decode_attention_ref
from dia_engine.kernels.cpu import build
from dia_engine.kernels.gated_linear import gated_linear_ref
from dia_engine.kernels.norm import headroom
from dia_engine.kernels.norm_linear import norm_linear_ref
from dia_engine.kernels.qkv import project_qkv_ref
from dia_engine.kernels.residual_linear import residual_linear_ref
from dia_engine.kernels.sample_and_advance import next_row_ref
from dia_engine.model import cpu_step
from dia_engine.model.dia import DiaModel
from dia_engine.runtime.request import Request
from dia_engine.sampling_params import ResolvedSamplingParams
from dia_engine.weights.synthetic import random_weights, synthetic_config

CONFIG = synthetic_config("synthetic:tiny")
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}

pytestmark = pytest.mark.skipif(build.library() is None, reason="there is no compiled code")


@pytest.fixture(scope="module", params=TOLERANCE, ids=str)
def model(request):
    with torch.no_grad():
        return DiaModel(CONFIG, random_weights(CONFIG, dtype=request.param, device="cpu"))


def request_of(index: int, **params) -> Request:
    generator = torch.Generator().manual_seed(index)
    text = torch.randint(1, 250, (9 + 31 * index,), generator=generator)
    prompt = torch.randint(1024, (5 + 130 * index, 9), generator=generator)
    return Request(text, prompt, ResolvedSamplingParams(max_tokens=400, **params), seed=index)


@pytest.fixture
def state(model):
    """Three slots at different rows, the last with more than one span of attention."""
    return start_batch(model, [request_of(index) for index in range(3)])


def assert_near(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal up to the rounding of the model's dtype."""
    dtype = found.dtype
    size = expected.float().abs().max().item() or 1.0
    torch.testing.assert_close(found.float(), expected.float(), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * size / 4)


def test_queries_keys_and_values(model, state):
    layer, eps, position = model.layers[1], model.layers[1].self_norm.eps, state.position
    keys, values = state.self_cache.layer(1)
    expected = torch.empty_like(state.buffers.query), keys.clone(), values.clone()
    project_qkv_ref(state.residual, layer.self_attn.qkv, eps, model.rope, position, *expected)
    before = keys.clone()
    model.compiled_step.run_stage(state, 1, "project_qkv")
    assert_near(state.buffers.query, expected[0])
    rows = torch.arange(keys.shape[0])
    place = position.repeat_interleave(2)
    for cache, wanted in ((keys, expected[1]), (values, expected[2])):
        assert_near(cache[rows, :, place], wanted[rows, :, place])
    keys[rows, :, place] = before[rows, :, place] = 0
    assert torch.equal(keys.nan_to_num(), before.nan_to_num()), "another position was written"


@pytest.mark.parametrize("stage", ["attend_to_rows", "attend_to_text"])
def test_attention(model, state, stage):
    buffers = state.buffers
    if stage == "attend_to_rows":
        query, out, cache, last = buffers.query, buffers.attn_out, state.self_cache, state.position
        for tensor in (cache.keys, cache.values):
            tensor[1].normal_()
    else:
        query, out, cache, last = buffers.cross_query, buffers.cross_attn_out, state.cross_cache, state.last_text
    query.normal_()
    expected = decode_attention_ref(query, *cache.layer(1), last)
    model.compiled_step.run_stage(state, 1, stage)
    assert_near(out.view_as(expected), expected)


def test_the_residual_and_what_the_next_norm_needs(model, state):
    layer, buffers = model.layers[1], state.buffers
    stages = (
        ("project_attn_out", buffers.attn_out, layer.self_attn.o, layer.cross_norm, None),
        ("project_cross_attn_out", buffers.cross_attn_out, layer.cross_attn.o, layer.mlp_norm, layer.uncond_cross_out),
        ("project_down", buffers.hidden, layer.mlp.down, layer.next_norm, None),
    )
    for stage, inputs, weight, norm, uncond_cross_out in stages:
        inputs.normal_()
        expected = residual_linear_ref(inputs, weight, state.residual, uncond_cross_out)
        model.compiled_step.run_stage(state, 1, stage)
        torch.testing.assert_close(state.residual.x, expected, rtol=1e-2, atol=TOLERANCE[model.dtype])
        assert_near(state.residual.z, (state.residual.x * norm.weight * headroom(model.dtype)).to(model.dtype))
        squares = state.residual.squares.sum(dim=1)
        torch.testing.assert_close(squares, state.residual.x.square().sum(dim=1))


def test_what_the_normed_residual_is_projected_to(model, state):
    layer, eps, buffers = model.layers[1], model.layers[1].self_norm.eps, state.buffers
    expected = norm_linear_ref(state.cond_residual, layer.cross_attn.q, eps).to(model.dtype)
    model.compiled_step.run_stage(state, 1, "project_cross_query")
    assert_near(buffers.cross_query.flatten(1), expected)
    expected = gated_linear_ref(state.residual, layer.mlp.gate_up, eps).to(model.dtype)
    model.compiled_step.run_stage(state, 1, "project_hidden")
    assert_near(buffers.hidden, expected)


@pytest.mark.parametrize("top_k", [1, 45, None])
@pytest.mark.parametrize("temperature", [0.0, 1.3])
@pytest.mark.parametrize("top_p", [0.3, 0.95, 1.0])
def test_the_next_row(model, top_k, temperature, top_p):
    """As many draws as the cases have channels and slots."""
    params = {"cfg_filter_top_k": top_k, "temperature": temperature, "top_p": top_p}
    found, expected = (start_batch(model, [request_of(index, **params) for index in range(2)]) for _ in range(2))
    weights = model.embedding, model.layers[0].self_norm.weight
    for step in range(20):
        logits = 4 * torch.randn(found.buffers.logits.shape)
        logits[:, :, 3:9] = logits[:, :, 2:3]  # ties
        logits[:, :, 50] = -torch.inf
        if step == 15:
            logits[:2, 0, CONFIG.eos_token_id] = 30  # an end
        found.buffers.logits.copy_(logits)
        next_row_ref(logits, expected, *weights)
        model.compiled_step.next_row(found)
        for name in ("grid", "position", "countdown", "end_row", "broken"):
            assert torch.equal(getattr(found, name), getattr(expected, name)), name
        torch.testing.assert_close(found.residual.x, expected.residual.x)


@pytest.mark.parametrize(
    "params, logits",
    [
        # The end is likely, but not the likeliest: it is never drawn.
        ({"cfg_filter_top_k": 45, "temperature": 1.0, "top_p": 1.0}, {7: 5.0, CONFIG.eos_token_id: 4.9}),
        # Equal ids: those with the lowest numbers are among the first `top_k`, or in the nucleus.
        *(
            ({"cfg_filter_top_k": top_k, "temperature": 1.0, "top_p": 1.0}, dict.fromkeys(range(3, 9), 1.0))
            for top_k in (2, 3, 5)
        ),
        *(
            ({"cfg_filter_top_k": 4, "temperature": 1.0, "top_p": top_p}, dict.fromkeys(range(3, 7), 1.0))
            for top_p in (0.25, 0.5, 0.75)
        ),
    ],
)
def test_the_next_row_at_the_edges_of_what_may_be_drawn(model, params, logits):
    found, expected = (start_batch(model, [request_of(index, **params) for index in range(2)]) for _ in range(2))
    weights = model.embedding, model.layers[0].self_norm.weight
    found.buffers.logits.fill_(-9.0)
    for id, logit in logits.items():
        found.buffers.logits[..., id] = logit
    for _ in range(30):
        next_row_ref(found.buffers.logits, expected, *weights)
        model.compiled_step.next_row(found)
        assert torch.equal(found.grid, expected.grid) and torch.equal(found.countdown, expected.countdown)
    assert found.countdown.tolist() == [-1, -1]


def test_no_end_before_its_first_row(model):
    params = {"temperature": 0.0, "cfg_filter_top_k": 1, "min_tokens": 3}
    found, expected = (start_batch(model, [request_of(index, **params) for index in range(2)]) for _ in range(2))
    for step in range(5):
        logits = torch.randn(found.buffers.logits.shape)
        logits[:, 0, CONFIG.eos_token_id] = 30
        found.buffers.logits.copy_(logits)
        next_row_ref(logits, expected, model.embedding, model.layers[0].self_norm.weight)
        model.compiled_step.next_row(found)
        assert torch.equal(found.grid, expected.grid) and torch.equal(found.countdown, expected.countdown)
        assert (found.countdown.tolist() == [-1, -1]) == (step < 3)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_logits_stop_their_slot(model, value):
    state = start_batch(model, [request_of(index) for index in range(2)])
    state.buffers.logits.normal_()
    state.buffers.logits[3, 8, 1027] = value
    before = state.position.clone()
    model.compiled_step.next_row(state)
    assert state.broken.tolist() == [0, 1] and state.countdown[1] == 0
    assert state.position.tolist() == [before[0] + 1, before[1]]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_number_of_threads_changes_nothing(monkeypatch, model, threads):
    requests = [request_of(index % 3) for index in range(5)]
    expected, found = start_batch(model, requests), start_batch(model, requests)
    for _ in range(4):
        model.step(expected)
    monkeypatch.setattr(cpu_step, "thread_count", lambda: threads)
    for _ in range(4):
        model.step(found)
    assert torch.equal(found.grid, expected.grid) and torch.equal(found.residual.x, expected.residual.x)


def test_steps_of_several_threads_at_the_same_time(monkeypatch, model):
    monkeypatch.setattr(cpu_step, "thread_count", lambda: 2)
    requests = [request_of(index) for index in range(3)]
    models = [DiaModel(CONFIG, random_weights(CONFIG, dtype=model.dtype, device="cpu")) for _ in range(3)]
    states = [start_batch(each, requests) for each in models]

    def steps(each, state):
        for _ in range(6):
            each.step(state)

    workers = [threading.Thread(target=steps, args=pair) for pair in zip(models, states, strict=True)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for state in states[1:]:
        assert torch.equal(state.grid, states[0].grid)


def _step_in_child(model, state, results):
    with torch.no_grad():
        model.compiled_step.step(state)
    results.put(state.grid.tolist())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_process_starts_its_own_threads(monkeypatch, model):
    monkeypatch.setattr(cpu_step, "thread_count", lambda: 2)
    state = start_batch(model, [request_of(2)] * 4)  # large enough to be shared
    model.step(state)
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    child = context.Process(target=_step_in_child, args=(model, state, results))
    child.start()
    child.join(60)
    child.kill()  # if it hangs
    assert child.exitcode == 0
    model.step(state)
    assert results.get() == state.grid.tolist()


def test_timed_steps_are_the_same_and_add_up(model):
    plain, timed = (start_batch(model, [request_of(index) for index in range(2)]) for _ in range(2))
    started = time.perf_counter()
    with model.compiled_step.timed() as seconds:
        assert not seconds
        for _ in range(3):
            model.step(timed)
    whole = time.perf_counter() - started
    for _ in range(3):
        model.step(plain)
    assert torch.equal(timed.grid, plain.grid) and torch.equal(timed.residual.x, plain.residual.x)
    assert set(seconds) == {*cpu_step.STAGES, "project_logits", "next_row"}
    assert min(seconds.values()) > 0 and sum(seconds.values()) <= whole
    model.step(timed)
    assert sum(seconds.values()) <= whole, "a step behind the context was timed"
