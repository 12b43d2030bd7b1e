"""Weights in 8 and 4 bits: bitsandbytes' two formats, its quantizers and how they are read back.

    int8   one scale per row:               w = value * absmax / 127
    NF4    one scale a block of 64 in K:  w = LEVELS[nibble] * absmax

Values and scales are bitsandbytes' own, bit for bit, and so is what `dequantize` gives. Only the place of the nibbles
is ours: bitsandbytes puts neighbors into one byte, here byte j of a block's 32 holds weight j (low half) and weight
32 + j (high half), so that each half of loaded bytes is a run of weights.

Quantizing needs torch only: the arithmetic is that of bitsandbytes on a CPU, which the tests compare.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F

from .cpu.pages import empty_weight

BLOCK = 64  # weights that share a scale in NF4
PER_ABSMAX = 7.874015718698502e-3  # bitsandbytes' 1 / 127
# Weights that are quantized or read back at once. Their float32 copies are small: larger ones leave holes between the
# weights that stay, of 0.8 GB in all for 2**22, measured.
CHUNK = 2**18

# The 16 values of NF4, from QLoRA (arXiv 2305.14314), as bitsandbytes has them.
LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


def levels_on(device: torch.device | str) -> torch.Tensor:
    """NF4's values, [16] float32."""
    return torch.tensor(LEVELS, dtype=torch.float32, device=device)


@dataclass(frozen=True)
class Int8Weight:
    """A matrix [N, K] of 8-bit integers."""

    values: torch.Tensor  # [N, K] int8, in [-127, 127]
    absmax: torch.Tensor  # [N] float32, the largest absolute value of each row
    dtype: torch.dtype  # that it is multiplied in

    title = "int8"

    @classmethod
    def quantize(cls, matrix: torch.Tensor, dtype: torch.dtype) -> "Int8Weight":
        """Round a matrix [N, K] of any float dtype; as `bitsandbytes.functional.int8_vectorwise_quant`."""
        count, columns = matrix.shape
        result = cls.empty(count, columns, dtype, matrix.device)
        for rows in _chunks(count, columns):
            part = matrix[rows].float()
            largest = part.abs().amax(dim=1)
            # A row of zeros gives 0 * inf.
            result.values[rows] = (part * (127.0 / largest[:, None])).round_().nan_to_num_(nan=0.0).to(torch.int8)
            result.absmax[rows] = largest
        return result

    @staticmethod
    def fits(columns: int) -> bool:
        """Whether rows of so many weights can be held."""
        return True

    @staticmethod
    def bytes_of(rows: int, columns: int) -> int:
        """`nbytes` of a matrix [rows, columns]."""
        return rows * columns + 4 * rows

    @classmethod
    def empty(cls, rows: int, columns: int, dtype: torch.dtype, device: torch.device | str) -> "Int8Weight":
        """Room for a matrix [rows, columns]."""
        values = empty_weight((rows, columns), torch.int8, device)
        return cls(values, torch.empty(rows, dtype=torch.float32, device=device), dtype)

    @property
    def shape(self) -> torch.Size:
        return self.values.shape

    @property
    def device(self) -> torch.device:
        return self.values.device

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.absmax.nbytes

    @property
    def scale(self) -> torch.Tensor:
        """What a value is multiplied by, [N] float32."""
        return self.absmax * PER_ABSMAX

    def dequantize(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The matrix [N, K], computed in float32 and rounded to `dtype`, by default its own."""
        matrix = torch.empty(self.shape, dtype=dtype or self.dtype, device=self.device)
        for rows in _chunks(*self.shape):
            # In this order, in which bitsandbytes rounds.
            matrix[rows] = self.values[rows].float().mul_(self.absmax[rows, None]).mul_(PER_ABSMAX)
        return matrix

    def split(self, rows: list[int]) -> list["Int8Weight"]:
        """Views of consecutive rows."""
        parts = zip(self.values.split(rows), self.absmax.split(rows), strict=True)
        return [Int8Weight(values, absmax, self.dtype) for values, absmax in parts]

    @classmethod
    def join(cls, parts: list["Int8Weight"], device: torch.device | str) -> "Int8Weight":
        """One matrix of the rows of several, owned by nobody else."""
        values = _joined([part.values for part in parts], device)
        return cls(values, _joined([part.absmax for part in parts], device), parts[0].dtype)


@dataclass(frozen=True)
class NF4Weight:
    """A matrix [N, K] of 4-bit numbers, K a multiple of 64."""

    packed: torch.Tensor  # [N, K / 2] uint8, nibbles placed as the module says
    absmax: torch.Tensor  # [N, K / 64] float32, the largest absolute value of each block
    dtype: torch.dtype  # that it is multiplied in

    title = "nf4"

    @classmethod
    def quantize(cls, matrix: torch.Tensor, dtype: torch.dtype) -> "NF4Weight":
        """Round a matrix [N, K] of any float dtype; as `bitsandbytes.functional.quantize_4bit` with "nf4".

        Raises:
            ValueError: K is no multiple of 64, so that blocks would reach over the ends of rows.
        """
        rows, columns = matrix.shape
        _check_width(columns)
        result = cls.empty(rows, columns, dtype, matrix.device)
        levels = levels_on(matrix.device)
        bounds = (levels[:-1] + levels[1:]) / 2
        for part in _chunks(rows, columns):
            blocks = matrix[part].float().unflatten(1, (-1, BLOCK))
            largest = blocks.abs().amax(dim=-1)
            scaled = (blocks * (1.0 / largest.clamp(min=1e-38))[..., None]).clamp_(-1, 1)
            result.packed[part] = _pack(torch.bucketize(scaled, bounds, out_int32=True).to(torch.uint8))
            result.absmax[part] = largest
        return result

    @classmethod
    def from_neighbors(
        cls, packed: torch.Tensor, absmax: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype
    ) -> "NF4Weight":
        """From bitsandbytes' bytes [N K / 2], in which the high half comes first, and its scales [N K / 64] float32.

        Raises:
            ValueError: as `quantize`.
        """
        rows, columns = shape
        _check_width(columns)
        pairs = packed.view(rows, columns // BLOCK, BLOCK // 2)
        nibbles = torch.stack((pairs >> 4, pairs & 15), dim=-1).flatten(2)
        return cls(_pack(nibbles), absmax.view(rows, columns // BLOCK), dtype)

    def neighbors(self) -> torch.Tensor:
        """The bytes as bitsandbytes has them, [N K / 2, 1] uint8."""
        nibbles = _unpack(self.packed).unflatten(-1, (-1, 2))
        return (nibbles[..., 0] << 4 | nibbles[..., 1]).view(-1, 1)

    @staticmethod
    def fits(columns: int) -> bool:
        """Whether rows of so many weights can be held."""
        return columns % BLOCK == 0

    @staticmethod
    def bytes_of(rows: int, columns: int) -> int:
        """`nbytes` of a matrix [rows, columns]."""
        return rows * columns // 2 + 4 * rows * columns // BLOCK

    @classmethod
    def empty(cls, rows: int, columns: int, dtype: torch.dtype, device: torch.device | str) -> "NF4Weight":
        """Room for a matrix [rows, columns]."""
        packed = empty_weight((rows, columns // 2), torch.uint8, device)
        return cls(packed, torch.empty((rows, columns // BLOCK), dtype=torch.float32, device=device), dtype)

    @property
    def shape(self) -> torch.Size:
        return torch.Size((self.packed.shape[0], 2 * self.packed.shape[1]))

    @property
    def device(self) -> torch.device:
        return self.packed.device

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes + self.absmax.nbytes

    def dequantize(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The matrix [N, K], computed in float32 and rounded to `dtype`, by default its own."""
        matrix = torch.empty(self.shape, dtype=dtype or self.dtype, device=self.device)
        levels = levels_on(self.device)
        for rows in _chunks(*self.shape):
            nibbles = _unpack(self.packed[rows])
            values = levels.index_select(0, nibbles.flatten().int()).view(nibbles.shape)
            matrix[rows] = values.mul_(self.absmax[rows, :, None]).flatten(1)
        return matrix

    def split(self, rows: list[int]) -> list["NF4Weight"]:
        """Views of consecutive rows."""
        parts = zip(self.packed.split(rows), self.absmax.split(rows), strict=True)
        return [NF4Weight(packed, absmax, self.dtype) for packed, absmax in parts]

    @classmethod
    def join(cls, parts: list["NF4Weight"], device: torch.device | str) -> "NF4Weight":
        """One matrix of the rows of several, owned by nobody else."""
        packed = _joined([part.packed for part in parts], device)
        return cls(packed, _joined([part.absmax for part in parts], device), parts[0].dtype)


FORMATS: dict[str, type[Int8Weight] | type[NF4Weight]] = {"int8": Int8Weight, "nf4": NF4Weight}
QuantWeight = Int8Weight | NF4Weight
Weight = torch.Tensor | QuantWeight


def is_quantized(weight: object) -> TypeGuard[QuantWeight]:
    """Whether a weight is in one of this module's formats."""
    return isinstance(weight, QuantWeight)


def linear_by_parts(
    x: torch.Tensor,
    weight: Weight,
    most: int,
    read: Callable[[Any], torch.Tensor],
    product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = F.linear,
) -> torch.Tensor:
    """y = x W^T with W read back (or widened) in parts of whole rows, each multiplied before the next is read.

    Args:
        x: [..., K] in the weight's dtype.
        weight: [N, K].
        most: weights of a part, at most; a row if that is more.
        read: gives a part as a matrix.
        product: multiplies x with that.

    Returns:
        [..., N] in the product's dtype.
    """
    rows, columns = weight.shape
    step = max(1, most // columns)
    if rows <= step:
        return product(x, read(weight))
    parts = weight.split([min(step, rows - start) for start in range(0, rows, step)])
    return torch.cat([product(x, read(part)) for part in parts], dim=-1)


def as_dense(weight: Weight) -> torch.Tensor:
    """The matrix itself: a quantized one read back, any other as it is."""
    return weight if isinstance(weight, torch.Tensor) else weight.dequantize()


def _check_width(columns: int) -> None:
    if not NF4Weight.fits(columns):
        raise ValueError(f"NF4 needs rows of a multiple of {BLOCK} weights, got {columns}")


def _chunks(rows: int, columns: int) -> list[slice]:
    step = max(1, CHUNK // columns)
    return [slice(start, start + step) for start in range(0, rows, step)]


def _pack(nibbles: torch.Tensor) -> torch.Tensor:
    """[N, K / 64, 64] uint8 -> [N, K / 2]."""
    low, high = nibbles.split(BLOCK // 2, dim=-1)
    return (low | high << 4).flatten(1)


def _unpack(packed: torch.Tensor) -> torch.Tensor:
    """[N, K / 2] -> [N, K / 64, 64] uint8."""
    halves = packed.unflatten(1, (-1, BLOCK // 2))
    return torch.cat((halves & 15, halves >> 4), dim=-1)


def _joined(parts: list[torch.Tensor], device: torch.device | str) -> torch.Tensor:
    joined = empty_weight((sum(len(part) for part in parts), *parts[0].shape[1:]), parts[0].dtype, device)
    for part, rows in zip(parts, joined.split([len(part) for part in parts]), strict=True):
        rows.copy_(part)
    return joined
