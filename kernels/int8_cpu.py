"""int8 weights on a CPU: products of 8-bit integers, which oneDNN packs and multiplies, exact to the last bit.

The inputs are integers too, of more digits than 8 bits hold: a row x is written as max|x| / 127 * (d0 + d1 / 254 + ...)
with digits in [-127, 127]. All digits of all rows are rows of one product, so the weights are read once. Sums of
integers know no order: a row comes out alike in any batch.

Two digits err by at most max|x| / 64516 for each input, a bfloat16 input by up to |x| / 512. Three digits, for float32,
err by max|x| / 1.6e7.
"""

import functools
from dataclasses import dataclass

import torch

from .formats import Int8Weight, Weight

BASE = 254
DIGITS = {torch.float32: 3}
DIGITS_HALF = 2
SMALLEST = 1e-30  # stands for the largest of a row of zeros


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
        x = x.float()
        unit = x.abs().amax(dim=1, keepdim=True).mul_(1 / 127).clamp_(min=SMALLEST)
        rest, digits = x / unit, []
        for _ in range(DIGITS.get(self.dtype, DIGITS_HALF) - 1):
            digits.append(rest.round())
            rest = torch.sub(rest, digits[-1]).mul_(BASE)
        rows = torch.cat((*digits, rest)).round_().to(torch.int8)
        total, *lower = self._multiply(rows).split(x.shape[0])
        for place, part in enumerate(lower, start=1):
            total.add_(part, alpha=BASE**-place)
        return total.mul_(unit)

    def _multiply(self, rows: torch.Tensor) -> torch.Tensor:
        """rows [M, K] int8 -> their exact sums of products times the scales, [M, N] float32."""
        return torch.ops.onednn.qlinear_pointwise(
            rows, 1.0, 0, self.packed, self.scale, self.zero_points, None, 1.0, 0, torch.float32, "none", [], ""
        )


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
