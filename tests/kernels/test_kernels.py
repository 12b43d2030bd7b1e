"""Every kernel equals its torch reference, alone and as a whole step.

Without a GPU the kernels run in Triton's interpreter, in float32: its bfloat16 dot is wrong. The tests marked `gpu` add
what only a GPU can show.
"""

import contextlib
import dataclasses
import os
from itertools import pairwise
from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")

import triton

from dia_engine.kernels import attention, gated_linear, norm_linear, qkv, residual_linear, tuning
from dia_engine.kernels import sample_and_advance as next_row
from dia_engine.kernels.attention import AttentionScratch
from dia_engine.kernels.dispatch import HOPPER, intercept_launches, tl
from dia_engine.kernels.norm import Residual
from dia_engine.kernels.philox import philox
from dia_engine.kernels.rope import rope_table
from dia_engine.model.dia import DiaModel
from dia_engine.model.shapes import parameter_shapes
from dia_engine.model.state import STATUS, DecodeState
from dia_engine.sampling_params import ResolvedSamplingParams
from tests.kernels.helpers import (
    DEVICE,
    EPS,
    REQUESTS,
    check,
    clone,
    dtypes,
    kernels,
    matrix,
    randn,
    random_residual,
    random_weights,
    scaling,
    small_config,
    started,
)


def to_float(value):
    """The same numbers in float32."""
    if dataclasses.is_dataclass(value):
        return type(value)(*(to_float(getattr(value, field.name)) for field in dataclasses.fields(value)))
    return value.float()


# Large enough for several programs and loop turns, and odd in every size.
@dtypes
@pytest.mark.parametrize(
    "rows, width, outputs", [(2, 64, 48), (1, 40, 7), (6, 33, 45), (14, 1040, 70), (40, 72, 17), (2, 1024, 33)]
)
def test_norm_linear(rows, width, outputs, dtype):
    residual, weight = random_residual(rows, width, dtype), matrix(outputs, width, dtype)
    out = torch.full((rows, outputs), torch.nan, device=DEVICE)
    with kernels():
        norm_linear.norm_linear(residual, weight, EPS, out)
    reference = norm_linear.norm_linear_ref(residual, weight, EPS)
    check(out, reference, norm_linear.norm_linear_ref(to_float(residual), weight.float(), EPS) / scaling(residual))


@dtypes
def test_norm_linear_of_every_other_row(dtype):
    residual, weight = random_residual(6, 48, dtype), matrix(20, 48, dtype)
    out = torch.full((3, 20), torch.nan, dtype=dtype, device=DEVICE)
    with_text = residual.rows(slice(1, None, 2))
    with kernels():
        norm_linear.norm_linear(with_text, weight, EPS, out)
    reference = norm_linear.norm_linear_ref(with_text, weight, EPS).to(dtype)
    check(out, reference, norm_linear.norm_linear_ref(to_float(with_text), weight.float(), EPS) / scaling(residual))


@dtypes
@pytest.mark.parametrize("rows, width, inner", [(2, 64, 96), (4, 33, 45), (18, 40, 16)])
def test_gated_linear(rows, width, inner, dtype):
    residual, weight = random_residual(rows, width, dtype), matrix(2 * inner, width, dtype)
    out = torch.full((rows, inner), torch.nan, dtype=dtype, device=DEVICE)
    with kernels():
        gated_linear.gated_linear(residual, weight, EPS, out)
    reference = gated_linear.gated_linear_ref(residual, weight, EPS).to(dtype)
    exact = dataclasses.replace(to_float(residual), z=residual.z.float() / scaling(residual))
    check(out, reference, gated_linear.gated_linear_ref(exact, weight.float(), EPS))


@dtypes
@pytest.mark.parametrize("text", [False, True], ids=["all_rows", "rows_with_text"])
@pytest.mark.parametrize("rows, width, inner", [(2, 64, 1030), (2, 40, 48), (6, 33, 45), (42, 20, 64)])
def test_residual_linear(rows, width, inner, text, dtype):
    residual = random_residual(rows, width, dtype)
    weight, norm_weight = matrix(width, inner, dtype), 1 + randn(width, scale=0.1)
    inputs = randn(rows // 2 if text else rows, inner, dtype=dtype)
    uncond_cross_out = randn(width) if text else None
    result = clone(residual)
    with kernels():
        residual_linear.residual_linear(inputs, weight, result, norm_weight, uncond_cross_out)
    reference = residual_linear.residual_linear_ref(inputs, weight, residual, uncond_cross_out)
    truth = residual_linear.residual_linear_ref(inputs.float(), weight.float(), residual, uncond_cross_out)
    check(result.x, reference, truth)
    expected, exact = clone(residual), Residual.allocate(rows, width, torch.float32, DEVICE)
    expected.write(reference, norm_weight)
    exact.write(truth, norm_weight)
    check(result.z, expected.z, exact.z * scaling(residual))
    torch.testing.assert_close(result.scale(EPS), expected.scale(EPS), rtol=1e-3, atol=0)
    if dtype == torch.float32:
        torch.testing.assert_close(result.scale(EPS), exact.scale(EPS), rtol=1e-5, atol=0)


@pytest.mark.parametrize("rows, width", [(2, 64), (42, 40)])
@pytest.mark.parametrize("text", [False, True], ids=["all_rows", "rows_with_text"])
def test_squares_are_added_in_one_order(rows, width, text):
    """Element i of a partial sum to i + 8, then to i + 4 and so on: an order that no register layout decides."""
    residual = random_residual(rows, width)
    residual.x.copy_(residual.x.bfloat16())  # squares are exact in float32, so a fused multiply-add rounds as two do
    weight, inputs = torch.zeros((width, 16), device=DEVICE), randn(rows // 2 if text else rows, 16)
    with kernels():
        residual_linear.residual_linear(
            inputs,
            weight,
            residual,
            torch.ones(width, device=DEVICE),
            torch.zeros(width, device=DEVICE) if text else None,
        )
    squares = torch.nn.functional.pad(residual.x.square(), (0, -width % 16)).unflatten(1, (-1, 16))
    while squares.shape[-1] > 1:
        low, high = squares.chunk(2, dim=-1)
        squares = low + high
    assert torch.equal(residual.squares, squares[..., 0])


@dtypes
@pytest.mark.parametrize(
    "slots, heads, groups, head_dim, width", [(1, 4, 2, 16, 64), (3, 3, 1, 10, 33), (2, 2, 2, 6, 40), (9, 1, 1, 32, 20)]
)
def test_project_qkv(slots, heads, groups, head_dim, width, dtype):
    capacity = 13
    residual = random_residual(2 * slots, width, dtype)
    weight = matrix((heads + 2 * groups) * head_dim, width, dtype)
    position = torch.randint(0, capacity, (slots,), device=DEVICE)
    rope = rope_table(capacity, head_dim, 10000.0, DEVICE)

    def run(function, residual, weight, kind):
        query = torch.full((2 * slots, heads, head_dim), torch.nan, dtype=kind, device=DEVICE)
        caches = [torch.zeros((2 * slots, groups, capacity, head_dim), dtype=kind, device=DEVICE) for _ in range(2)]
        function(residual, weight, EPS, rope, position, query, *caches)
        return query, *caches

    exact = dataclasses.replace(to_float(residual), z=residual.z.float() / scaling(residual))
    with kernels():
        results = run(qkv.project_qkv, residual, weight, dtype)
    references = run(qkv.project_qkv_ref, residual, weight, dtype)
    truths = run(qkv.project_qkv_ref, exact, weight.float(), torch.float32)
    for result, reference, truth in zip(results, references, truths, strict=True):
        check(result, reference, truth)
        assert torch.equal(result == 0, reference == 0)  # nothing is written elsewhere in the cache


@dtypes
@pytest.mark.parametrize("programs", ["64", "128"])
@pytest.mark.parametrize(
    "heads, groups, head_dim, capacity, last, rows_per_slot",
    [
        (4, 2, 16, 70, [0, 69], 2),
        (8, 2, 16, 1100, [1099, 31, 32], 2),
        (3, 3, 24, 40, [5, 0, 39], 1),
        (9, 1, 10, 200, [199, 64], 1),
        (6, 2, 128, 600, [513], 2),
    ],
)
def test_decode_attention(heads, groups, head_dim, capacity, last, rows_per_slot, programs, dtype, monkeypatch):
    monkeypatch.setenv("DIA_ATTENTION_PROGRAMS", programs)
    rows = len(last) * rows_per_slot
    query = randn(rows, heads, head_dim, dtype=dtype)
    keys, values = (randn(rows, groups, capacity, head_dim, dtype=dtype) for _ in range(2))
    last = torch.tensor(last, device=DEVICE)
    reference = attention.decode_attention_ref(query, keys, values, last)
    truth = attention.decode_attention_ref(query.float(), keys.float(), values.float(), last)
    for row in range(rows):
        for cache in (keys, values):
            cache[row, :, int(last[row // rows_per_slot]) + 1 :] = torch.nan
    scratch = AttentionScratch.allocate(rows, groups, heads, head_dim, DEVICE)
    scratch.partial.fill_(torch.nan)
    for _ in range(2):  # the second run finds what the first one left
        out = torch.full((rows, heads * head_dim), torch.nan, dtype=dtype, device=DEVICE)
        with kernels():
            attention.decode_attention(query, keys, values, last, scratch, out)
        check(out.view_as(query), reference, truth)
        assert not scratch.arrivals.any()


@pytest.mark.parametrize("programs, groups, expected", [(None, 4, 16), (None, 16, 4), ("128", 4, 32), ("128", 16, 8)])
def test_the_number_of_spans_can_be_chosen(programs, groups, expected, monkeypatch):
    monkeypatch.delenv("DIA_ATTENTION_PROGRAMS", raising=False)
    if programs:
        monkeypatch.setenv("DIA_ATTENTION_PROGRAMS", programs)
    scratch = AttentionScratch.allocate(2, groups, 16, 128, "cpu")
    assert scratch.splits == expected and scratch.partial.numel() == 2 * 16 * expected * 128
    monkeypatch.setenv("DIA_ATTENTION_PROGRAMS", "100")
    with pytest.raises(ValueError, match="DIA_ATTENTION_PROGRAMS must be a power of two from 16 to 256, got '100'"):
        AttentionScratch.allocate(2, groups, 16, 128, "cpu")


def test_the_number_of_warps_can_be_chosen(monkeypatch):
    monkeypatch.delenv("DIA_ATTENTION_WARPS", raising=False)
    assert (tuning.warps_per_program(2), tuning.warps_per_program(4)) == (4, 8)
    monkeypatch.setenv("DIA_ATTENTION_WARPS", "2")
    assert (tuning.warps_per_program(2), tuning.warps_per_program(4)) == (2, 8)
    monkeypatch.setenv("DIA_ATTENTION_WARPS", "3")
    with pytest.raises(ValueError, match="DIA_ATTENTION_WARPS must be 2 or 4, got '3'"):
        tuning.warps_per_program(2)


def running_state(config, slots, rows=60, dtype=torch.float32):
    """A state in which every slot runs, each at another row."""
    state = DecodeState.allocate(config, slots, rows, 8, dtype, DEVICE)
    for slot in range(slots):
        prompt = torch.randint(0, config.eos_token_id, (slot, config.decoder.num_channels))
        state.start(slot, 3, prompt, ResolvedSamplingParams(max_tokens=rows), seed=slot)
        state.activate(slot)
    return state


def assert_same_step(config, state, logits):
    """next_row by kernel and by reference: the same grid, flags and residual. Returns the tokens of the new rows."""
    width = config.decoder.hidden_size
    table = matrix(config.decoder.num_channels * config.decoder.vocab_size, width)
    norm_weight = 1 + randn(width, scale=0.1)
    expected = clone(state)
    next_row.next_row_ref(logits, expected, table, norm_weight)
    with kernels():
        next_row.next_row(logits, state, table, norm_weight)
    for name in ("grid", *STATUS):
        assert torch.equal(getattr(state, name), getattr(expected, name)), name
    torch.testing.assert_close(state.residual.x, expected.residual.x)
    torch.testing.assert_close(state.residual.z, expected.residual.z)
    torch.testing.assert_close(state.residual.scale(EPS), expected.residual.scale(EPS))
    assert not state.buffers.channels_done.any()
    return state.grid[torch.arange(state.slots, device=DEVICE), state.position]


@pytest.mark.parametrize("channels, vocab, slots, turns", [(9, 1028, 2, 2), (1, 37, 3, 10), (10, 64, 2, 3)])
def test_next_row_draws_the_references_tokens(channels, vocab, slots, turns):
    config = small_config(channels=channels, vocab=vocab)
    state = running_state(config, slots)
    state.grid.fill_(-1)
    state.position.fill_(20)
    state.temperature.copy_(torch.tensor([1.2, 0.7, 2.0])[:slots])
    state.top_p.copy_(torch.tensor([0.95, 0.5, 1.0])[:slots])
    state.top_k.copy_(torch.tensor([min(45, vocab), vocab, 10])[:slots])
    drawn = []
    for _ in range(turns):
        state.seed.copy_(torch.randint(0, 2**63 - 1, (slots,)))
        logits = randn(2 * slots, channels, vocab, scale=2.0)
        drawn.append(assert_same_step(config, state, logits))
    assert torch.stack(drawn).unique().numel() > 5


def test_the_reference_of_the_next_row_does_not_wait_for_a_gpu():
    """Neither for broken logits: `benchmarks.bench_kernels` captures it, which a wait makes fail."""

    class OnGPU(torch.Tensor):
        is_cuda = True

    class Capture(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            assert function.overloadpacket.__name__ not in ("_local_scalar_dense", "nonzero", "masked_select"), function
            return function(*args, **(kwargs or {}))

    config = small_config()
    state = running_state(config, 2)
    table = matrix(config.decoder.num_channels * config.decoder.vocab_size, config.decoder.hidden_size)
    logits = randn(4, config.decoder.num_channels, config.decoder.vocab_size)
    logits[2, 0, 3] = torch.nan
    with Capture():
        next_row.next_row_ref(logits.as_subclass(OnGPU), state, table, randn(config.decoder.hidden_size))
    assert state.broken.tolist() == [0, 1] and state.countdown.tolist() == [-1, 0]


@pytest.mark.parametrize("top_k", [1, 3, 30])
@pytest.mark.parametrize("top_p", [0.25, 0.5, 0.9, 1.0])
def test_next_row_with_ties(top_k, top_p):
    """Logits of three values only: the k-th largest and the nucleus's edge are tied. 0.0 and -0.0 are one value."""
    config = small_config(vocab=36, channels=2)
    state = running_state(config, 2, rows=20)
    state.temperature.fill_(1.0)
    state.top_p.fill_(top_p)
    state.top_k.fill_(top_k)
    logits = torch.randint(-1, 2, (4, 2, 36)).float().to(DEVICE)
    logits[:, :, ::3] *= -1.0
    assert_same_step(config, state, logits)


def test_next_row_at_the_edge_of_the_nucleus():
    """Four equal probabilities of 1/4: an id stays if the mass before it does not exceed top_p, exact hits included."""
    config = small_config(vocab=36, channels=1)
    tokens = set()
    for seed in range(12):
        state = running_state(config, 3, rows=20)
        state.seed.fill_(seed)
        state.temperature.fill_(1.0)
        state.top_k.fill_(36)
        state.top_p.copy_(torch.tensor([0.25, 0.5, 0.2]))
        logits = torch.full((6, 1, 36), -torch.inf, device=DEVICE)
        logits[:, :, 4:8] = 1.0
        state.cfg_scale.zero_()
        logits[::2] = 0.0  # finite, or guidance makes nan of two infinities
        logits[1::2].clamp_(min=-1e4)
        row = assert_same_step(config, state, logits)
        tokens |= {(slot, int(token)) for slot, token in enumerate(row[:, 0])}
    assert tokens == {(0, 4), (0, 5), (1, 4), (1, 5), (1, 6), (2, 4)}


def test_next_row_rules():
    """Greedy slots, EOS ahead and behind, and a choice that leaves nothing but forbidden ids."""
    config = small_config(vocab=40, channels=3)
    eos = config.eos_token_id
    state = running_state(config, 5, rows=40)
    state.position.fill_(15)
    state.grid.fill_(-1)
    state.cfg_scale.fill_(1.0)
    state.top_k.copy_(torch.tensor([1, 40, 1, 40, 2]))
    state.temperature.copy_(torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0]))
    logits = randn(10, 3, 40, scale=0.5)
    logits[1, :, eos] = 9.0  # greedy: EOS on channel 0 only
    logits[:2, :, 5] = -torch.inf  # forbidden by both rows: it takes no place of top_k
    logits[3, :, eos] = 9.0  # drawn: only EOS survives on channel 0
    logits[5, :, eos + 2] = 9.0  # top_k 1 chooses a forbidden id: id 0
    logits[7, :, :] = -torch.inf  # nothing at all: id 0
    logits[6, :, :] = 0.0
    state.cfg_scale[3] = 0.0
    logits[9, :, eos] = 8.0
    logits[9, :, 7] = 9.0  # EOS is second: it goes, 7 is left
    row = assert_same_step(config, state, logits)
    assert row[:, 0].tolist() == [eos, eos, 0, 0, 7]
    assert not (row[:, 1:] >= eos).any() and (row[2:4] == 0).all()


def test_next_row_forbids_an_early_end():
    """Slots whose likeliest token is EOS, greedy and drawn, before and at the first row that may end; and one where
    guidance leaves nothing but EOS: top_k then counts the next best."""
    config = small_config(vocab=40, channels=3)
    eos = config.eos_token_id
    state = running_state(config, 6, rows=40)
    state.position.fill_(15)
    state.grid.fill_(-1)
    state.cfg_scale.fill_(1.0)
    state.top_k.copy_(torch.tensor([40, 40, 1, 40, 40, 1]))
    state.temperature.copy_(torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0, 1.0]))
    state.first_eos_row.copy_(torch.tensor([17, 40, 17, 16, 0, 16]))
    logits = randn(12, 3, 40, scale=0.5)
    logits[:, 0, eos], logits[:, 0, 7] = 20.0, 9.0
    row = assert_same_step(config, state, logits)
    assert row[:, 0].tolist() == [7, 7, 7, eos, eos, eos]
    assert not (row[:, 1:] >= eos).any()
    row = assert_same_step(config, state, logits)
    assert row[:3, 0].tolist() == [eos, 7, eos]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("side", [0, 1], ids=["unconditional", "conditional"])
def test_next_row_stops_a_slot_of_broken_logits(value, side):
    """At the first and the last token of the first and the last channel; -infinity forbids a token and breaks nothing.
    The other slots go on, and one that has stopped before is not flagged."""
    config = small_config(vocab=40, channels=3)
    state = running_state(config, 6, rows=40)
    state.position.fill_(15)
    state.grid.fill_(-1)
    state.grid[:, 15] = 3
    state.temperature.copy_(torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0, 1.0]))
    state.countdown.copy_(torch.tensor([-1, -1, 1, 0, -1, -1]))
    logits = randn(12, 3, 40)
    pairs = logits.view(6, 2, 3, 40)
    pairs[0, side, 0, 0] = pairs[1, side, 2, 39] = pairs[2, side, 1, 7] = pairs[3, side, 0, 0] = value
    pairs[4, side, 1, 1] = -torch.inf
    row = assert_same_step(config, state, logits)
    assert state.broken.tolist() == [1, 1, 1, 0, 0, 0]
    assert state.countdown.tolist() == [0, 0, 0, 0, -1, -1]
    assert state.position.tolist() == [15, 15, 15, 15, 16, 16] and (row[:4] == 3).all() and (row[4:] >= 0).all()
    assert (state.grid[:4, 16] == -1).all() and state.residual.x.isfinite().all()
    assert_same_step(config, state, randn(12, 3, 40))
    assert state.broken.tolist() == [1, 1, 1, 0, 0, 0], "the flag stays until the slot is started anew"
    state.start(1, 3, torch.zeros((2, 3), dtype=torch.int64), ResolvedSamplingParams(max_tokens=40), seed=1)
    assert not state.broken[1]


def test_next_row_runs_out_as_the_reference_does():
    """From the first rows to well past the end: forced rows, EOS, countdown, the last rows, stopped slots."""
    config = small_config(vocab=40, channels=2)
    state = running_state(config, 2, rows=9)
    state.max_tokens[1] = 7
    for row in range(9):
        logits = randn(4, 2, 40)
        if row == 2:
            logits[1, 0, config.eos_token_id] = 30.0
        assert_same_step(config, state, logits)
    assert not state.countdown.any()  # every slot has stopped


def test_philox_is_tritons():
    @triton.jit
    def words(out_ptr, seed_ptr, BLOCK: tl.constexpr):
        i = tl.arange(0, BLOCK)
        first, second, third, fourth = tl.philox(tl.load(seed_ptr), i, 5, 1234567, 0)
        tl.store(out_ptr + i, first.to(tl.int64))
        tl.store(out_ptr + BLOCK + i, second.to(tl.int64))
        tl.store(out_ptr + 2 * BLOCK + i, third.to(tl.int64))
        tl.store(out_ptr + 3 * BLOCK + i, fourth.to(tl.int64))

    for seed in (0, 7, 2**63 - 1, 0x123456789ABCDEF):
        key = torch.tensor([seed], device=DEVICE)
        out = torch.zeros((4, 64), dtype=torch.int64, device=DEVICE)
        words[(1,)](out, key, BLOCK=64)
        counter = torch.arange(64, device=DEVICE)
        fixed = (torch.full_like(counter, value) for value in (5, 1234567, 0))
        assert torch.equal(out, torch.stack(philox(key, (counter, *fixed))))


def assert_same_run(config, steps):
    """Three ragged slots by kernels and by references: the same grid after `steps` rows."""
    weights = random_weights(config)
    model, reference = (
        DiaModel(config, weights),
        DiaModel(config, {name: weight.cpu() for name, weight in weights.items()}),
    )
    state = started(model, REQUESTS)
    reference_state = started(reference, REQUESTS)
    for _ in range(steps):
        with kernels():
            model.step(state)
        reference.step(reference_state)
    assert torch.equal(state.grid.cpu(), reference_state.grid)
    torch.testing.assert_close(state.residual.x.cpu(), reference_state.residual.x, rtol=1e-4, atol=1e-4)


CONFIGS = [
    pytest.param(small_config(channels=2, layers=1), id="plain"),
    pytest.param(
        small_config(channels=3, width=36, heads=3, groups=1, head_dim=10, cross=(4, 2, 6), inner=30), id="odd"
    ),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_step_with_kernels_draws_the_references_codes(config):
    assert_same_run(config, steps=2)


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS)
def test_a_whole_run_with_kernels_draws_the_references_codes(config):
    assert_same_run(config, steps=40)


def recorded(config, slots, dtype=torch.bfloat16, architecture=HOPPER):
    """The launches of one step, which touch no memory: all tensors are on the meta device."""
    shapes = parameter_shapes(config).items()
    kinds = {name: torch.float32 if name.endswith("norm.weight") else dtype for name, _ in shapes}
    model = DiaModel(config, {name: torch.empty(shape, dtype=kinds[name], device="meta") for name, shape in shapes})
    state = DecodeState.allocate(config, slots, 64, 32, dtype, "meta")
    launches, operations = [], _Operations()
    with intercept_launches(launches.append, architecture), operations:
        model.step(state)
    return launches, operations


class _Operations(TorchDispatchMode):
    """Remembers which torch operations run."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("slots", [1, 5])
def test_a_step_is_eight_launches_a_layer_and_two_and_nothing_else(slots):
    layers = 3
    launches, operations = recorded(small_config(layers=layers), slots)
    assert len(launches) == 8 * layers + 2
    assert operations.names <= {"select", "view", "slice", "detach"}, "a step allocates or computes outside of kernels"
    assert all(launch.dependent for launch in launches)


def test_no_dependent_launch_before_hopper():
    launches, _ = recorded(small_config(), 1, architecture=86)
    assert not any(launch.dependent for launch in launches)


def test_what_a_launch_reads_before_it_waits_is_not_written_by_its_predecessor():
    read_only = {"_project_qkv_kernel": {"position_ptr"}}
    launches, _ = recorded(small_config(layers=3), slots=2)
    early = [(before, launch) for before, launch in pairwise(launches) if launch.early]
    assert len(early) == 2 * 3, "self-attention and cross-attention of each layer"
    assert not launches[0].early
    for before, launch in early:
        read = [launch.arguments[name] for name in launch.early]
        names = {
            name for name, value in before.arguments.items() if any(value is tensor for tensor in read)
        }  # of the predecessor's arguments
        assert names <= read_only.get(before.kernel.__name__, set())


def test_a_step_without_dependent_launches():
    with mock.patch.dict(os.environ, DIA_PDL="0"):
        launches, _ = recorded(small_config(), 1)
    assert not any(launch.dependent or "launch_pdl" in launch.options for launch in launches)


def test_bad_shapes_are_refused():
    residual, weight = random_residual(2, 32), matrix(16, 24)
    with pytest.raises(ValueError, match="norm_linear"):
        norm_linear.norm_linear(residual, weight, EPS, torch.empty(2, 16, device=DEVICE))
    with pytest.raises(ValueError, match="gated_linear"):
        gated_linear.gated_linear(residual, weight, EPS, torch.empty(2, 8, device=DEVICE))
    with pytest.raises(ValueError, match="residual_linear"):
        residual_linear.residual_linear(torch.empty(2, 24), weight, residual, residual.x[0])


def test_other_strides_are_refused():
    residual, weight = random_residual(2, 32), matrix(32, 16).T
    with kernels(), pytest.raises(ValueError, match="weight must be contiguous"):
        norm_linear.norm_linear(residual, weight, EPS, torch.empty(2, 16, device=DEVICE))


def test_float16_residual_has_headroom():
    """Products of x and the norm's weight up to 4e6 survive in float16, and the normed product is right."""
    residual = Residual.allocate(2, 64, torch.float16, DEVICE)
    x = randn(2, 64) * 1e5
    residual.write(x, torch.full((64,), 8.0, device=DEVICE))
    assert residual.z.isfinite().all()
    normed = torch.nn.functional.rms_norm(x, (64,), eps=EPS) * 8.0
    torch.testing.assert_close(residual.z.float() * residual.scale(EPS), normed, rtol=1e-3, atol=1e-3)


# What only a GPU can show.

models = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=["bf16", "fp16", "fp32"])


def sizeable_model(dtype):
    """Enough programs and loop turns for a race or another order of sums to show."""
    config = small_config(vocab=1028, layers=3, width=768, heads=8, groups=2, head_dim=64, cross=(8, 8, 64), inner=1536)
    return DiaModel(config, random_weights(config, dtype))


def bits_of_steps(model, state, steps, run=contextlib.nullcontext):
    """Logits and residuals of some steps."""
    found = []
    for _ in range(steps):
        with run():
            model.step(state)
        found += [state.buffers.logits.clone(), state.residual.x.clone()]
    return found


@pytest.mark.gpu
@models
@pytest.mark.parametrize("batch", [2, 5, 9, 20, 40])
def test_a_slot_in_a_batch_has_the_bits_it_has_alone(batch, dtype):
    model = sizeable_model(dtype)
    requests = [REQUESTS[index % len(REQUESTS)] for index in range(batch)]
    together = bits_of_steps(model, started(model, requests), 6)
    for slot in (0, 1, batch - 1):
        alone = started(model, requests[: slot + 1])  # `started` draws texts and prompts in the order of slots
        lone = DecodeState.allocate(model.config, 1, 40, 16, model.dtype, model.device)
        copy_slot(alone, slot, lone)
        for batched, single in zip(together, bits_of_steps(model, lone, 6), strict=True):
            assert torch.equal(batched[2 * slot : 2 * slot + 2], single)


def copy_slot(source, slot, target):
    """Make the only slot of `target` a copy of one of `source`'s."""
    flags = ("grid", *STATUS, "last_text")
    for name in (*flags, "max_tokens", "cfg_scale", "temperature", "top_p", "top_k", "seed"):
        getattr(target, name)[0] = getattr(source, name)[slot]
    pair = slice(2 * slot, 2 * slot + 2)
    for name in ("keys", "values"):
        getattr(target.self_cache, name).copy_(getattr(source.self_cache, name)[:, pair])
        getattr(target.cross_cache, name).copy_(getattr(source.cross_cache, name)[:, slot : slot + 1])
    for name in ("x", "z", "squares"):
        getattr(target.residual, name).copy_(getattr(source.residual, name)[pair])


@pytest.mark.gpu
@models
def test_dependent_launches_change_no_bit(dtype):
    model = sizeable_model(dtype)
    overlapped = bits_of_steps(model, started(model, REQUESTS), 25)
    plain = bits_of_steps(model, started(model, REQUESTS), 25, lambda: mock.patch.dict(os.environ, DIA_PDL="0"))
    assert all(torch.equal(*pair) for pair in zip(overlapped, plain, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="the emulator has no graphs")
def test_a_replayed_step_is_the_step():
    model = sizeable_model(torch.bfloat16)
    eager, replayed = started(model, REQUESTS), started(model, REQUESTS)
    model.step(started(model, REQUESTS))  # compiles, which a capture does not allow
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        model.step(replayed)
    for _ in range(30):
        model.step(eager)
        graph.replay()
        assert torch.equal(eager.grid, replayed.grid)
        assert torch.equal(eager.residual.x, replayed.residual.x)
