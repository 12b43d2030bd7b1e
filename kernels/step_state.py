"""What the kernels read and write of a decode state, which belongs to the model."""

from typing import Protocol

import torch

from .norm import Residual


class SpecialIds(Protocol):
    """What a config says about the ends of a request."""

    @property
    def eos_token_id(self) -> int: ...

    @property
    def pad_token_id(self) -> int: ...

    @property
    def max_delay(self) -> int:
        """The largest entry of the delay pattern."""


class TokenBuffers(Protocol):
    """What the programs of one launch leave for each other."""

    @property
    def tokens(self) -> torch.Tensor:
        """[B, C] int32, as drawn."""

    @property
    def channels_done(self) -> torch.Tensor:
        """[B] int32, channels drawn; 0 between launches."""


class StepState(Protocol):
    """B slots, as `next_row` sees them. See `advance` for the meaning of the fields."""

    grid: torch.Tensor  # [B, T + 1, C] int64
    position: torch.Tensor  # [B] int64
    countdown: torch.Tensor  # [B] int64
    end_row: torch.Tensor  # [B] int64
    broken: torch.Tensor  # [B] int64
    max_tokens: torch.Tensor  # [B] int64
    first_eos_row: torch.Tensor  # [B] int64, EOS is forbidden in the rows before it
    cfg_scale: torch.Tensor  # [B] float32
    temperature: torch.Tensor  # [B] float32
    top_p: torch.Tensor  # [B] float32
    top_k: torch.Tensor  # [B] int64
    seed: torch.Tensor  # [B] int64
    delay: torch.Tensor  # [C] int64
    residual: Residual  # [2B, D]

    @property
    def config(self) -> SpecialIds: ...

    @property
    def buffers(self) -> TokenBuffers: ...

    @property
    def slots(self) -> int:
        """B."""
