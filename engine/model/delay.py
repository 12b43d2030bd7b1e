"""The delay pattern: frame t of channel c stands in row 1 + t + delay[c] of the grid that the decoder reads.

Row 0 is BOS. With a delay of [0, 2, 3] and a prompt of the frames a, b:

    row        0     1     2     3     4     5
    channel 0  BOS   a0    b0    .     .     .
    channel 1  BOS   BOS   BOS   a1    b1    .
    channel 2  BOS   BOS   BOS   BOS   a2    b2        . = to be drawn (OPEN)
"""

import torch

OPEN = -1  # a cell that the decoder fills


def prompt_grid(prompt: torch.Tensor, delay: tuple[int, ...], bos: int, rows: int) -> torch.Tensor:
    """Lay a prompt out as the decoder's grid.

    Args:
        prompt: codes [P, C] int64; P = 0 for none.
        delay: rows of delay for each of the C channels.
        bos: id before a channel's first frame.
        rows: rows of the grid, at least P + 1.

    Returns:
        grid [rows, C] int64: BOS, the delayed prompt, OPEN where the decoder decides.
    """
    frames = prompt.shape[0]
    grid = torch.full((rows, len(delay)), OPEN, dtype=torch.int64, device="cpu")
    for channel, lag in enumerate(delay):
        start = min(1 + lag, rows)
        end = min(start + frames, rows)
        grid[:start, channel] = bos
        grid[start:end, channel] = prompt[: end - start, channel]
    return grid


def undelay(grid: torch.Tensor, delay: tuple[int, ...], first: int, frames: int) -> torch.Tensor:
    """Read frames back from a grid.

    Args:
        grid: ids [rows, C] int64.
        delay: rows of delay for each channel.
        first: frame to begin with (the number of prompt frames, to leave the prompt out).
        frames: how many frames; row first + frames + max(delay) must exist.

    Returns:
        codes [frames, C] int64.
    """
    columns = [grid[1 + first + lag : 1 + first + lag + frames, channel] for channel, lag in enumerate(delay)]
    return torch.stack(columns, dim=1)


def playable_codes(grid: torch.Tensor, delay: tuple[int, ...], eos: int, first: int, frames: int) -> torch.Tensor:
    """`undelay`, with code 0 where a channel holds a special id (eos and above), as the reference plays it.

    Returns:
        codes [frames, C] int64 in [0, eos).
    """
    codes = undelay(grid, delay, first, frames)
    return torch.where((codes < 0) | (codes >= eos), 0, codes)
