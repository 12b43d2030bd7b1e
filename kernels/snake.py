"""Snake, the activation of the codec: y = x + sin(alpha x)^2 / alpha, with one alpha per channel (arXiv:2006.08195).

A codec has one before every convolution, over signals of up to a sample per channel and output sample. As torch
operations it reads and writes them five times. On a CPU it is compiled with the convolutions (`cpu/native/snake.h`).
"""

import torch

from .dispatch import launch, pdl_sync, tl, triton, uses_triton

BLOCK = 1024  # numbers of a channel per program


def snake_ref(x: torch.Tensor, alpha: torch.Tensor, inverse_alpha: torch.Tensor) -> torch.Tensor:
    """See `snake`."""
    # In place on the one new tensor: the signals are large and this is bound by memory.
    return torch.sin_(alpha * x).square_().mul_(inverse_alpha).add_(x)


def snake(x: torch.Tensor, alpha: torch.Tensor, inverse_alpha: torch.Tensor) -> torch.Tensor:
    """The activation of a signal.

    Args:
        x: [1, C, N] in any float dtype.
        alpha: [1, C, 1], contiguous, in the same dtype.
        inverse_alpha: 1 / alpha, likewise.

    Returns:
        [1, C, N] in the same dtype.
    """
    if uses_triton(x):
        return _launched(x, alpha, inverse_alpha)
    return snake_ref(x, alpha, inverse_alpha)


def _launched(x: torch.Tensor, alpha: torch.Tensor, inverse_alpha: torch.Tensor) -> torch.Tensor:
    x = x if x.stride(2) == 1 else x.contiguous()
    _, channels, length = x.shape
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    launch(
        _snake_kernel,
        (triton.cdiv(length, BLOCK), channels),
        {
            "x_ptr": x, "alpha_ptr": alpha, "inverse_ptr": inverse_alpha, "y_ptr": y, "length": length,
            "x_stride": x.stride(1),
        },
        {"BLOCK": BLOCK},
        warps=4,
        stages=1,
        device=x.device,
        dependent=False,  # its neighbors are convolutions of libraries, which do not let a kernel start early
    )  # fmt: skip
    return y


@triton.jit
def _snake_kernel(x_ptr, alpha_ptr, inverse_ptr, y_ptr, length, x_stride, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr):
    pdl_sync(DEPENDENT)
    channel = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < length
    alpha, inverse = tl.load(alpha_ptr + channel).to(tl.float32), tl.load(inverse_ptr + channel).to(tl.float32)
    x = tl.load(x_ptr + channel * x_stride + place, mask=inside, other=0.0).to(tl.float32)
    sine = tl.sin(alpha * x)
    y = x + sine * sine * inverse
    tl.store(y_ptr + channel * length + place, y.to(y_ptr.dtype.element_ty), mask=inside)
