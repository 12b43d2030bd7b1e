"""y = x W^T over an int8 or NF4 weight in plain torch, for a CPU without compiled code.

The weight is read back part by part, and each part is multiplied while the cache has it.

    int8   integers up to 127 are exact in every dtype: they are multiplied as they are, and the sums scaled
    NF4    a byte's two weights are looked up at once, in a table of 256 pairs, and scaled in float32 before they are
           rounded, as `NF4Weight.dequantize` does. They come out in the order of the bytes, into which x is brought.
"""

import threading
from collections.abc import Callable

import torch

from ..quantized import BLOCK, Int8Weight, NF4Weight, QuantWeight, levels_on, linear_by_parts

PART = 2**20  # weights that are read back at once

Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # x [M, K], matrix [N, K] -> [M, N]


def _pairs_of_levels() -> torch.Tensor:
    """The two float32 values of each byte as one number that `gather` moves, [256] int64."""
    levels, byte = levels_on("cpu"), torch.arange(256, device="cpu")
    return torch.stack((levels[byte & 15], levels[byte >> 4]), dim=1).view(torch.int64).flatten()


_PAIRS = _pairs_of_levels()


def multiply(x: torch.Tensor, weight: QuantWeight, product: Product) -> torch.Tensor:
    """Multiply with a weight that stays as it is in memory.

    Args:
        x: [M, K] in the weight's dtype.
        weight: [N, K] on a CPU.
        product: multiplies with each part; gives a row the same bits for every M if this is to.

    Returns:
        [M, N] float32 with int8, the weight's dtype with NF4.
    """
    if isinstance(weight, NF4Weight):
        return linear_by_parts(_in_order_of_bytes(x), weight, PART, read_nf4, product)
    if isinstance(weight, Int8Weight) and weight.dtype != torch.float16:  # whose unscaled sums would overflow
        return linear_by_parts(x, weight, PART, _integers, product).float() * weight.scale
    return linear_by_parts(x, weight, PART, type(weight).dequantize, product).float()


def _integers(weight: Int8Weight) -> torch.Tensor:
    return _room.take(weight.shape, weight.dtype).copy_(weight.values)


def read_nf4(weight: NF4Weight) -> torch.Tensor:
    """`weight.dequantize()`, bit for bit but for the order of columns: weights k and k + 32 of a block side by side.

    The matrix lies in memory that the next call in this thread uses again.
    """
    rows, columns = weight.shape
    index = _room.take(weight.packed.shape, torch.int64).copy_(weight.packed)
    values = _room.take(weight.shape, torch.float32)
    torch.gather(_PAIRS.expand(rows, -1), 1, index, out=values.view(torch.int64))
    values.view(rows, columns // BLOCK, BLOCK).mul_(weight.absmax[:, :, None])
    return values if weight.dtype == torch.float32 else _room.take(weight.shape, weight.dtype).copy_(values)


def _in_order_of_bytes(x: torch.Tensor) -> torch.Tensor:
    return x.unflatten(-1, (-1, 2, BLOCK // 2)).transpose(-1, -2).flatten(-3)


class _Room(threading.local):
    """Memory for one tensor of each dtype, kept per thread: new memory for each part would cost a third of the time."""

    def __init__(self):
        self._held: dict[torch.dtype, torch.Tensor] = {}

    def take(self, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
        held = self._held.get(dtype)
        if held is None or held.numel() < shape.numel():
            with torch.inference_mode(False):  # else it could not be written outside of that mode
                held = self._held[dtype] = torch.empty(shape.numel(), dtype=dtype, device="cpu")
        return held[: shape.numel()].view(shape)


_room = _Room()
