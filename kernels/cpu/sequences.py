"""y = x W^T for the many rows of one sequence on a CPU, whose bits may depend on how many rows there are.

torch multiplies half precision fast only with instructions for it: without them, one product of 191 rows on two cores
of a Xeon (AVX-512 without BF16) runs at 57 GFLOP/s in bfloat16 and 26 in float16, and at 245 in float32. So there both
factors are widened, which is exact, and only the result is rounded to half precision.
"""

import torch
import torch.nn.functional as F

from ..quantized import Weight, linear_by_parts
from . import read_back
from .features import multiplies
from .matmul import is_compiled, multiply, read, uses_avx512
from .structures import is_compilable

PART = 2**22  # weights that are widened or read back at once, and multiplied while the cache has them


def multiply_sequence(x: torch.Tensor, weight: Weight) -> torch.Tensor:
    """Multiply part by part, where a part of the weight has to be widened or read back.

    Args:
        x: [M, K] in the weight's dtype.
        weight: [N, K] on a CPU.

    Returns:
        [M, N] in the weight's dtype.
    """
    if isinstance(weight, torch.Tensor):
        if multiplies(weight.dtype):
            return multiply_matrix(x, weight)
        y = linear_by_parts(x, weight, PART, torch.Tensor.float, multiply_matrix)
    elif is_compiled(weight):
        y = linear_by_parts(x, weight, PART, read, multiply_matrix)
    else:
        y = read_back.multiply(x, weight, multiply_matrix)
    return y.to(weight.dtype)


def multiply_matrix(x: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """x [M, K], matrix [N, K] -> [M, N] in the matrix' dtype, or in float32 where this CPU does not multiply that.

    One core of a Zen 5 does 180 to 209 GFLOP/s in float32 by the compiled code, for matrices of 192 x 192 to
    1024 x 192, and 107 to 112 by MKL, which is torch's product; with AVX2 alone MKL is 1.6 times as fast.
    """
    if not multiplies(matrix.dtype):
        matrix = matrix.float()
    x = x.to(matrix.dtype)
    if matrix.dtype == torch.float32 and is_compilable(matrix) and uses_avx512():
        return multiply(x, matrix)
    return F.linear(x, matrix)
