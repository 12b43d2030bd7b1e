"""Requests into the slots of a state, and codes out of them."""

import torch

from .delay import undelay
from .graph import Stepper
from .options import GenerationOptions
from .request import Request
from .state import DecodeState


def start_requests(stepper: Stepper, requests: list[Request], options: GenerationOptions) -> DecodeState:
    """A state in which slot i runs request i, text and prompt read: the next step draws the first row."""
    model = stepper.model
    config = model.config
    rows = max(
        options.rows(config.decoder.max_position_embeddings, request.prompt.shape[0], config.max_delay)
        for request in requests
    )
    longest = max(request.text.shape[0] for request in requests)
    state = stepper.state_for(len(requests), rows, longest)
    for slot, request in enumerate(requests):
        state.start(slot, request.text.shape[0], request.prompt, options, request.seed)
        model.prefill(state, slot, request.text.to(model.device))
    return state


def finished_codes(state: DecodeState, requests: list[Request]) -> list[torch.Tensor]:
    """What each slot said: codes [T, C] int64 on the CPU, without the prompt and in [0, eos)."""
    eos, delay = state.config.eos_token_id, state.config.delay_pattern
    grid, end_row = state.grid.cpu(), state.end_row.tolist()
    results = []
    for slot, request in enumerate(requests):
        frames = request.prompt.shape[0]
        codes = undelay(grid[slot], delay, frames, end_row[slot] - frames - 1)
        # The reference plays code 0 where a channel holds a special id.
        results.append(torch.where((codes < 0) | (codes >= eos), 0, codes))
    return results
