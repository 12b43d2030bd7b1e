"""A sum that is added in the same order in every kernel.

`tl.sum` adds in an order that follows the register layout: elements that one thread holds one after the other, then
those of a warp, then those of several warps. Triton derives the layout from the tile's shape, hence from the number of
rows in the batch, so a request in a batch would get other bits than the same request alone. What must not depend on
the batch is summed by halves instead. For the few elements summed here that also takes fewer instructions and barriers.
"""

from .dispatch import tl, triton


@triton.jit
def ordered_sum(x):
    """[A, B, N] -> [A, B]: element i is added to element i + N / 2 until N, a power of two, is 1."""
    count: tl.constexpr = x.shape[2]
    if count > 1:
        low, high = halves(x)
        result = ordered_sum(low + high)
    else:
        result = x.reshape(x.shape[0], x.shape[1])
    return result


@triton.jit
def halves(x):
    """[A, B, N] -> twice [A, B, N / 2]."""
    half: tl.constexpr = x.shape[2] // 2
    return x.reshape(x.shape[0], x.shape[1], 2, half).permute(0, 1, 3, 2).split()
