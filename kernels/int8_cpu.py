"""int8 weights on a CPU: products of 8-bit integers, which oneDNN packs and multiplies, exact to the last bit.

The inputs are integers too, of more digits than 8 bits hold: a row is rounded to multiples of max|x| / (127 * 256^d),
and these are written with d + 1 digits of base 256 in [-128, 127]. All digits of all rows are rows of one product, so
the weights are read once. Sums of integers know no order: a row comes out alike in any batch.

Two digits err by at most max|x| / 65024 for each input, a bfloat16 input by up to |x| / 512. Three digits, for float32,
err by max|x| / 1.6e7.
"""

import functools
from dataclasses import dataclass

import torch

from .formats import Int8Weight, Weight

DIGITS = {torch.float32: 3}
DIGITS_HALF = 2
INTEGERS = {2: torch.int16, 3: torch.int32}  # which hold that many digits
SMALLEST = torch.full((1, 1), 1e-30)  # added to a row's largest, for rows of zeros; too small to change another


@dataclass(frozen=True)
class PackedInt8Weight:
    """An Int8Weight [N, K] in the order in which oneDNN multiplies it. It takes the same memory."""

    packed: torch.Tensor  # [K, N] int8, opaque
    absmax: torch.Tensor  # [N] float32
    scale: torch.Tensor  # [N] float32, absmax / 127
    zero_points: torch.Tensor  # [N] int64, all zero, which oneDNN wants to be told
    dtype: torch.dtype

    title = "int8"

    @classmethod
    def pack(cls, weight: Int8Weight) -> "PackedInt8Weight":
        packed = torch.ops.onednn.qlinear_prepack(weight.values, [4, weight.shape[1]])
        return cls(packed, weight.absmax, weight.scale, torch.zeros_like(weight.scale, dtype=torch.int64), weight.dtype)

    def unpack(self) -> Int8Weight:
        return Int8Weight(self.packed.to_dense().t().contiguous(), self.absmax, self.dtype)

    def dequantize(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """As `Int8Weight.dequantize`."""
        return self.unpack().dequantize(dtype)

    @property
    def shape(self) -> torch.Size:
        return torch.Size((self.packed.shape[1], self.packed.shape[0]))

    @property
    def device(self) -> torch.device:
        return self.absmax.device

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes + self.absmax.nbytes + self.scale.nbytes + self.zero_points.nbytes

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """x [M, K] of any float dtype -> [M, N] float32.

        Few operations: the product before has filled the caches, so that each costs 5 us and more beside the 200 to
        1500 us that the integer product takes.
        """
        count = DIGITS.get(self.dtype, DIGITS_HALF)
        unit = torch.add(SMALLEST, x.abs().amax(dim=1, keepdim=True), alpha=256 ** (1 - count) / 127)
        sums = self._multiply(_digits(x, unit, count))
        total, *lower = sums.view(count, x.shape[0], -1).unbind()
        for part in lower:
            total = torch.add(part, total, alpha=256)
        return total.mul_(unit)

    def _multiply(self, rows: torch.Tensor) -> torch.Tensor:
        """rows [M, K] int8 -> their exact sums of products times the scales, [M, N] float32."""
        return torch.ops.onednn.qlinear_pointwise(
            rows, 1.0, 0, self.packed, self.scale, self.zero_points, None, 1.0, 0, torch.float32, "none", [], ""
        )


def _digits(x: torch.Tensor, unit: torch.Tensor, count: int) -> torch.Tensor:
    """x [M, K] in units [M, 1] as int8 [count * M, K]: all rows' highest digits first."""
    parts = [torch.div(x, unit).round_().to(INTEGERS[count])]
    for _ in range(count - 1):
        parts.append(torch.add(parts[-1], 128).bitwise_right_shift_(8))  # what the digit in the low byte leaves
    return torch.cat(parts[::-1]).to(torch.int8)  # keeps the low bytes


def fastest(weight: Weight) -> Weight | PackedInt8Weight:
    """The weight in the form that its device multiplies fastest."""
    packs = isinstance(weight, Int8Weight) and weight.device.type == "cpu" and multiplies_int8()
    return PackedInt8Weight.pack(weight) if packs else weight


@functools.cache
def multiplies_int8() -> bool:
    """Whether this CPU's oneDNN multiplies packed int8 exactly.

    Without VNNI it adds pairs of products in 16 bits, which overflow: the largest values show that.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    values = torch.full((32, 128), 127, dtype=torch.int8)
    values[1::2] = -127
    try:
        weight = PackedInt8Weight.pack(Int8Weight(values, torch.full((32,), 127.0), torch.float32))
        found = weight._multiply(values[:4])
    except (RuntimeError, AttributeError):  # another torch, or a CPU that oneDNN has no int8 product for
        return False
    return torch.equal(found, values[:4].float() @ values.float().t() * weight.scale)
