"""y = x W^T over an int8 or NF4 weight in the compiled code. The weight stays as it is in memory."""

import ctypes
from typing import TypeGuard

import torch

from ..dispatch import require_contiguous
from ..quantized import NF4Weight, QuantWeight, is_quantized, levels_on, linear_by_parts
from .build import library
from .limbs import digits_of

KINDS = {torch.float32: 0, torch.bfloat16: 1}  # that the C code reads and writes
WIDEST = 2**16  # columns of an int8 weight, so that sums fit into 32 bits
PART = 2**22  # weights that are read back at once for a sequence, and multiplied while the cache has them

_levels = levels_on("cpu")


def is_compiled(weight: object) -> TypeGuard[QuantWeight]:
    """Whether there is compiled code for the products of a weight."""
    if not is_quantized(weight) or weight.device.type != "cpu":
        return False
    return (isinstance(weight, NF4Weight) or weight.shape[1] <= WIDEST) and library() is not None


def multiply(x: torch.Tensor, weight: QuantWeight) -> torch.Tensor:
    """The few rows of a step. A row's result does not depend on the others.

    Args:
        x: [M, K] of any float dtype. With int8, a row with an infinite number gives NaN throughout.
        weight: [N, K].

    Returns:
        [M, N] float32.

    Raises:
        MemoryError: none left for a copy of x.
    """
    x = (x if x.dtype in KINDS else x.float()).contiguous()
    outputs = weight.shape[0]
    y = torch.empty((x.shape[0], outputs), dtype=torch.float32, device="cpu")
    given = x.data_ptr(), KINDS[x.dtype], *x.shape
    target = outputs, y.data_ptr(), torch.get_num_threads()
    if isinstance(weight, NF4Weight):
        made = _functions().multiply_nf4(*given, *_addresses(weight), *target)
    else:
        made = _functions().multiply_int8(*given, digits_of(weight.dtype), *_addresses(weight), *target)
    if not made:
        raise MemoryError(f"no memory for {x.shape[0]} rows of {x.shape[1]} inputs")
    return y


def multiply_sequence(x: torch.Tensor, weight: QuantWeight) -> torch.Tensor:
    """x [M, K] for many rows at once -> [M, N] in the weight's dtype, with the weight read back part by part."""
    return linear_by_parts(x.to(weight.dtype), weight, PART, read)


def read(weight: QuantWeight) -> torch.Tensor:
    """`weight.dequantize()`, bit for bit."""
    rows, columns = weight.shape
    dtype = weight.dtype if weight.dtype in KINDS else torch.float32
    matrix = torch.empty((rows, columns), dtype=dtype, device="cpu")
    target = KINDS[dtype], matrix.data_ptr(), torch.get_num_threads()
    if isinstance(weight, NF4Weight):
        _functions().read_nf4(*_addresses(weight), weight.absmax.numel(), *target)
    else:
        _functions().read_int8(*_addresses(weight), rows, columns, *target)
    return matrix.to(weight.dtype)


def _functions() -> ctypes.CDLL:
    compiled = library()
    if compiled is None:
        raise RuntimeError("the products of quantized weights are not compiled here, see is_compiled")
    return compiled


def _addresses(weight: QuantWeight) -> list[int]:
    """Where what the C code reads of a weight lies."""
    if isinstance(weight, NF4Weight):
        tensors = {"packed": weight.packed, "absmax": weight.absmax, "levels": _levels}
    else:
        tensors = {"values": weight.values, "absmax": weight.absmax}
    require_contiguous(**tensors)
    return [tensor.data_ptr() for tensor in tensors.values()]
