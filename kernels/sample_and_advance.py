"""From logits to the input of the next step, in one kernel for all slots: guidance, filters and sampling per channel
(`sample`), bookkeeping of the row (`advance`), and its embedding x = sum over the channels c of table[c V + token_c].

A program samples for one slot and channel; the last program of a slot to finish completes the row and embeds it.
Nothing is sorted: the thresholds of top-k and top-p are found by radix select over the floats' bits, mapped so that
unsigned integers compare as the floats do.

A NaN or +infinity among the logits means that the model's numbers are broken. A running slot that gets one stops where
it is, with its flag `broken` set; -infinity only forbids a token, see `sample`. This costs the kernel one reduction
over logits that are loaded anyway.
"""

import math

import torch

from .advance import RUNNING, advance
from .dispatch import launch, pdl_sync, require_contiguous, tl, triton, uses_triton
from .norm import headroom
from .sample import sample_tokens
from .step_state import StepState


def embed(tokens: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """tokens [..., C], table [C V, D] -> sum of the channels' embeddings [..., D] float32."""
    channels = tokens.shape[-1]
    offset = torch.arange(0, table.shape[0], table.shape[0] // channels, device=tokens.device)
    return table[tokens + offset].float().sum(dim=-2)


def next_row_ref(logits: torch.Tensor, state: StepState, table: torch.Tensor, norm_weight: torch.Tensor) -> None:
    config = state.config
    _stop_broken(logits, state)
    tokens = sample_tokens(
        logits,
        state.cfg_scale,
        state.temperature,
        state.top_p,
        state.top_k,
        state.seed,
        state.position + 1,
        config.eos_token_id,
        state.first_eos_row,
    )
    advance(
        tokens,
        state.grid,
        state.position,
        state.countdown,
        state.end_row,
        state.max_tokens,
        state.delay,
        config.max_delay,
        config.eos_token_id,
        config.pad_token_id,
    )
    slots = torch.arange(state.slots, device=logits.device)
    x = embed(state.grid[slots, state.position], table)
    state.residual.write(x.repeat_interleave(2, dim=0), norm_weight)


def _stop_broken(logits: torch.Tensor, state: StepState) -> None:
    """Stop and flag the running slots that have logits of NaN or +infinity."""
    usable = logits.view(state.slots, -1).amax(dim=1) < math.inf  # NaN is the maximum, and not under infinity
    broken = (state.countdown != 0) & ~usable
    state.broken |= broken
    state.countdown.masked_fill_(broken, 0)


def next_row(logits: torch.Tensor, state: StepState, table: torch.Tensor, norm_weight: torch.Tensor) -> None:
    """Draw, write and embed the next row of every slot.

    Args:
        logits: [2B, C, V] float32; rows 2i, 2i + 1 are (unconditional, conditional) of slot i.
        state: a `DecodeState` of B slots. Of a slot that runs, grid, position, countdown and end_row move
            on one row, or `broken` is set and it stops; the residual becomes that of the row at the slot's position.
        table: [C V, D], the channels' embeddings.
        norm_weight: [D] float32, of the first layer's norm.
    """
    channels, vocab = logits.shape[1:]
    if logits.shape[0] != 2 * state.slots or table.shape[0] != channels * vocab:
        raise ValueError(f"next_row: logits {list(logits.shape)} for {state.slots} slots, table {list(table.shape)}")
    if not uses_triton(logits):
        next_row_ref(logits, state, table, norm_weight)
        return
    require_contiguous(logits=logits, grid=state.grid, table=table)
    config, residual = state.config, state.residual
    width = table.shape[1]
    launch(
        _next_row_kernel,
        (channels, state.slots),
        {
            "logits_ptr": logits,
            "cfg_scale_ptr": state.cfg_scale,
            "temperature_ptr": state.temperature,
            "top_p_ptr": state.top_p,
            "top_k_ptr": state.top_k,
            "seed_ptr": state.seed,
            "grid_ptr": state.grid,
            "position_ptr": state.position,
            "countdown_ptr": state.countdown,
            "end_row_ptr": state.end_row,
            "broken_ptr": state.broken,
            "max_tokens_ptr": state.max_tokens,
            "first_eos_row_ptr": state.first_eos_row,
            "delay_ptr": state.delay,
            "tokens_ptr": state.buffers.tokens,
            "arrivals_ptr": state.buffers.channels_done,
            "table_ptr": table,
            "norm_ptr": norm_weight,
            "x_ptr": residual.x,
            "z_ptr": residual.z,
            "squares_ptr": residual.squares,
            "grid_rows": state.grid.shape[1],
        },
        {
            "CHANNELS": channels,
            "VOCAB": vocab,
            "WIDTH": width,
            "EOS": config.eos_token_id,
            "PAD": config.pad_token_id,
            "MAX_DELAY": config.max_delay,
            "RUNNING": RUNNING,
            "HEADROOM": headroom(residual.z.dtype),
            "PARTIALS": residual.squares.shape[1],
            "BLOCK_V": triton.next_power_of_2(vocab),
            "BLOCK_C": triton.next_power_of_2(channels),
            "BLOCK_D": min(1024, triton.next_power_of_2(width)),
            "BLOCK_P": triton.next_power_of_2(residual.squares.shape[1]),
        },
        warps=8,
        stages=1,
        device=logits.device,
        fuses_multiply_add=False,  # guided = cond + scale * (cond - uncond) is to round as torch rounds it
    )


@triton.jit
def _ordered_key(value):
    """float32 -> uint32 such that keys compare as the values do."""
    bits = tl.where(value == 0.0, 0.0, value).to(tl.uint32, bitcast=True)  # -0.0 equals 0.0
    # Not ~bits: Triton 3.7.1's interpreter cannot invert unsigned integers.
    return tl.where(bits >> 31 == 1, bits ^ 0xFFFFFFFF, bits | 0x80000000)


@triton.jit
def _radix_select(key, mass, bound):
    """Weighted radix select: the largest uint32 key such that entries with keys >= it have a total mass over
    `bound`; 0 if there is none. Determines two bits of the key per iteration, from the highest down.

    With mass 1 and bound k - 1 it is the k-th largest key; with probabilities as mass and bound top_p, the smallest key
    in the nucleus.
    """
    edge = tl.full((), 0, tl.uint32)
    step = tl.full((), 1 << 30, tl.uint32)
    candidate = tl.arange(0, 4).to(tl.uint32)
    for _ in range(16):  # two bits at a time: their three candidates share one pass through shared memory
        above = tl.sum(tl.where(key[:, None] >= (edge + step * candidate)[None, :], mass[:, None], 0.0), axis=0)
        edge += step * tl.sum(((above > bound) & (candidate > 0)).to(tl.int32), axis=0).to(tl.uint32)
        step = step >> 2
    return edge


@triton.jit
def _draw(
    logits_ptr,
    cfg_scale,
    temperature,
    top_p,
    top_k,
    seed,
    row,
    first_eos_row,
    slot,
    channel,
    CHANNELS: tl.constexpr,
    VOCAB: tl.constexpr,
    EOS: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """The token of one slot and channel, see `sample` for the rules; -1 if a logit is NaN or +infinity."""
    token = tl.arange(0, BLOCK_V)
    exists = token < VOCAB
    place = logits_ptr + (2 * slot * CHANNELS + channel) * VOCAB + token
    unconditional = tl.load(place, mask=exists, other=0.0)
    conditional = tl.load(place + CHANNELS * VOCAB, mask=exists, other=0.0)
    usable = (unconditional < float("inf")) & (conditional < float("inf"))  # NaN is not under infinity
    broken = tl.sum(usable.to(tl.int32), axis=0) < BLOCK_V

    guided = conditional + cfg_scale * (conditional - unconditional)
    guided = tl.where(guided == guided, guided, float("-inf"))  # of logits of -infinity, see `sample`
    may_end = (channel == 0) & (row >= first_eos_row)
    too_early = (token == EOS) & (channel == 0) & (row < first_eos_row)  # top_k does not count it
    key = _ordered_key(tl.where(too_early, float("-inf"), guided))
    key = tl.where(exists, key, 0)
    count = tl.where(exists, 1.0, 0.0)
    threshold = _radix_select(key, count, top_k - 1.0)
    room = top_k.to(tl.int32) - tl.sum((key > threshold).to(tl.int32), axis=0)
    level = (key == threshold) & exists
    kept = (key > threshold) | (level & (tl.cumsum(level.to(tl.int32), axis=0) <= room))
    allowed = (token < EOS) | ((token == EOS) & may_end)
    score = tl.where(kept & allowed, conditional, float("-inf"))

    best = tl.argmax(score, axis=0)
    certain = (temperature == 0.0) | (tl.max(score, axis=0) == float("-inf"))
    score = tl.where((token == EOS) == (best == EOS), score, float("-inf"))
    score = score / tl.where(temperature == 0.0, 1.0, temperature)
    likelihood = tl.exp(score - tl.max(score, axis=0))
    probability = likelihood / tl.sum(likelihood, axis=0)

    # Positive floats are ordered like their bits.
    key = probability.to(tl.uint32, bitcast=True)
    bound = tl.where(top_p >= 1.0, float("inf"), top_p)  # the sum can pass 1 by a rounding, 1 must drop nothing
    edge = _radix_select(key, probability, bound)
    before = tl.sum(tl.where(key > edge, probability, 0.0), axis=0)
    level = key == edge
    before += (tl.cumsum(level.to(tl.int32), axis=0) - 1).to(tl.float32) * edge.to(tl.float32, bitcast=True)
    kept = (key > edge) | (level & (before <= bound))

    word, _, _, _ = tl.philox(seed, token, channel, row, 0)
    uniform = ((word >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07  # 2^-23, see `philox.uniform`
    race = tl.where(kept & exists, probability / -tl.log(uniform), -1.0)
    return tl.where(broken, -1, tl.where(certain, best, tl.argmax(race, axis=0)))


@triton.jit
def _next_row_kernel(
    logits_ptr,
    cfg_scale_ptr,
    temperature_ptr,
    top_p_ptr,
    top_k_ptr,
    seed_ptr,
    grid_ptr,
    position_ptr,
    countdown_ptr,
    end_row_ptr,
    broken_ptr,
    max_tokens_ptr,
    first_eos_row_ptr,
    delay_ptr,
    tokens_ptr,
    arrivals_ptr,
    table_ptr,
    norm_ptr,
    x_ptr,
    z_ptr,
    squares_ptr,
    grid_rows,
    CHANNELS: tl.constexpr,
    VOCAB: tl.constexpr,
    WIDTH: tl.constexpr,
    EOS: tl.constexpr,
    PAD: tl.constexpr,
    MAX_DELAY: tl.constexpr,
    RUNNING: tl.constexpr,
    HEADROOM: tl.constexpr,
    PARTIALS: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_P: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    pdl_sync(DEPENDENT)
    channel = tl.program_id(0)
    slot = tl.program_id(1)
    position = tl.load(position_ptr + slot).to(tl.int32)
    drawn = _draw(
        logits_ptr,
        tl.load(cfg_scale_ptr + slot),
        tl.load(temperature_ptr + slot),
        tl.load(top_p_ptr + slot),
        tl.load(top_k_ptr + slot).to(tl.float32),
        tl.load(seed_ptr + slot),
        position + 1,
        tl.load(first_eos_row_ptr + slot).to(tl.int32),
        slot,
        channel,
        CHANNELS,
        VOCAB,
        EOS,
        BLOCK_V,
    )
    tl.store(tokens_ptr + slot * CHANNELS + channel, drawn)
    tl.debug_barrier()
    arrived = tl.atomic_add(arrivals_ptr + slot, 1, sem="acq_rel")
    if arrived == CHANNELS - 1:
        c = tl.arange(0, BLOCK_C)
        mask = c < CHANNELS
        # Other programs wrote these: .cg passes by the L1 cache.
        tokens = tl.load(tokens_ptr + slot * CHANNELS + c, mask=mask, other=0, cache_modifier=".cg")
        countdown = tl.load(countdown_ptr + slot).to(tl.int32)
        last_start = tl.load(max_tokens_ptr + slot).to(tl.int32) - MAX_DELAY
        delay = tl.load(delay_ptr + c, mask=mask, other=0).to(tl.int32)

        broken = (tl.min(tokens, axis=0) < 0) & (countdown != 0)
        countdown = tl.where(broken, 0, countdown)
        active = countdown != 0
        row = position + active.to(tl.int32)
        opening = tl.sum(tl.where(c == 0, tokens, 0), axis=0)
        ends = (countdown == RUNNING) & ((opening == EOS) | (row >= last_start))
        countdown = tl.where(ends, MAX_DELAY, countdown)
        counting = countdown > 0
        rows_since_end = MAX_DELAY - countdown
        tokens = tl.where(counting & (rows_since_end == delay), EOS, tokens)
        tokens = tl.where(counting & (rows_since_end > delay), PAD, tokens)
        countdown -= counting.to(tl.int32)
        # A slot that stops here does not move, see `advance`.
        next_position = position + (countdown != 0).to(tl.int32)
        cells = grid_ptr + slot.to(tl.int64) * grid_rows * CHANNELS + c
        here = tl.load(cells + position * CHANNELS, mask=mask, other=0).to(tl.int32)
        written = tl.load(cells + row * CHANNELS, mask=mask, other=0).to(tl.int32)
        tokens = tl.where((written < 0) & active, tokens, written)
        tl.debug_barrier()  # every warp has read the slot's fields, now they may change
        tl.store(cells + row * CHANNELS, tokens.to(tl.int64), mask=mask)
        tl.store(position_ptr + slot, next_position.to(tl.int64))
        tl.store(countdown_ptr + slot, countdown.to(tl.int64))
        tl.store(end_row_ptr + slot, row.to(tl.int64), mask=ends)
        tl.store(broken_ptr + slot, broken.to(tl.int64), mask=broken)
        tl.store(arrivals_ptr + slot, 0)

        tokens = tl.where(next_position == row, tokens, here)
        place = (c * VOCAB + tokens)[:, None] * WIDTH
        squares = tl.zeros((BLOCK_D,), tl.float32)
        for start in range(0, WIDTH, BLOCK_D):
            d = start + tl.arange(0, BLOCK_D)
            inside = d < WIDTH
            entries = tl.load(table_ptr + place + d[None, :], mask=mask[:, None] & inside[None, :], other=0.0)
            x = tl.sum(entries.to(tl.float32), axis=0)
            weight = tl.load(norm_ptr + d, mask=inside, other=0.0)
            z = (x * (weight * HEADROOM)).to(z_ptr.dtype.element_ty)
            squares += x * x
            # Both rows of a slot are fed the same tokens.
            base = 2 * slot * WIDTH + d
            tl.store(x_ptr + base, x, mask=inside)
            tl.store(x_ptr + base + WIDTH, x, mask=inside)
            tl.store(z_ptr + base, z, mask=inside)
            tl.store(z_ptr + base + WIDTH, z, mask=inside)
        p = tl.arange(0, BLOCK_P)
        partials = tl.where(p == 0, tl.sum(squares, axis=0), 0.0)
        base = 2 * slot * PARTIALS + p
        tl.store(squares_ptr + base, partials, mask=p < PARTIALS)
        tl.store(squares_ptr + base + PARTIALS, partials, mask=p < PARTIALS)
