"""The end of a step: forced rows, EOS countdown, delay, position. All on the device, for every slot at once.

Of a slot that runs, row = position + 1 is being written. EOS on channel 0, or row max_tokens - max(delay), starts the
countdown at max(delay); while it counts, k rows after the end channel c gets EOS at k = delay[c] and PAD after that. At
zero the slot has stopped: its grid, position and flags stay as they are, however many steps follow.
"""

import torch

RUNNING = -1  # countdown of a slot whose end has not come


def advance(
    tokens: torch.Tensor,
    grid: torch.Tensor,
    position: torch.Tensor,
    countdown: torch.Tensor,
    end_row: torch.Tensor,
    max_tokens: torch.Tensor,
    delay: torch.Tensor,
    max_delay: int,
    eos: int,
    pad: int,
) -> None:
    """Write the drawn tokens where the grid is open, and move on. Everything but `tokens` is updated in place.

    Args:
        tokens: [B, C] int64, as drawn.
        grid: [B, rows, C] int64; negative cells are open. Every running slot has position + 1 < rows.
        position: [B] int64, the row that was fed to this step.
        countdown: [B] int64, RUNNING, then rows left to write; 0 = stopped.
        end_row: [B] int64, the row of the end once it has come.
        max_tokens: [B] int64, rows that the slot may fill.
        delay: [C] int64, and max_delay its largest entry.
        eos, pad: special ids.
    """
    active = countdown != 0
    row = position + active
    ends = (countdown == RUNNING) & ((tokens[:, 0] == eos) | (row >= max_tokens - max_delay))
    end_row.copy_(torch.where(ends, row, end_row))
    countdown.copy_(torch.where(ends, max_delay, countdown))

    counting = (countdown > 0)[:, None]
    rows_since_end = max_delay - countdown[:, None]
    tokens = torch.where(counting & (rows_since_end == delay), eos, tokens)
    tokens = torch.where(counting & (rows_since_end > delay), pad, tokens)
    countdown.sub_(counting[:, 0].long())

    slots = torch.arange(grid.shape[0], device=grid.device)
    written = grid[slots, row]
    grid[slots, row] = torch.where((written < 0) & active[:, None], tokens, written)
    # A slot that stops here does not move: what it would feed next may lie beyond its cache.
    position.add_(countdown != 0)
