"""The loop that the projections of a decode step share: a tile of weight rows times all input rows.

Weights are the tall operand of the tensor cores (16 rows), the few input rows the narrow one (8 to 64, padded). A
program's K columns are cut into slices, which form the batch axis of a three-dimensional dot: every warp multiplies its
own slice of the same weight rows, so all warps load different weights, and one sum over the slices ends it. Programs
are small, 4 warps where it can be: a multiprocessor then has several, and one computes while another's weights arrive.

Quantized weights are decoded between load and dot, in registers. int8 turns into the inputs' dtype exactly and is
scaled after the sum. NF4 levels are rounded to the inputs' dtype, and a block's scale multiplies its partial sum in
float32.

How a row is summed depends on nothing but K, the format, the dtype and the architecture, so it comes out alike in any
batch and at any place in it: a slice adds its columns from left to right, and which columns those are is decided by
`unit` and `slices`, never by the number of rows. `ordered_sum` adds the slices. Nor may the compiler fuse a
multiplication and an addition by itself in these kernels: it does so where one thread happens to hold both, which
follows the register layout, and so the number of rows. What is to be fused is written as `tl.fma`; dots are fused in
any case.

The sizes below were chosen by time on an H200, among those that give the same bits: docs/benchmarks.md. NF4 halves the
bytes of int8 and is not faster there, because decoding it takes more instructions than there are while its weights
arrive. NF4 pays on GPUs with less memory bandwidth, and where memory is short.
"""

import dataclasses
from dataclasses import dataclass

import torch

from .architectures import LEAST_LIMIT, SHARED_MEMORY_LIMIT
from .dispatch import require_contiguous, takes_ptx, tl, triton
from .nf4 import nf4_levels
from .ordered_sum import ordered_sum
from .quantized import BLOCK, Int8Weight, NF4Weight, Weight
from .quantized import PER_ABSMAX as _PER_ABSMAX

FORMAT_IDS = {Int8Weight: 1, NF4Weight: 2}  # values of the constexpr FORMAT; 0 is a dense matrix
INT8 = tl.constexpr(FORMAT_IDS[Int8Weight])
NF4 = tl.constexpr(FORMAT_IDS[NF4Weight])
PER_ABSMAX = tl.constexpr(_PER_ABSMAX)
# Rows with more columns are cut into 8 slices instead of 4: their matrices have few rows (`down`), so that a
# multiprocessor gets one program at a time, which then should have more warps.
LONG_ROW = 4096
# Programs from which on a multiprocessor has several at a time, and the columns of a slice that a program then has in
# flight. With fewer programs it should have more.
MANY_PROGRAMS = 256
COLUMNS_AHEAD, COLUMNS_AHEAD_OF_MANY = 256, 128
# Programs that are enough for the multiprocessors of a large GPU.
ENOUGH_PROGRAMS = 96
RESERVED = 1024  # bytes of shared memory that CUDA keeps of each program
MOST_NUMBERS = 2**31 - 1  # of a matrix: the kernels count them in 32 bits, as wider addresses would take registers


def operands(weight: Weight) -> dict[str, torch.Tensor | None]:
    """The kernels' arguments for a weight: its numbers and its scales.

    Raises:
        ValueError: they are not contiguous, or more than MOST_NUMBERS.
    """
    require_countable(weight)
    if isinstance(weight, torch.Tensor):
        require_contiguous(weight=weight)
        return {"weight_ptr": weight, "scale_ptr": None}
    require_contiguous(weight=_numbers(weight), absmax=weight.absmax)
    return {"weight_ptr": _numbers(weight), "scale_ptr": weight.absmax}


def require_countable(weight: Weight) -> None:
    """
    Raises:
        ValueError: the matrix has more than MOST_NUMBERS.
    """
    if weight.shape.numel() > MOST_NUMBERS:
        raise ValueError(f"a matrix may have {MOST_NUMBERS} numbers on a GPU, got {list(weight.shape)}")


def _numbers(weight: Weight) -> torch.Tensor:
    """The weight without its scales."""
    if isinstance(weight, torch.Tensor):
        return weight
    return weight.values if isinstance(weight, Int8Weight) else weight.packed


@dataclass(frozen=True)
class Tiling:
    """How one projection is cut up.

    `unit` and `slices` decide the order of its sums and must not depend on the number of rows. The rest may: a unit is
    added up from left to right in however many blocks.
    """

    tile: int  # weight rows of a program
    block_m: int  # input rows of a program
    unit: int  # columns that belong to one slice
    block_k: int  # columns of each slice in one iteration, a divisor of `unit`
    slices: int  # of K
    warps: int  # of a program
    stages: int  # Triton's; one less is the number of iterations that have room in shared memory

    def registers(self, weight: Weight, architecture: int | str) -> int | None:
        """How many the compiler may use per thread; None: it decides.

        It keeps to fewer than there are, and spills the rest, in
        * plain programs of 32 weight rows or 16 input rows on GPUs with 100 KB of shared memory, in which two of them
          fit: to 64 or 48, though with 168 three would run. Where there is more shared memory, older ptxas spill more
          under a limit than without one;
        * int8 on sm_80: to 168 or 72, in the loop too, though two fit, for which 255 are there.
        The widest programs of NF4 need nearly all (`takes_all_registers`): some ptxas spill 8 or 16 bytes unless they
        are told of 252, for sm_100 if they are.
        """
        if not isinstance(architecture, int) or not _on_tensor_cores(weight, architecture):
            return None
        if isinstance(weight, NF4Weight):
            is_full = self.block_m == 32 and (architecture == 90 or (self.warps == 8 and architecture != 100))
            return 252 if is_full else None
        if self.warps != 4:
            return None
        if isinstance(weight, Int8Weight):
            return 255 if architecture == 80 and self.tile >= 32 else None
        is_small = SHARED_MEMORY_LIMIT.get(architecture, LEAST_LIMIT) <= 100 * 1024
        return 168 if is_small and (self.tile == 32 or self.block_m == 16) else None

    @classmethod
    def choose(cls, weight: Weight, tile: int, rows: int, architecture: int | str) -> "Tiling":
        """The tiling for `rows` input rows; `tile` is the smallest number of weight rows that the kernel can take."""
        limit = SHARED_MEMORY_LIMIT.get(architecture, LEAST_LIMIT)
        half = (limit + RESERVED) // 2 - RESERVED  # two programs, or a program and its successor's, fit on one
        roomy = half > 64 * 1024
        size = weight.dtype.itemsize
        quantized = type(weight) in FORMAT_IDS
        # Quantized: a block of NF4 per iteration, whose scale then is one number per row, and as much of int8.
        unit = BLOCK if quantized else (128 if roomy else 64) // size
        slices = warps = 4 if _on_tensor_cores(weight, architecture) and weight.shape[1] <= LONG_ROW else 8
        if quantized and size == 4:
            # The decoded weights are in shared memory too: with 8 slices they do not fit everywhere.
            slices = 4
        for wide_tile, block_m in _tiles(weight, tile, rows, architecture):
            fitted = cls(wide_tile, block_m, unit, unit, slices, warps, 0)._fitted(weight, half, limit)
            if fitted and isinstance(architecture, str):
                return dataclasses.replace(fitted, stages=2)  # on AMD an iteration in flight lies in registers
            if fitted:
                return fitted
        raise ValueError(f"no tiling of {list(weight.shape)} fits {limit} bytes of shared memory")

    def _fitted(self, weight: Weight, half: int, limit: int) -> "Tiling | None":
        """With blocks and stages for half of a multiprocessor's shared memory, or else for all of it."""
        quantized = type(weight) in FORMAT_IDS
        # NF4's blocks share a scale. Of others, 16 columns are one tensor-core product, and 32 bytes one sector.
        least = BLOCK if isinstance(weight, NF4Weight) else 32 if quantized else 16
        many = weight.shape[0] // self.tile >= MANY_PROGRAMS
        columns_ahead = COLUMNS_AHEAD_OF_MANY if many else COLUMNS_AHEAD
        for bound in (half, limit):
            block_k = self.unit
            while block_k >= least:
                fitting = [
                    ahead
                    for ahead in range(2, columns_ahead // block_k + 1)
                    if self._shared_memory(weight, block_k, ahead) <= bound
                ]
                if fitting:
                    return dataclasses.replace(self, block_k=block_k, stages=max(fitting) + 1)
                block_k //= 2
        return None

    def _shared_memory(self, weight: Weight, block_k: int, ahead: int) -> int:
        """Bytes that a program needs with `ahead` iterations in flight, about: the tests compile them all."""
        size = weight.dtype.itemsize
        columns = self.slices * block_k
        staged = columns * self.tile * _numbers(weight).nbytes // weight.shape.numel() + columns * self.block_m * size
        decoded = 0
        if size == 4:  # no tensor cores: operands that are transposed or decoded pass through shared memory
            inputs = self.block_m // 2 if isinstance(weight, NF4Weight) else self.block_m  # NF4: one half of a block
            decoded = columns * 4 * (inputs + (self.tile if type(weight) in FORMAT_IDS else 0))
        sums = self.slices * self.tile * self.block_m * 4
        return max(ahead * staged + decoded, sums)

    def grid(self, rows: int, outputs: int) -> tuple[int, int]:
        """Of a matrix with `outputs` rows. Programs that share weights are neighbors: all but one find them in L2."""
        return (triton.cdiv(rows, self.block_m), triton.cdiv(outputs, self.tile))

    def constants(self, weight: Weight, inputs: torch.Tensor) -> dict[str, int]:
        return {
            "FORMAT": FORMAT_IDS.get(type(weight), 0),
            "ASSEMBLY": takes_ptx(inputs.device),
            "STRIDE": inputs.stride(0),
            "K": weight.shape[1],
            "TILE": self.tile,
            "BLOCK_M": self.block_m,
            "UNIT": self.unit,
            "BLOCK_K": self.block_k,
            "SLICES": self.slices,
        }


def _tiles(weight: Weight, tile: int, rows: int, architecture: int | str) -> list[tuple[int, int]]:
    """Weight rows and input rows of a program, the best first; the first that fits is taken.

    Every program reads its weights and its inputs from the L2 cache: in all, the weights once per block of input rows,
    the inputs once per tile of weight rows. From 17 rows on that is more than the L2 cache delivers while the weights
    come from memory, so both are as large there as leaves enough programs.
    """
    if isinstance(architecture, str):
        # AMD's matrix cores take 16 input rows at least (8 would spill hundreds of registers), and 32 x 32 products
        # add in another order than 16 x 16: one size for any batch.
        return [(tile, 16), (tile, 8)]
    narrow = not _on_tensor_cores(weight, architecture)  # 32 x 16 would spill
    if rows <= 8 or (narrow and tile > 16):
        return [(tile, 8)]
    if rows <= 16 or narrow:
        return [(tile, 16), (tile, 8)]
    wide = [(64, 32), (32, 32), (32, 16)]
    enough = [each for each in wide if _programs(weight, rows, *each) >= ENOUGH_PROGRAMS]
    return [*enough, wide[-1], (tile, 16)]


def _on_tensor_cores(weight: Weight, architecture: int | str) -> bool:
    """Triton uses none for float32, nor those before the Ampere generation."""
    return weight.dtype.itemsize == 2 and (isinstance(architecture, str) or architecture >= 80)


def _programs(weight: Weight, rows: int, tile: int, block_m: int) -> int:
    return -(-weight.shape[0] // tile) * -(-rows // block_m)


@triton.jit
def _slices_first(K: tl.constexpr, UNIT: tl.constexpr, SLICES: tl.constexpr):
    """The first column of each slice, [SLICES, 1, 1]."""
    return tl.arange(0, SLICES)[:, None, None] * (tl.cdiv(K, SLICES * UNIT) * UNIT)


@triton.constexpr_function
def takes_all_registers(FORMAT: int, BLOCK_M: int) -> bool:
    """Whether a product leaves no registers to what its kernel could load before it and use behind it."""
    return FORMAT == FORMAT_IDS[NF4Weight] and BLOCK_M == 32


@triton.jit
def rows_from(first, row, N: tl.constexpr, STEP: tl.constexpr):
    """Rows relative to the first one of a program, which is a multiple of STEP; those beyond N rows repeat the last."""
    if N % STEP == 0:
        return row
    return tl.minimum(row, N - 1 - first)


@triton.jit
def multiply(
    weight_ptr,
    scale_ptr,
    first_weight_row,
    weight_row,
    input_ptr,
    first_input_row,
    input_mask,
    STRIDE: tl.constexpr,
    K: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SLICES: tl.constexpr,
    FORMAT: tl.constexpr,
    ASSEMBLY: tl.constexpr,
):
    """Weight rows times input rows, [weight rows, input rows] float32.

    Weight rows are relative to a first one, and none may lie outside of the matrix. The input rows are the first one
    and those that follow it, as many as `input_mask` has. What a whole program has in common is one addition to a
    pointer; in every thread's addresses it would take registers through the loop.
    """
    weight_ptr += first_weight_row * (K // 2 if FORMAT == NF4 else K)
    if scale_ptr is not None:
        scale_ptr += first_weight_row * (K // BLOCK_K if FORMAT == NF4 else 1)
    weights = weight_row[None, :, None]
    inputs = input_ptr + first_input_row * STRIDE + tl.arange(0, input_mask.shape[0])[None, :, None] * STRIDE
    wanted = input_mask[None, :, None]
    if FORMAT == NF4:
        product = _multiply_nf4(weight_ptr, scale_ptr, weights, inputs, wanted, K, BLOCK_K, SLICES, ASSEMBLY)
    else:
        product = _multiply(weight_ptr + weights * K, inputs, wanted, K, UNIT, BLOCK_K, SLICES)
    if FORMAT == INT8:
        product *= (tl.load(scale_ptr + weight_row) * PER_ABSMAX)[:, None]
    return product


@triton.jit
def _multiply(
    weights,
    inputs,
    wanted,
    K: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SLICES: tl.constexpr,
):
    """weights: pointers [1, weight rows, 1]; inputs, wanted: pointers and mask [1, input rows, 1]."""
    even: tl.constexpr = K % (SLICES * UNIT) == 0
    k = _slices_first(K, UNIT, SLICES) + tl.arange(0, BLOCK_K)[None, None, :]
    weights += k
    inputs += k
    total = tl.zeros((SLICES, weights.shape[1], inputs.shape[1]), tl.float32)
    for step in range(0, tl.cdiv(K, SLICES * UNIT) * UNIT, BLOCK_K):
        if even:
            weight = tl.load(weights + step)
            block = tl.load(inputs + step, mask=wanted, other=0.0)
        else:
            weight = tl.load(weights + step, mask=k + step < K, other=0)
            block = tl.load(inputs + step, mask=wanted & (k + step < K), other=0.0)
        total = tl.dot(weight.to(block.dtype), block.permute(0, 2, 1), total, input_precision="ieee")
    return ordered_sum(total.permute(1, 2, 0))


@triton.jit
def _multiply_nf4(
    weight_ptr,
    scale_ptr,
    weight_row,
    inputs,
    wanted,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SLICES: tl.constexpr,
    ASSEMBLY: tl.constexpr,
):
    """K is a multiple of BLOCK_K, which is the block of a scale: its bytes hold the first half low, the second high.

    A scale feeds no dot, so Triton does not load it ahead of its iteration: it is loaded here one iteration ahead.
    """
    half: tl.constexpr = BLOCK_K // 2
    blocks: tl.constexpr = K // BLOCK_K
    iterations: tl.constexpr = (blocks + SLICES - 1) // SLICES  # not tl.cdiv, from which Triton 3.6 cannot subtract
    even: tl.constexpr = blocks % SLICES == 0
    first = _slices_first(blocks, 1, SLICES)
    byte = tl.arange(0, half)[None, None, :]
    weights = weight_ptr + weight_row * (K // 2) + first * half + byte
    scales = scale_ptr + weight_row * blocks + first
    inputs += first * BLOCK_K + byte
    zeros = tl.zeros((SLICES, weight_row.shape[1], inputs.shape[1]), tl.float32)
    total = zeros
    scale = tl.load(scales) if even else tl.load(scales, mask=first < blocks, other=0.0)
    for block in range(iterations):
        after = tl.minimum(block + 1, iterations - 1)
        here = wanted if even else wanted & (first + block < blocks)
        if even:
            packed = tl.load(weights + block * half)
            next_scale = tl.load(scales + after)
        else:
            packed = tl.load(weights + block * half, mask=first + block < blocks, other=0)
            next_scale = tl.load(scales + after, mask=first + after < blocks, other=0.0)
        early = tl.load(inputs + block * BLOCK_K, mask=here, other=0.0)
        late = tl.load(inputs + block * BLOCK_K + half, mask=here, other=0.0)
        low, high = nf4_levels(packed, early.dtype, ASSEMBLY)
        part = tl.dot(low, early.permute(0, 2, 1), zeros, input_precision="ieee")
        part = tl.dot(high, late.permute(0, 2, 1), part, input_precision="ieee")
        total = tl.fma(part, scale.broadcast_to(part.shape), total)
        scale = next_scale
    return ordered_sum(total.permute(1, 2, 0))
