"""A whole int8 or NF4 matrix read back in one launch, for the products of a prefill on a GPU.

`Weight.dequantize` is the reference: it works through a matrix in pieces of a few torch operations each, which keeps a
CPU's memory small, and would make a GPU wait for the host. The kernels give the same bits: values and scales are
multiplied in float32, in the reference's order, and rounded once.
"""

import torch

from . import quantized
from .dispatch import launch, pdl_sync, require_contiguous, tl, triton, uses_triton
from .nf4 import nf4_levels
from .quantized import Int8Weight, NF4Weight

ROWS, COLUMNS = 8, 512  # of an int8 matrix, per program
BLOCKS = 128  # of NF4, per program
BLOCK = tl.constexpr(quantized.BLOCK)
PER_ABSMAX = tl.constexpr(quantized.PER_ABSMAX)


def dequantize(weight: Int8Weight | NF4Weight) -> torch.Tensor:
    """The matrix [N, K] in the weight's dtype, bit for bit `weight.dequantize()`; on a GPU in one launch.

    Raises:
        ValueError: the weight's tensors are not contiguous.
    """
    if not uses_triton(weight.absmax):
        return weight.dequantize()
    matrix = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
    rows, columns = weight.shape
    grid: tuple[int, ...]
    if isinstance(weight, Int8Weight):
        kernel, numbers = _dequantize_int8_kernel, weight.values
        grid = (triton.cdiv(rows, ROWS), triton.cdiv(columns, COLUMNS))
        sizes, constants = {"rows": rows, "columns": columns}, {"ROWS": ROWS, "COLUMNS": COLUMNS}
    else:
        kernel, numbers = _dequantize_nf4_kernel, weight.packed
        grid = (triton.cdiv(weight.absmax.numel(), BLOCKS),)
        sizes, constants = {"blocks": weight.absmax.numel()}, {"BLOCKS": BLOCKS}
    require_contiguous(weight=numbers, absmax=weight.absmax)
    launch(
        kernel,
        grid,
        {"weight_ptr": numbers, "scale_ptr": weight.absmax, "out_ptr": matrix, **sizes},
        constants,
        warps=4,
        stages=1,
        device=weight.device,
        fuses_multiply_add=False,
    )
    return matrix


@triton.jit
def _dequantize_int8_kernel(
    weight_ptr,
    scale_ptr,
    out_ptr,
    rows,
    columns,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    pdl_sync(DEPENDENT)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    place = row.to(tl.int64)[:, None] * columns + column[None, :]
    value = tl.load(weight_ptr + place, mask=inside, other=0).to(tl.float32)
    scale = tl.load(scale_ptr + row, mask=row < rows, other=0.0)
    matrix = value * scale[:, None] * PER_ABSMAX
    tl.store(out_ptr + place, matrix.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _dequantize_nf4_kernel(
    weight_ptr,
    scale_ptr,
    out_ptr,
    blocks,
    BLOCKS: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Rows are whole blocks, so that the matrix is one long row of them."""
    pdl_sync(DEPENDENT)
    half: tl.constexpr = BLOCK // 2
    block = tl.program_id(0) * BLOCKS + tl.arange(0, BLOCKS)
    inside = (block < blocks)[:, None]
    byte = tl.arange(0, half)[None, :]
    start = block.to(tl.int64)[:, None]
    packed = tl.load(weight_ptr + start * half + byte, mask=inside, other=0)
    scale = tl.load(scale_ptr + block, mask=block < blocks, other=0.0)[:, None]
    low, high = nf4_levels(packed, tl.float32, False)
    out = out_ptr + start * BLOCK + byte
    tl.store(out, (low * scale).to(out_ptr.dtype.element_ty), mask=inside)
    tl.store(out + half, (high * scale).to(out_ptr.dtype.element_ty), mask=inside)
