"""The loop that the projections of a decode step share: a tile of weight rows times all input rows.

Weights are the tall operand of the tensor cores (16 rows), the few input rows the narrow one (8, 16 or 32, padded). A
program's K columns are cut into slices, which form the batch axis of a three-dimensional dot: every warp multiplies its
own slice of the same 16 rows, so all warps load different weights, and one sum over the slices ends it.

How a row is summed depends on nothing but K, so it comes out alike in any batch and at any place in it.
"""

from dataclasses import dataclass

import torch

from .dispatch import tl, triton

SLICES = 8  # of K, one a warp
LARGE_SHARED_MEMORY = (80, 90, 100, 103)  # architectures with 160 KiB and more a multiprocessor, others have about 100


@dataclass(frozen=True)
class Tiling:
    """How one projection is cut up. Only `block_k` and SLICES touch the order of its sums."""

    tile: int  # weight rows of a program
    block_m: int  # input rows of a program
    block_k: int  # columns of each slice in one turn of the loop
    stages: int  # Triton's; one less is the number of turns that have room in shared memory

    @classmethod
    def choose(cls, weight: torch.Tensor, tile: int, rows: int, architecture: int) -> "Tiling":
        roomy = architecture in LARGE_SHARED_MEMORY
        block_m = min(max(8, triton.next_power_of_2(rows)), 32 if roomy and weight.element_size() == 2 else 16)
        block_k = (128 if roomy else 64) // weight.element_size()
        turn = SLICES * block_k * (tile + block_m) * weight.element_size()
        # Half of a multiprocessor's shared memory, so that two programs, or a program and its successor's, fit on one.
        turns = max(2, min(4, (100 if roomy else 48) * 1024 // turn))
        return cls(tile, block_m, block_k, stages=turns + 1)

    def grid(self, rows: int, tiles: int) -> tuple[int, int]:
        """Programs that share weights are neighbours, so that all but one find them in the L2 cache."""
        return (triton.cdiv(rows, self.block_m), tiles)

    def constants(self, weight: torch.Tensor, inputs: torch.Tensor) -> dict[str, int]:
        return {
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
    DEPENDENT: tl.constexpr,
):
    """Ask for the first turns' weights to come to the L2 cache while the kernel before this one still runs."""
    if DEPENDENT:
        span: tl.constexpr = tl.cdiv(K, SLICES * BLOCK_K) * BLOCK_K
        line = tl.arange(0, 4) * (1024 // weight_ptr.dtype.element_ty.primitive_bitwidth)  # of 128 bytes
        k = tl.arange(0, SLICES)[:, None, None] * span + line[None, None, :]
        k = tl.minimum(k, K - 1)
        lines = (weight_ptr + weight_row[None, :, None] * K + k).to(tl.int64)
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [lines], dtype=tl.int32, is_pure=False, pack=1
        )


@triton.jit
def multiply(
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
    """Weight rows times input rows, [weight rows, input rows] float32. Weight rows outside the matrix: not allowed."""
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
            weight = tl.load(weights + start, mask=k + start < K, other=0.0)
            block = tl.load(inputs + start, mask=wanted & (k + start < K), other=0.0)
        total = tl.dot(weight, block.permute(0, 2, 1), total, input_precision="ieee")
    return tl.sum(total, axis=0)
