"""Rows of floats as integers in base 256, so that products with int8 weights are exact integer arithmetic.

A row is rounded to multiples of max|x| / (127 * 256^d), written with d + 1 digits in [-128, 127]. The digits of all
rows are lines of one product, so the weights are read once. Integer addition is associative: results are
bit-identical for any batch size and number of threads.

Two digits err by at most max|x| / 65024 for each input, a bfloat16 input by up to |x| / 512. Three digits, for float32,
err by max|x| / 1.6e7.
"""

import torch

DIGITS = {torch.float32: 3}
DIGITS_HALF = 2
INTEGERS = {2: torch.int16, 3: torch.int32}  # which hold that many digits
SMALLEST = 1e-30  # added for rows of zeros; next to any other unit it is nothing that shows


def digits_of(dtype: torch.dtype) -> int:
    """How many digits the inputs of a weight in `dtype` are written with."""
    return DIGITS.get(dtype, DIGITS_HALF)


def write_digits(x: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """x [M, K] of any float dtype -> int8 [count * M, K], all rows' highest digits first; units [M, 1] float32."""
    unit = x.abs().amax(dim=1, keepdim=True).float() / 127
    for _ in range(count - 1):
        unit /= 256
    unit += SMALLEST
    parts = [torch.div(x, unit).round_().to(INTEGERS[count])]
    for _ in range(count - 1):
        parts.append(torch.add(parts[-1], 128).bitwise_right_shift_(8))  # what the digit in the low byte leaves
    return torch.cat(parts[::-1]).to(torch.int8), unit  # keeps the low bytes
