"""Logits of codes that are given instead of drawn, by the very decode step that draws them."""

import torch

from ..sampling_params import ResolvedSamplingParams
from .delay import prompt_grid
from .dia import DiaModel
from .state import DecodeState


def teacher_forced_logits(model: DiaModel, text_ids: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Logits of each code, given the text and all that the decoder reads before it.

    Args:
        model: in any dtype, on any device.
        text_ids: [S] int64, see `encode_text`.
        codes: [T, C] int64 on the CPU, in [0, eos), with T + 1 + the largest delay at most the decoder's positions.

    Returns:
        [2, T, C, V] float32 on the CPU, without and with the text. The frames of a channel stand where the codes have
        them: the delay is undone.
    """
    config, frames = model.config, codes.shape[0]
    delay = torch.tensor(config.delay_pattern)
    rows = frames + 1 + config.max_delay
    state = DecodeState.allocate(config, 1, rows, text_ids.shape[0], model.dtype, model.device)
    state.start(0, text_ids.shape[0], codes[:0], ResolvedSamplingParams(max_tokens=rows), seed=0)
    state.grid[0, :rows] = _grid(codes, model).to(model.device)
    model.prefill(state, 0, text_ids.to(model.device))
    channels, vocab = codes.shape[1], config.decoder.vocab_size
    logits = torch.empty((2, frames, channels, vocab), dtype=torch.float32, device="cpu")
    for row in range(rows - 1):  # row r gives the logits of row r + 1, in which channel c has its frame r - delay[c]
        found, frame = model.logits(state).cpu(), row - delay
        inside = (frame >= 0) & (frame < frames)
        logits[:, frame[inside], inside.nonzero()[:, 0]] = found[:, inside]
        state.position += 1
    return logits


def _grid(codes: torch.Tensor, model: DiaModel) -> torch.Tensor:
    """Rows [T + 1 + largest delay, C] as a generation that ended behind these codes has them: EOS, then PAD."""
    config = model.config
    rows = codes.shape[0] + 1 + config.max_delay
    grid = prompt_grid(codes, config.delay_pattern, config.bos_token_id, rows)
    for channel, lag in enumerate(config.delay_pattern):
        end = codes.shape[0] + 1 + lag
        grid[end : end + 1, channel] = config.eos_token_id
        grid[end + 1 :, channel] = config.pad_token_id
    return grid
