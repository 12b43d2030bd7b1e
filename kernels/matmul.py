"""The loop that the projections of a decode step share: a tile of weight rows times all input rows.

Weights are the tall operand of the tensor cores (16 rows), the few input rows the narrow one (8, 16 or 32, padded). A
program's K columns are cut into slices, which form the batch axis of a three-dimensional dot: every warp multiplies its
own slice of the same 16 rows, so all warps load different weights, and one sum over the slices ends it.

Quantised weights are decoded between load and dot, in registers. int8 turns into the inputs' dtype exactly and is
scaled after the sum. NF4 levels are rounded to the inputs' dtype, and a block's scale multiplies its partial sum in
float32.

How a row is summed depends on nothing but K and the format, so it comes out alike in any batch and at any place in it.
"""

from dataclasses import dataclass

import torch

from . import quantized as formats
from .dispatch import require_contiguous, takes_ptx, tl, triton
from .nf4 import nf4_levels
from .quantized import Int8Weight, NF4Weight, Weight

SLICES = 8  # of K, one a warp
LARGE_SHARED_MEMORY = (80, 90, 100, 103)  # architectures with 160 KiB and more a multiprocessor, others have about 100
BLOCK = formats.BLOCK
KINDS = {Int8Weight: 1, NF4Weight: 2}  # what the kernels call FORMAT, 0 for a plain matrix
INT8 = tl.constexpr(KINDS[Int8Weight])
NF4 = tl.constexpr(KINDS[NF4Weight])
PER_ABSMAX = tl.constexpr(formats.PER_ABSMAX)


def operands(weight: Weight) -> dict[str, torch.Tensor | None]:
    """The kernels' arguments for a weight: its numbers and its scales.

    Raises:
        ValueError: they are not contiguous.
    """
    if isinstance(weight, torch.Tensor):
        require_contiguous(weight=weight)
        return {"weight_ptr": weight, "scale_ptr": None}
    numbers = weight.values if isinstance(weight, Int8Weight) else weight.packed
    require_contiguous(weight=numbers, absmax=weight.absmax)
    return {"weight_ptr": numbers, "scale_ptr": weight.absmax}


@dataclass(frozen=True)
class Tiling:
    """How one projection is cut up. Only `block_k` and SLICES touch the order of its sums."""

    tile: int  # weight rows of a program
    block_m: int  # input rows of a program
    block_k: int  # columns of each slice in one turn of the loop
    stages: int  # Triton's; one less is the number of turns that have room in shared memory

    @classmethod
    def choose(cls, weight: Weight, tile: int, rows: int, architecture: int) -> "Tiling":
        roomy = architecture in LARGE_SHARED_MEMORY
        size = weight.dtype.itemsize
        block_m = min(max(8, triton.next_power_of_2(rows)), 32 if roomy and size == 2 else 16)
        # Quantised: a block of NF4 a turn, whose scale then is one number a row, and as much of int8.
        block_k = BLOCK if type(weight) in KINDS else (128 if roomy else 64) // size
        turn = SLICES * block_k * (tile * weight.nbytes // weight.shape.numel() + block_m * size)
        # Half of a multiprocessor's shared memory, so that two programs, or a program and its successor's, fit on one.
        turns = max(2, min(4, (100 if roomy else 48) * 1024 // turn))
        return cls(tile, block_m, block_k, stages=turns + 1)

    def grid(self, rows: int, tiles: int) -> tuple[int, int]:
        """Programs that share weights are neighbours, so that all but one find them in the L2 cache."""
        return (triton.cdiv(rows, self.block_m), tiles)

    def constants(self, weight: Weight, inputs: torch.Tensor) -> dict[str, int]:
        return {
            "FORMAT": KINDS.get(type(weight), 0),
            "ASSEMBLY": takes_ptx(inputs.device),
            "ROWS": inputs.shape[0],
            "STRIDE": inputs.stride(0),
            "K": weight.shape[1],
            "TILE": self.tile,
            "BLOCK_M": self.block_m,
            "BLOCK_K": self.block_k,
            "SLICES": SLICES,
        }


@triton.jit
def prefetch(
    weight_ptr,
    weight_row,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SLICES: tl.constexpr,
    FORMAT: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Ask for the first turns' weights to come to the L2 cache while the kernel before this one still runs."""
    if DEPENDENT:
        share: tl.constexpr = 2 if FORMAT == NF4 else 1  # weights in an element
        span: tl.constexpr = tl.cdiv(K, SLICES * BLOCK_K) * BLOCK_K // share
        columns: tl.constexpr = K // share
        line = tl.arange(0, 4) * (1024 // weight_ptr.dtype.element_ty.primitive_bitwidth)  # of 128 bytes
        k = tl.arange(0, SLICES)[:, None, None] * span + line[None, None, :]
        k = tl.minimum(k, columns - 1)
        lines = (weight_ptr + weight_row[None, :, None] * columns + k).to(tl.int64)
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [lines], dtype=tl.int32, is_pure=False, pack=1
        )


@triton.jit
def multiply(
    weight_ptr,
    scale_ptr,
    weight_row,
    input_ptr,
    input_row,
    input_mask,
    STRIDE: tl.constexpr,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SLICES: tl.constexpr,
    FORMAT: tl.constexpr,
    ASSEMBLY: tl.constexpr,
):
    """Weight rows times input rows, [weight rows, input rows] float32. Weight rows outside the matrix: not allowed."""
    if FORMAT == NF4:
        product = _multiply_nf4(
            weight_ptr, scale_ptr, weight_row, input_ptr, input_row, input_mask, STRIDE, K, BLOCK_K, SLICES, ASSEMBLY
        )
    else:
        product = _multiply(weight_ptr, weight_row, input_ptr, input_row, input_mask, STRIDE, K, BLOCK_K, SLICES)
    if FORMAT == INT8:
        product *= (tl.load(scale_ptr + weight_row) * PER_ABSMAX)[:, None]
    return product


@triton.jit
def _multiply(
    weight_ptr,
    weight_row,
    input_ptr,
    input_row,
    input_mask,
    STRIDE: tl.constexpr,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SLICES: tl.constexpr,
):
    span: tl.constexpr = tl.cdiv(K, SLICES * BLOCK_K) * BLOCK_K
    even: tl.constexpr = K % (SLICES * BLOCK_K) == 0
    k = tl.arange(0, SLICES)[:, None, None] * span + tl.arange(0, BLOCK_K)[None, None, :]
    weights = weight_ptr + weight_row[None, :, None] * K + k
    inputs = input_ptr + input_row[None, :, None] * STRIDE + k
    wanted = input_mask[None, :, None]
    total = tl.zeros((SLICES, weight_row.shape[0], input_row.shape[0]), tl.float32)
    for start in range(0, span, BLOCK_K):
        if even:
            weight = tl.load(weights + start)
            block = tl.load(inputs + start, mask=wanted, other=0.0)
        else:
            weight = tl.load(weights + start, mask=k + start < K, other=0)
            block = tl.load(inputs + start, mask=wanted & (k + start < K), other=0.0)
        total = tl.dot(weight.to(block.dtype), block.permute(0, 2, 1), total, input_precision="ieee")
    return tl.sum(total, axis=0)


@triton.jit
def _multiply_nf4(
    weight_ptr,
    scale_ptr,
    weight_row,
    input_ptr,
    input_row,
    input_mask,
    STRIDE: tl.constexpr,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SLICES: tl.constexpr,
    ASSEMBLY: tl.constexpr,
):
    """K is a multiple of BLOCK_K, which is the block of a scale: its bytes hold the first half low, the second high."""
    half: tl.constexpr = BLOCK_K // 2
    blocks: tl.constexpr = K // BLOCK_K
    turns: tl.constexpr = tl.cdiv(blocks, SLICES)
    even: tl.constexpr = blocks % SLICES == 0
    first = tl.arange(0, SLICES)[:, None, None] * turns
    byte = tl.arange(0, half)[None, None, :]
    weights = weight_ptr + weight_row[None, :, None] * (K // 2) + first * half + byte
    scales = scale_ptr + weight_row[None, :, None] * blocks + first
    inputs = input_ptr + input_row[None, :, None] * STRIDE + first * BLOCK_K + byte
    wanted = input_mask[None, :, None]
    zeros = tl.zeros((SLICES, weight_row.shape[0], input_row.shape[0]), tl.float32)
    total = zeros
    for turn in range(0, turns):
        here = wanted if even else wanted & (first + turn < blocks)
        if even:
            packed = tl.load(weights + turn * half)
            scale = tl.load(scales + turn)
        else:
            packed = tl.load(weights + turn * half, mask=first + turn < blocks, other=0)
            scale = tl.load(scales + turn, mask=first + turn < blocks, other=0.0)
        early = tl.load(inputs + turn * BLOCK_K, mask=here, other=0.0)
        late = tl.load(inputs + turn * BLOCK_K + half, mask=here, other=0.0)
        low, high = nf4_levels(packed, early.dtype, ASSEMBLY)
        part = tl.dot(low, early.permute(0, 2, 1), zeros, input_precision="ieee")
        part = tl.dot(high, late.permute(0, 2, 1), part, input_precision="ieee")
        total += part * scale
    return tl.sum(total, axis=0)
