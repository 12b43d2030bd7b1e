"""Requests into the slots of a state, and codes out of them."""

import torch

from ..model.config import DiaConfig
from ..model.delay import undelay
from ..model.nonfinite import require_finite_logits
from ..model.state import DecodeState
from ..sampling_params import ResolvedSamplingParams
from .request import Request
from .runner import Stepper


def start_requests(stepper: Stepper, requests: list[Request]) -> DecodeState:
    """A state in which slot i runs request i, text and prompt read: the next step draws the first row."""
    model = stepper.model
    config = model.config
    rows = max(
        request.params.rows(config.decoder.max_position_embeddings, len(request.prompt_codes), config.max_delay)
        for request in requests
    )
    longest = max(len(request.text_ids) for request in requests)
    state = stepper.state_for(len(requests), rows, longest)
    for slot, request in enumerate(requests):
        state.start(slot, len(request.text_ids), request.prompt_codes, request.params, request.seed)
        model.prefill(state, slot, request.text_ids.to(model.device))
    return state


def warm_up(stepper: Stepper, slots: int) -> None:
    """Do what the first batch of `slots` requests would have to do first, and forget it.

    With graphs: allocate and capture for up to as many, and compile what reads a text. Elsewhere: read a text and make
    one step.

    Raises:
        torch.OutOfMemoryError: so many slots do not fit; it says how many do.
    """
    stepper.prepare(slots)
    config = stepper.model.config
    text = torch.zeros(1, dtype=torch.int64)
    no_prompt = torch.zeros((0, config.decoder.num_channels), dtype=torch.int64)
    shortest = ResolvedSamplingParams(max_tokens=config.max_delay + 2)
    count = 1 if stepper.captures else slots
    state = start_requests(stepper, [Request(text, no_prompt, shortest, seed=0)] * count)
    if not stepper.captures:
        stepper.model.step(state)
    state.stop()


def finished_codes(state: DecodeState, requests: list[Request]) -> list[torch.Tensor]:
    """What each slot said: codes [T, C] int64 on the CPU, without the prompt and in [0, eos).

    Raises:
        RuntimeError: a slot was stopped by NaN or infinite logits.
    """
    require_finite_logits(state, state.self_cache.keys.dtype)
    grid, end_row = state.grid.cpu(), state.end_row.tolist()
    prompts = [len(request.prompt_codes) for request in requests]
    return [
        spoken_codes(grid[slot], state.config, frames, end_row[slot] - frames - 1)
        for slot, frames in enumerate(prompts)
    ]


def spoken_codes(grid: torch.Tensor, config: DiaConfig, first: int, frames: int) -> torch.Tensor:
    """Codes [frames, C] int64 in [0, eos) of a slot's grid [rows, C]; see `undelay`."""
    codes = undelay(grid, config.delay_pattern, first, frames)
    # The reference plays code 0 where a channel holds a special id.
    return torch.where((codes < 0) | (codes >= config.eos_token_id), 0, codes)
