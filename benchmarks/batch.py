"""Requests side by side in a state of their own, for what measures or examines single decode steps."""

import torch

from dia_engine.model.delay import playable_codes
from dia_engine.model.dia import DiaModel
from dia_engine.model.state import DecodeState
from dia_engine.runtime.request import Request


def start_batch(model: DiaModel, requests: list[Request]) -> DecodeState:
    """A state in which slot i runs request i, text and prompt read: the next step draws the first row."""
    config = model.config
    capacity = config.decoder.max_position_embeddings
    rows = max(request.params.rows(capacity, len(request.prompt_codes), config.max_delay) for request in requests)
    longest = max(len(request.text_ids) for request in requests)
    state = DecodeState.allocate(config, len(requests), rows, longest, model.dtype, model.device)
    for slot, request in enumerate(requests):
        state.start(slot, len(request.text_ids), request.prompt_codes, request.params, request.seed)
        model.prefill(state, slot, request.text_ids.to(model.device))
    return state


def batch_codes(state: DecodeState, requests: list[Request]) -> list[torch.Tensor]:
    """What each slot has come to: codes [T, C] int64 on the CPU, without the prompt."""
    grid, end_row, config = state.grid.cpu(), state.end_row.tolist(), state.config
    prompts = [len(request.prompt_codes) for request in requests]
    return [
        playable_codes(grid[slot], config.delay_pattern, config.eos_token_id, frames, end_row[slot] - frames - 1)
        for slot, frames in enumerate(prompts)
    ]
