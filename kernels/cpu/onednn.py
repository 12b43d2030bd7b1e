"""int8 weights on a CPU without a C compiler: oneDNN packs them and multiplies them by digits (see `limbs`)."""

import functools
import logging
from dataclasses import dataclass

import torch

from ..quantized import Int8Weight, Weight
from .features import has_amx, has_vnni
from .limbs import digits_of, write_digits
from .matmul import is_compiled

logger = logging.getLogger(__name__)


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
        """x [M, K] of any float dtype -> [M, N] float32."""
        count = digits_of(self.dtype)
        lines, unit = write_digits(x, count)
        total, *lower = self.multiply_lines(lines).view(count, x.shape[0], -1).unbind()
        for part in lower:
            total = torch.add(part, total, alpha=256)
        return total.mul_(unit)

    def multiply_lines(self, lines: torch.Tensor) -> torch.Tensor:
        """lines [M, K] int8 -> their exact sums of products times the scales, [M, N] float32.

        The lines go in as unsigned numbers with a zero point of 128. oneDNN takes that back in 32-bit integers, so the
        sums are the same, and VNNI multiplies unsigned by signed. For signed lines oneDNN 3.12 has no kernel without
        AMX but its reference loop: 4 lines times [2048, 2048] take 279 ms on a Zen 5, 0.08 ms as unsigned (1 thread).
        """
        lines = lines.view(torch.uint8) ^ 128
        return torch.ops.onednn.qlinear_pointwise(
            lines, 1.0, 128, self.packed, self.scale, self.zero_points, None, 1.0, 0, torch.float32, "none", [], ""
        )


LinearWeight = Weight | PackedInt8Weight  # what a projection is given


def pack_for_device(weight: Weight) -> LinearWeight:
    """The weight in the form that its device multiplies fastest."""
    if isinstance(weight, torch.Tensor) or weight.device.type != "cpu" or is_compiled(weight):
        return weight
    if isinstance(weight, Int8Weight) and multiplies_int8():
        return PackedInt8Weight.pack(weight)
    _warn_of_reading_back(weight.title)
    return weight


@functools.cache
def _warn_of_reading_back(title: str) -> None:
    logger.warning(
        "%s saves memory and not time here: without compiled code the weights are read back at every product", title
    )


@functools.cache
def multiplies_int8() -> bool:
    """Whether this CPU's oneDNN multiplies packed int8 exactly, and fast.

    Fast by rule: with VNNI or AMX. Without, it either adds pairs of products in 16 bits, which overflow, or runs its
    reference loop, thousands of times slower. Exact by trial: the largest values show an overflow.
    """
    if not (torch.backends.mkldnn.is_available() and (has_vnni() or has_amx())):
        return False
    values = torch.full((32, 128), 127, dtype=torch.int8, device="cpu")
    values[1::2] = -127
    try:
        weight = PackedInt8Weight.pack(
            Int8Weight(values, torch.full((32,), 127.0, dtype=torch.float32, device="cpu"), torch.float32)
        )
        found = weight.multiply_lines(values[:4])
    except (RuntimeError, AttributeError):  # another torch, or a CPU that oneDNN has no int8 product for
        return False
    return torch.equal(found, values[:4].float() @ values.float().t() * weight.scale)
