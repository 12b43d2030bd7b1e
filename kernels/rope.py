"""Rotary position embedding, half-split (RoFormer, arXiv:2104.09864): dimension i turns together with i + Dh/2 by
the angle position * theta^(-2i/Dh). Angles and products are float32 whatever the model's dtype."""

import torch


def rope_table(
    positions: int, head_dim: int, theta: float, device: torch.device | str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines for positions 0..positions-1, each [positions, head_dim / 2] float32."""
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
    angle = torch.arange(positions, dtype=torch.float32, device=device)[:, None] / theta**exponent
    return angle.cos(), angle.sin()


def apply_rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate heads.

    Args:
        x: [N, H, Dh], one row a position.
        cos, sin: [N, Dh / 2] float32, the rows of `rope_table` at the positions of x.

    Returns:
        [N, H, Dh] in x's dtype.
    """
    first, second = x.float().chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
