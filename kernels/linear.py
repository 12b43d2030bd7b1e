"""y = x W^T, for the few rows of a decode step and for the many of a sequence.

In a step, the result of a row must not depend on how many other rows are in the batch: a request in a batch is to give
the very tokens that it gives alone. CPU libraries choose a kernel, and with it the order of the sums, by the number of
rows. A sequence belongs to one request, so there any product will do.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from .cpu import read_back
from .cpu.matmul import is_compiled, multiply
from .cpu.onednn import LinearWeight, PackedInt8Weight
from .cpu.read_back import Product
from .cpu.sequences import multiply_sequence
from .dequantize import dequantize
from .dispatch import uses_triton
from .quantized import QuantWeight, Weight, as_dense, is_quantized, linear_by_parts

# Rows of one product in a step: multiples of the first number, up to the second. Within these a CPU gives a row the
# same bits for any number of rows, measured with torch 2.13, MKL and oneDNN over sizes from 24 to 16384, one and two
# threads. On an Intel Xeon float32 changes its bits at 4 rows or at 64, depending on the shape, half precision at 64,
# and all of them for a single row; without AVX512-BF16 and on two threads bfloat16 has other bits for 2 rows. On an AMD
# EPYC (Zen 5) float32 changes at 4 rows in every shape, and of half precision only bfloat16, for a single row.
BATCH_INVARIANT_ROWS = {torch.float32: (2, 2)}
BATCH_INVARIANT_ROWS_HALF = (4, 32)

# Weights of a quantized matrix that a GPU reads back at once: at most 64 MiB of temporary in half precision and 128 MiB
# in float32. Dia's largest matrix, gate and up, has exactly as many.
READ_BACK = 2**25


def sequence_linear(x: torch.Tensor, weight: LinearWeight) -> torch.Tensor:
    """Project the rows of one sequence, x [..., K], weight [N, K] -> [..., N] in the weight's dtype.

    A quantized weight is read back for the product, unless it is packed for oneDNN. On a GPU that takes one launch, and
    a temporary of at most READ_BACK weights, which is free again for the next product.
    """
    if isinstance(weight, PackedInt8Weight):
        return weight.product(x.flatten(0, -2)).unflatten(0, x.shape[:-1]).to(weight.dtype)
    x = x.to(weight.dtype)
    if is_quantized(weight) and uses_triton(x):
        return linear_by_parts(x, weight, READ_BACK, dequantize)
    if weight.device.type == "cpu" and not uses_triton(x):
        return multiply_sequence(x.flatten(0, -2), weight).unflatten(0, x.shape[:-1])
    return F.linear(x, as_dense(weight))


def step_linear(x: torch.Tensor, weight: LinearWeight) -> torch.Tensor:
    """Project one row of each of many requests.

    Args:
        x: [M, K] any float dtype, rounded to the weight's dtype first.
        weight: [N, K]. A quantized one is defined as what it is read back as.

    Returns:
        [M, N] in the weight's dtype; float32, not rounded, where a CPU multiplies a quantized weight as it is.
    """
    return step_product(weight)(x.to(weight.dtype), weight)


def step_product(weight: Weight | PackedInt8Weight) -> Callable[[torch.Tensor, Any], torch.Tensor]:
    """The product that `step_linear` uses: called with x [M, K] in the weight's dtype, and the weight.

    Chosen by a rule over CPU, compiler, dtype and format, the same for every number of rows: two products would give a
    row two sums. `python -m benchmarks.cpu_products` times all products and shows where the rule is wrong.
    """
    if is_compiled(weight):
        return multiply
    if isinstance(weight, PackedInt8Weight):
        return multiply_packed
    if weight.device.type != "cpu":
        return multiply_plain
    if is_quantized(weight):
        return multiply_read_back
    return multiply_rows_first


def multiply_packed(x: torch.Tensor, weight: PackedInt8Weight) -> torch.Tensor:
    """By oneDNN, int8 in its order."""
    return weight.product(x)


def multiply_plain(x: torch.Tensor, weight: Weight) -> torch.Tensor:
    """With the whole matrix, and no care for the bits of a row."""
    return F.linear(x, as_dense(weight))


def multiply_rows_first(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x W^T, a row's bits the same in any batch."""
    return _in_steady_tiles(F.linear, x, weight)


def multiply_read_back(x: torch.Tensor, weight: QuantWeight) -> torch.Tensor:
    """Part by part in plain torch, a row's bits the same in any batch."""
    return read_back.multiply(x, weight, multiply_rows_first)


def _in_steady_tiles(product: Product, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    rows = x.shape[0]
    multiple, most = BATCH_INVARIANT_ROWS.get(x.dtype, BATCH_INVARIANT_ROWS_HALF)
    if missing := -rows % multiple:
        x = torch.cat((x, x[-1:].expand(missing, -1)))
    tiles = x.split(most)
    return torch.cat([product(tile, weight) for tile in tiles])[:rows]
