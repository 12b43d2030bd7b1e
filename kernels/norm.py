"""RMSNorm: x / sqrt(mean(x^2) + eps) * weight, computed in float32 with float32 weights."""

import torch


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, dtype: torch.dtype) -> torch.Tensor:
    """Normalise rows.

    Args:
        x: [..., D] any float dtype.
        weight: [D] float32.
        eps: added to the mean square.
        dtype: of the result.

    Returns:
        [..., D] in `dtype`, rounded once, after the weight.
    """
    x = x.float()
    scale = torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps)
    return (x * scale * weight).to(dtype)
