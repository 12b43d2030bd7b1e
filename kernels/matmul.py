"""The loop that the projections of a decode step share: a tile of weight rows times all input rows.

Weights are the tall operand of the tensor cores (16 rows), the few input rows the narrow one (8 to 64, padded). A
program's K columns are cut into slices, which form the batch axis of a three-dimensional dot: every warp multiplies its
own slice of the same weight rows, so all warps load different weights, and one sum over the slices ends it.

Quantized weights are decoded between load and dot, in registers. int8 turns into the inputs' dtype exactly and is
scaled after the sum. NF4 levels are rounded to the inputs' dtype, and a block's scale multiplies its partial sum in
float32.

How a row is summed depends on nothing but K, the format, the dtype and the architecture, so it comes out alike in any
batch and at any place in it: a slice adds its columns from left to right, and which columns those are is decided by
`unit` and `slices`, never by the number of rows. `ordered_sum` adds the slices. Nor may the compiler fuse a
multiplication and an addition by itself in these kernels: it does so where one thread happens to hold both, which
follows the register layout, and so the number of rows. What is to be fused is written as `tl.fma`; dots are fused in
any case.

NF4 halves the bytes of int8 and still is not faster on an H100 or H200: the first half of an MLP executes 6.4 machine
instructions per weight for one request, 129 % of what an H100 can issue while the weights arrive and 185 % of what an
H200 can (int8: 4.3, 48 % and 69 %; NF4 on an RTX 4090 27 %, A4000 51 %). Computed from the compiled code and the data
sheets' clocks and bandwidths (`python -m benchmarks.predict --kernels`), not measured. Prefer int8 there; NF4 pays on
GPUs with less memory bandwidth, and where memory is short.
"""

import dataclasses
import os
from dataclasses import dataclass

import torch

from . import quantized as formats
from .architectures import SHARED_MEMORY_LIMIT
from .dispatch import prefetch_l2, require_contiguous, takes_ptx, tl, triton
from .nf4 import nf4_levels
from .ordered_sum import ordered_sum
from .quantized import Int8Weight, NF4Weight, Weight

BLOCK = formats.BLOCK
KINDS = {Int8Weight: 1, NF4Weight: 2}  # what the kernels call FORMAT, 0 for a plain matrix
INT8 = tl.constexpr(KINDS[Int8Weight])
NF4 = tl.constexpr(KINDS[NF4Weight])
PER_ABSMAX = tl.constexpr(formats.PER_ABSMAX)
RESERVED = 1024  # bytes of shared memory that CUDA keeps of each program
LEAST_LIMIT = min(SHARED_MEMORY_LIMIT.values())


@dataclass
class Tuning:
    """What only a GPU can judge. Read at each launch; a step that was captured before stays as it is."""

    # Slices take turns along K instead of a contiguous share each, so that one iteration of a program reads adjacent
    # lines. Another order of sums: results differ in the last bits.
    interleaved: bool = False
    # 64 instead of 32 weight rows in programs with 32 input rows whose kernel takes at least 32 (gate and up): fewer
    # bytes from the L2 cache, but so many registers that the next kernel does not fit beside. No other bits.
    widest_tile: int = 32

    @classmethod
    def read(cls) -> "Tuning":
        """From environment variables, DIA_TUNE_INTERLEAVED=1 and DIA_TUNE_WIDEST_TILE=64.

        Raises:
            ValueError: one of them has a value that it cannot have.
        """
        interleaved = os.environ.get("DIA_TUNE_INTERLEAVED", "0")
        if interleaved not in ("0", "1"):
            raise ValueError(f"DIA_TUNE_INTERLEAVED must be 0 or 1, got {interleaved!r}")
        widest = os.environ.get("DIA_TUNE_WIDEST_TILE", "32")
        if widest not in ("32", "64"):
            raise ValueError(f"DIA_TUNE_WIDEST_TILE must be 32 or 64, got {widest!r}")
        return cls(interleaved=interleaved == "1", widest_tile=int(widest))


TUNING = Tuning.read()


def operands(weight: Weight) -> dict[str, torch.Tensor | None]:
    """The kernels' arguments for a weight: its numbers and its scales.

    Raises:
        ValueError: they are not contiguous.
    """
    if isinstance(weight, torch.Tensor):
        require_contiguous(weight=weight)
        return {"weight_ptr": weight, "scale_ptr": None}
    require_contiguous(weight=_numbers(weight), absmax=weight.absmax)
    return {"weight_ptr": _numbers(weight), "scale_ptr": weight.absmax}


def _numbers(weight: Weight) -> torch.Tensor:
    """The weight without its scales."""
    if isinstance(weight, torch.Tensor):
        return weight
    return weight.values if isinstance(weight, Int8Weight) else weight.packed


@dataclass(frozen=True)
class Tiling:
    """How one projection is cut up.

    `unit`, `slices` and `interleaved` decide the order of its sums and must not depend on the number of rows. The rest
    may: a unit is added up from left to right in however many blocks.
    """

    tile: int  # weight rows of a program
    block_m: int  # input rows of a program
    unit: int  # columns that belong to one slice
    block_k: int  # columns of each slice in one iteration, a divisor of `unit`
    slices: int  # of K
    stages: int  # Triton's; one less is the number of iterations that have room in shared memory
    interleaved: bool

    @classmethod
    def choose(cls, weight: Weight, tile: int, rows: int, architecture: int | str) -> "Tiling":
        """The tiling for `rows` input rows; `tile` is the smallest number of weight rows that the kernel can take."""
        limit = SHARED_MEMORY_LIMIT.get(architecture, LEAST_LIMIT)
        half = (limit + RESERVED) // 2 - RESERVED  # two programs, or a program and its successor's, fit on one
        roomy = half > 64 * 1024
        size = weight.dtype.itemsize
        quantized = type(weight) in KINDS
        # Quantized: a block of NF4 per iteration, whose scale then is one number per row, and as much of int8.
        unit = BLOCK if quantized else (128 if roomy else 64) // size
        # A float32 product keeps the decoded weights in shared memory too: with 8 slices they do not fit everywhere.
        slices = 4 if quantized and size == 4 else 8
        for wide_tile, block_m in _tiles(weight, tile, rows, architecture):
            fitted = cls(wide_tile, block_m, unit, unit, slices, 0, TUNING.interleaved)._fitted(weight, half, limit)
            if fitted and isinstance(architecture, str):
                return dataclasses.replace(fitted, stages=2)  # on AMD an iteration in flight lies in registers
            if fitted:
                return fitted
        raise ValueError(f"no tiling of {list(weight.shape)} fits {limit} bytes of shared memory")

    def _fitted(self, weight: Weight, half: int, limit: int) -> "Tiling | None":
        """With blocks and stages for half of a multiprocessor's shared memory, or else for all of it.

        A program of 64 input rows, or of 32 and NF4, has so many registers that no other fits beside it anyway.
        """
        quantized = type(weight) in KINDS
        alone = self.block_m == 64 or (self.block_m == 32 and isinstance(weight, NF4Weight))
        # NF4's blocks share a scale. Of others, 16 columns are one tensor-core product, and 32 bytes one sector.
        least = BLOCK if isinstance(weight, NF4Weight) else 32 if quantized else 16
        for bound in (limit,) if alone else (half, limit):
            # With wide tiles, more columns in an iteration are more registers than there are (Triton 3.5 and 3.6).
            block_k = self.unit if self.block_m < 32 else max(least, min(self.unit, 32))
            while block_k >= least:
                # Quantized weights have fewer bytes per iteration, so more iterations are in flight.
                most = (8 if quantized else 4) * self.unit // block_k
                fitting = [
                    ahead for ahead in range(2, most + 1) if self._shared_memory(weight, block_k, ahead) <= bound
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
            decoded = columns * 4 * (inputs + (self.tile if type(weight) in KINDS else 0))
        sums = self.slices * self.tile * self.block_m * 4
        return max(ahead * staged + decoded, sums)

    def grid(self, rows: int, outputs: int) -> tuple[int, int]:
        """Of a matrix with `outputs` rows. Programs that share weights are neighbors: all but one find them in L2."""
        return (triton.cdiv(rows, self.block_m), triton.cdiv(outputs, self.tile))

    def constants(self, weight: Weight, inputs: torch.Tensor) -> dict[str, int]:
        return {
            "FORMAT": KINDS.get(type(weight), 0),
            "ASSEMBLY": takes_ptx(inputs.device),
            "STRIDE": inputs.stride(0),
            "K": weight.shape[1],
            "TILE": self.tile,
            "BLOCK_M": self.block_m,
            "UNIT": self.unit,
            "BLOCK_K": self.block_k,
            "SLICES": self.slices,
            "INTERLEAVED": self.interleaved,
        }


def _tiles(weight: Weight, tile: int, rows: int, architecture: int | str) -> list[tuple[int, int]]:
    """Weight rows and input rows of a program, the best first; the first that fits is taken.

    Every program reads its weights and its inputs from the L2 cache: in all, the weights once per block of input rows,
    the inputs once per tile of weight rows. From 17 rows on that is more than the L2 cache delivers while the weights
    come from memory, so both are larger there.
    """
    if isinstance(architecture, str):
        # AMD's matrix cores take 16 input rows at least (8 would spill hundreds of registers), and 32 x 32 products
        # add in another order than 16 x 16: one size for any batch.
        return [(tile, 16), (tile, 8)]
    # Triton uses none for float32 nor before the Ampere generation; 32 x 16 would spill.
    without_tensor_cores = weight.dtype.itemsize == 4 or architecture < 80
    if rows <= 8 or (without_tensor_cores and tile > 16):
        return [(tile, 8)]
    if rows <= 16 or without_tensor_cores:
        return [(tile, 16), (tile, 8)]
    tiles = [(max(32, min(2 * tile, TUNING.widest_tile)), 32), (32, 32), (tile, 16)]
    # Decoded NF4 and 64 input rows are more registers than there are.
    return tiles if rows <= 32 or isinstance(weight, NF4Weight) else [(32, 64), *tiles]


@triton.jit
def _slices_first(K: tl.constexpr, UNIT: tl.constexpr, SLICES: tl.constexpr, INTERLEAVED: tl.constexpr):
    """The first column of each slice, [SLICES, 1, 1]."""
    return tl.arange(0, SLICES)[:, None, None] * (UNIT if INTERLEAVED else tl.cdiv(K, SLICES * UNIT) * UNIT)


@triton.jit
def _step(start, UNIT: tl.constexpr, BLOCK_K: tl.constexpr, SLICES: tl.constexpr, INTERLEAVED: tl.constexpr):
    """How far a slice's column number `start` is from its first, in the matrix."""
    if INTERLEAVED and BLOCK_K == UNIT:
        step = start * SLICES
    elif INTERLEAVED:
        step = start // UNIT * (UNIT * SLICES) + start % UNIT
    else:
        step = start
    return step


@triton.jit
def prefetch(
    weight_ptr,
    scale_ptr,
    weight_row,
    K: tl.constexpr,
    UNIT: tl.constexpr,
    SLICES: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    FORMAT: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Ask for the first weights and NF4's scales to come to the L2 cache while the kernel before this still runs."""
    if DEPENDENT:
        share: tl.constexpr = 2 if FORMAT == NF4 else 1  # weights in an element
        columns: tl.constexpr = K // share
        line: tl.constexpr = 1024 // weight_ptr.dtype.element_ty.primitive_bitwidth  # elements in 128 bytes
        span: tl.constexpr = 4 * line if INTERLEAVED else tl.cdiv(K, SLICES * UNIT) * UNIT // share
        k = tl.arange(0, SLICES)[:, None, None] * span + tl.arange(0, 4)[None, None, :] * line
        prefetch_l2(weight_ptr + weight_row[None, :, None] * columns + tl.minimum(k, columns - 1))
        if FORMAT == NF4:
            blocks: tl.constexpr = K // UNIT
            lines: tl.constexpr = 1 if blocks <= 32 else 2 if blocks <= 64 else 4
            block = tl.minimum(tl.arange(0, lines)[None, :] * 32, blocks - 1)
            prefetch_l2(scale_ptr + weight_row[:, None] * blocks + block)


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
    UNIT: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SLICES: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    FORMAT: tl.constexpr,
    ASSEMBLY: tl.constexpr,
):
    """Weight rows times input rows, [weight rows, input rows] float32. Weight rows outside the matrix: not allowed."""
    weights = weight_row[None, :, None]
    inputs = input_ptr + input_row[None, :, None] * STRIDE
    wanted = input_mask[None, :, None]
    if FORMAT == NF4:
        product = _multiply_nf4(
            weight_ptr, scale_ptr, weights, inputs, wanted, K, BLOCK_K, SLICES, INTERLEAVED, ASSEMBLY
        )
    else:
        product = _multiply(weight_ptr + weights * K, inputs, wanted, K, UNIT, BLOCK_K, SLICES, INTERLEAVED)
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
    INTERLEAVED: tl.constexpr,
):
    """weights: pointers [1, weight rows, 1]; inputs, wanted: pointers and mask [1, input rows, 1]."""
    even: tl.constexpr = K % (SLICES * UNIT) == 0
    k = _slices_first(K, UNIT, SLICES, INTERLEAVED) + tl.arange(0, BLOCK_K)[None, None, :]
    weights += k
    inputs += k
    total = tl.zeros((SLICES, weights.shape[1], inputs.shape[1]), tl.float32)
    for start in range(0, tl.cdiv(K, SLICES * UNIT) * UNIT, BLOCK_K):
        step = _step(start, UNIT, BLOCK_K, SLICES, INTERLEAVED)
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
    INTERLEAVED: tl.constexpr,
    ASSEMBLY: tl.constexpr,
):
    """K is a multiple of BLOCK_K, which is the block of a scale: its bytes hold the first half low, the second high.

    A scale feeds no dot, so Triton does not load it ahead of its iteration: it is loaded here one iteration ahead.
    """
    half: tl.constexpr = BLOCK_K // 2
    blocks: tl.constexpr = K // BLOCK_K
    iterations: tl.constexpr = (blocks + SLICES - 1) // SLICES  # not tl.cdiv, from which Triton 3.6 cannot subtract
    even: tl.constexpr = blocks % SLICES == 0
    first = _slices_first(blocks, 1, SLICES, INTERLEAVED)
    byte = tl.arange(0, half)[None, None, :]
    weights = weight_ptr + weight_row * (K // 2) + first * half + byte
    scales = scale_ptr + weight_row * blocks + first
    inputs += first * BLOCK_K + byte
    zeros = tl.zeros((SLICES, weight_row.shape[1], inputs.shape[1]), tl.float32)
    total = zeros
    scale = tl.load(scales) if even else tl.load(scales, mask=first < blocks, other=0.0)
    for iteration in range(iterations):
        block = _step(iteration, 1, 1, SLICES, INTERLEAVED)
        after = _step(tl.minimum(iteration + 1, iterations - 1), 1, 1, SLICES, INTERLEAVED)
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
