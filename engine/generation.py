"""The loop around the decode step: requests in, codes out."""

from collections.abc import Callable

import torch

from .delay import undelay
from .model import Dia
from .options import GenerationOptions
from .request import Request
from .state import DecodeState

# Steps between looks at the stop flag. On a GPU a look waits for the device; on a CPU it costs nothing.
STEPS_PER_LOOK = {"cpu": 1}
STEPS_PER_LOOK_DEFAULT = 8


def start_requests(model: Dia, requests: list[Request], options: GenerationOptions) -> DecodeState:
    """A state with one running slot a request, its text and prompt read: the next step draws the first row."""
    config = model.config
    rows = max(
        options.rows(config.decoder.max_position_embeddings, request.prompt.shape[0], config.max_delay)
        for request in requests
    )
    longest = max(request.text.shape[0] for request in requests)
    state = DecodeState.allocate(config, len(requests), rows, longest, model.dtype, model.device)
    for slot, request in enumerate(requests):
        state.start(slot, request.text.shape[0], request.prompt, options, request.seed)
        model.prefill(state, slot, request.text.to(model.device))
    return state


def run_to_end(model: Dia, state: DecodeState, progress: Callable[[int], None] | None = None) -> None:
    """Step until every slot has stopped; `progress` is told how many steps were made since its last call."""
    steps = STEPS_PER_LOOK.get(model.device.type, STEPS_PER_LOOK_DEFAULT)
    while not state.stopped():
        for _ in range(steps):
            model.step(state)
        if progress is not None:
            progress(steps)


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
