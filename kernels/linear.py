"""y = x W^T, for the few rows of a decode step and for the many of a sequence.

In a step, the result of a row must not depend on how many other rows are in the batch: a request in a batch is to give
the very tokens that it gives alone. CPU libraries choose a kernel, and with it the order of the sums, by the number of
rows. A sequence belongs to one request, so there the plain product will do.
"""

import torch
import torch.nn.functional as F


def sequence_linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Project the rows of one sequence, x [..., K], weight [N, K] -> [..., N] in the weight's dtype."""
    return F.linear(x.to(weight.dtype), weight)


def step_linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Project one row of each of many requests.

    Args:
        x: [M, K] any float dtype, rounded to the weight's dtype first.
        weight: [N, K].

    Returns:
        [M, N] in the weight's dtype.
    """
    x = x.to(weight.dtype)
    return _steady_linear(x, weight) if x.device.type == "cpu" else F.linear(x, weight)


def _steady_linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The product by a path that rounds a row alike in any batch.

    Measured on torch 2.13 with MKL and oneDNN, x86: bfloat16 and float16 give a row the same bits for every even number
    of rows and other bits for a single row; float32 changes its bits at 4 rows or at 16, depending on the shape, so it
    goes two rows at a time (which costs nothing: MKL needs twice as long for 4 rows as for 2).
    """
    rows = x.shape[0]
    if rows % 2:
        x = torch.cat((x, x[-1:]))
    if x.dtype != torch.float32 or rows <= 2:
        return F.linear(x, weight)[:rows]
    return torch.cat([F.linear(pair, weight) for pair in x.split(2)])[:rows]
