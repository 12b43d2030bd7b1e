"""y = x W^T over an int8 or NF4 weight in the compiled code. The weight stays as it is in memory."""

import torch
import torch.nn.functional as F

from ..formats import LEVELS, PER_ABSMAX, Int8Weight, NF4Weight, Weight
from .digits import digits_of, write_digits
from .library import library

QuantWeight = Int8Weight | NF4Weight

KINDS = {torch.float32: 0, torch.bfloat16: 1}  # that the C code reads and writes
WIDEST = 2**16  # columns of an int8 weight, so that sums fit into 32 bits
MOST_LINES = 16  # of digits, beyond which torch's product of integers is faster: it has AMX
PART = 2**22  # weights that are read back at once for a sequence, and multiplied while the cache has them

_levels = torch.tensor(LEVELS)


def is_compiled(weight: Weight) -> bool:
    """Whether there is compiled code for the products of a weight."""
    if not isinstance(weight, QuantWeight) or weight.device.type != "cpu":
        return False
    return (isinstance(weight, NF4Weight) or weight.shape[1] <= WIDEST) and library() is not None


def multiply(x: torch.Tensor, weight: QuantWeight) -> torch.Tensor:
    """x [M, K] of any float dtype -> [M, N] float32, a row alike in any batch."""
    if isinstance(weight, NF4Weight):
        return _call(library().multiply_nf4, x, weight.shape[0], weight.packed, weight.absmax, _levels)
    count = digits_of(weight.dtype)
    if count * x.shape[0] > MOST_LINES:
        return multiply_digits(x, weight)
    return _call(library().multiply_int8, x, weight.shape[0], count, weight.values, weight.absmax)


def multiply_digits(x: torch.Tensor, weight: Int8Weight) -> torch.Tensor:
    """The compiled code's twin for int8, with the same bits."""
    count = digits_of(weight.dtype)
    lines, unit = write_digits(x, count)
    total, *lower = torch._int_mm(weight.values, lines.t()).view(-1, count, x.shape[0]).unbind(dim=1)
    total = total.double()  # which holds these integers exactly
    for part in lower:
        total = torch.add(part, total, alpha=256)
    return (total.t().float() * unit).mul_(weight.absmax * PER_ABSMAX).contiguous()


def multiply_sequence(x: torch.Tensor, weight: QuantWeight) -> torch.Tensor:
    """x [M, K] for many rows at once -> [M, N] in the weight's dtype, with the weight read back part by part."""
    outputs, columns = weight.shape
    step = max(1, PART // columns)
    parts = weight.split([min(step, outputs - start) for start in range(0, outputs, step)])
    return torch.cat([F.linear(x.to(weight.dtype), read(part)) for part in parts], dim=-1)


def read(weight: QuantWeight) -> torch.Tensor:
    """`weight.dequantize()`, bit for bit."""
    rows, columns = weight.shape
    matrix = torch.empty(rows, columns, dtype=weight.dtype if weight.dtype in KINDS else torch.float32)
    target = KINDS[matrix.dtype], matrix.data_ptr(), torch.get_num_threads()
    if isinstance(weight, NF4Weight):
        blocks = weight.absmax.numel()
        packed, absmax = weight.packed.data_ptr(), weight.absmax.data_ptr()
        library().read_nf4(packed, absmax, _levels.data_ptr(), blocks, *target)
    else:
        library().read_int8(weight.values.data_ptr(), weight.absmax.data_ptr(), rows, columns, *target)
    return matrix.to(weight.dtype)


def _call(function, x: torch.Tensor, outputs: int, *operands: torch.Tensor | int) -> torch.Tensor:
    x = (x if x.dtype in KINDS else x.float()).contiguous()
    y = torch.empty(x.shape[0], outputs)
    given = [operand if isinstance(operand, int) else operand.data_ptr() for operand in operands]
    target = outputs, y.data_ptr(), torch.get_num_threads()
    if not function(x.data_ptr(), KINDS[x.dtype], *x.shape, *given, *target):
        raise MemoryError(f"no memory for {x.shape[0]} rows of {x.shape[1]} inputs")
    return y
