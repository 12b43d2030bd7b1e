"""Philox 4x32-10, a counter-based random generator (Salmon et al., SC 2011): 128 random bits are a pure function of a
64-bit key and a 128-bit counter. No state, no order of calls: any kernel can make any number of it again, bit for bit
(Triton's `tl.philox` is the same function).
"""

import torch

ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF


def philox(seed: torch.Tensor, counter: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Four random words for each counter.

    Args:
        seed: int64, all 64 bits are the key.
        counter: four int64 tensors with values in [0, 2^32), which broadcast with the seed.

    Returns:
        four int64 tensors with values in [0, 2^32).
    """
    key_low, key_high = seed & _MASK, (seed >> 32) & _MASK
    c0, c1, c2, c3 = counter
    for _ in range(ROUNDS):
        high0, low0 = _multiply(_MULTIPLIERS[0], c0)
        high1, low1 = _multiply(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ key_low, low1, high0 ^ c3 ^ key_high, low0
        key_low = (key_low + _KEY_STEPS[0]) & _MASK
        key_high = (key_high + _KEY_STEPS[1]) & _MASK
    return c0, c1, c2, c3


def _multiply(constant: int, word: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """High and low word of a 32 x 32 bit product, whose 64 bits are int64's whether or not its sign is among them."""
    product = word * constant
    return (product >> 32).bitwise_and_(_MASK), product.bitwise_and_(_MASK)


def uniform(seed: torch.Tensor, counter: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """One float32 in (0, 1) for each counter, from the first word's upper 23 bits.

    23 bits and a half step are exact in float32, so the value is never 0 or 1 and -log(u) is finite and positive.
    """
    return ((philox(seed, counter)[0] >> 9).float() + 0.5) * 2.0**-23
