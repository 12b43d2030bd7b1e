"""y = x W^T, for the few rows of a decode step and for the many of a sequence.

In a step, the result of a row must not depend on how many other rows are in the batch: a request in a batch is to give
the very tokens that it gives alone. CPU libraries choose a kernel, and with it the order of the sums, by the number of
rows. A sequence belongs to one request, so there any product will do.
"""

import torch
import torch.nn.functional as F

from .cpu.features import has_amx
from .cpu.matmul import is_compiled, multiply, multiply_sequence
from .cpu.onednn import LinearWeight, PackedInt8Weight
from .dequantize import dequantize
from .dispatch import uses_triton
from .quantized import is_quantized, linear_by_parts, plain

# Rows of one product in a step. Within these a CPU gives a row the same bits for every even number of rows, measured
# with torch 2.13, MKL and oneDNN on x86 over sizes from 24 to 16384: float32 changes its bits at 4 rows or at 64,
# depending on the shape, half precision at 64; all of them for a single row.
STEADY_ROWS = {torch.float32: 2}
STEADY_ROWS_HALF = 32

# Weights of a quantized matrix that a GPU reads back at once: at most 64 MiB of temporary in half precision and 128 MiB
# in float32. Dia's largest matrix, gate and up, has exactly as many.
READ_BACK = 2**25


def sequence_linear(x: torch.Tensor, weight: LinearWeight) -> torch.Tensor:
    """Project the rows of one sequence, x [..., K], weight [N, K] -> [..., N] in the weight's dtype.

    A quantized weight is read back for the product, unless it is packed for this CPU. On a GPU that takes one launch,
    and a temporary of at most READ_BACK weights, which is free again for the next product.
    """
    if is_quantized(weight) and uses_triton(x):
        return linear_by_parts(x.to(weight.dtype), weight, READ_BACK, dequantize)
    if is_compiled(weight):
        return multiply_sequence(x.flatten(0, -2), weight).unflatten(0, x.shape[:-1])
    if isinstance(weight, PackedInt8Weight):
        return weight.product(x.flatten(0, -2)).unflatten(0, x.shape[:-1]).to(weight.dtype)
    return F.linear(x.to(weight.dtype), plain(weight))


def step_linear(x: torch.Tensor, weight: LinearWeight) -> torch.Tensor:
    """Project one row of each of many requests.

    Args:
        x: [M, K] any float dtype, rounded to the weight's dtype first.
        weight: [N, K]. A quantized one is defined as what it is read back as.

    Returns:
        [M, N] in the weight's dtype; float32, not rounded, from a weight that a CPU multiplies by code for its format.
    """
    x = x.to(weight.dtype)
    if is_compiled(weight):
        return multiply(x, weight)
    if isinstance(weight, PackedInt8Weight):
        return weight.product(x)
    weight = plain(weight)
    if x.device.type != "cpu":
        return F.linear(x, weight)
    rows = x.shape[0]
    if rows % 2:
        x = torch.cat((x, x[-1:]))
    tiles = x.split(STEADY_ROWS.get(x.dtype, STEADY_ROWS_HALF))
    return torch.cat([_product(tile, weight) for tile in tiles])[:rows]


def _product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x [M, K], weight [N, K] -> [M, N].

    The better bfloat16 product depends on the CPU, and the rule on its features alone:

        AMX (Intel Xeon)      the weight on the left: 1.2 to 1.4 times as fast as F.linear with 2 to 32 rows, because
                              oneDNN repacks the right operand of an AMX product at every call
        none (AMD, Zen 4, 5)  F.linear: 20-22 GB/s of weights against 10-15 (Zen 4), 33-34 against 20-22 (Zen 5) with 2
                              rows; with 32 rows 9 against 9 (Zen 4), 17-18 against 16-23 (Zen 5)

    One rule for every number of rows: two products would give a row two sums.
    """
    if x.dtype == torch.bfloat16 and has_amx():
        return torch.mm(weight, x.t()).t().contiguous()
    return F.linear(x, weight)
