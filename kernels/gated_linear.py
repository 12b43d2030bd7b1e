"""h = silu(gate) * up with gate, up = RMSNorm(x) W^T, for one row of each of many requests.

W [2F, D] holds the gate's rows first. A program takes 16 of them and the 16 of `up` that belong to them.
"""

import torch
import torch.nn.functional as F

from .cpu.onednn import LinearWeight, PackedInt8Weight
from .dispatch import architecture, launch, pdl_sync, require_contiguous, tl, triton, uses_triton
from .matmul import Tiling, multiply, operands, rows_from, takes_all_registers
from .norm import Residual, load_squares, norm_scale
from .norm_linear import norm_constants, norm_linear_ref

TILE = 32  # weight rows of a program


def gated_linear_ref(residual: Residual, weight: LinearWeight, eps: float) -> torch.Tensor:
    """[R, F] float32."""
    gate, up = norm_linear_ref(residual, weight, eps).chunk(2, dim=-1)
    return F.silu(gate) * up


def gated_linear(residual: Residual, weight: LinearWeight, eps: float, out: torch.Tensor) -> None:
    """The first half of an MLP.

    Args:
        residual: R rows.
        weight: [2F, D], gate before up.
        eps: of the norm.
        out: [R, F] in the model's dtype.
    """
    rows, outputs = out.shape
    if (rows, weight.shape[1]) != residual.z.shape or 2 * outputs != weight.shape[0]:
        raise ValueError(f"gated_linear: out {list(out.shape)} is not half of {list(weight.shape)} x {rows} rows")
    if isinstance(weight, PackedInt8Weight) or not uses_triton(out):
        out.copy_(gated_linear_ref(residual, weight, eps))
        return
    require_contiguous(out=out)
    tiling = Tiling.choose(weight, TILE, rows, architecture(out.device))
    launch(
        _gated_linear_kernel,
        tiling.grid(rows, 2 * outputs),
        {"z_ptr": residual.z, "squares_ptr": residual.squares, **operands(weight), "out_ptr": out, "rows": rows},
        {"F": outputs, **norm_constants(residual, eps), **tiling.constants(weight, residual.z)},
        warps=tiling.warps,
        stages=tiling.stages,
        device=out.device,
        fuses_multiply_add=False,  # see `matmul`
    )


@triton.jit(do_not_specialize=["rows"])
def _gated_linear_kernel(
    z_ptr,
    squares_ptr,
    weight_ptr,
    scale_ptr,
    out_ptr,
    rows,
    F: tl.constexpr,
    SQUARES_STRIDE: tl.constexpr,
    PARTIALS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    EPS: tl.constexpr,
    HEADROOM: tl.constexpr,
    FORMAT: tl.constexpr,
    ASSEMBLY: tl.constexpr,
    STRIDE: tl.constexpr,
    K: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SLICES: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    first_row = tl.program_id(0) * BLOCK_M
    row = first_row + tl.arange(0, BLOCK_M)
    first = tl.program_id(1) * (TILE // 2)
    # Even rows of the tile are gate, odd ones up: neighbors then sit in the same thread's registers.
    place = tl.arange(0, TILE)
    weight_row = rows_from(first, place // 2, F, TILE // 2) + (place % 2) * F
    pdl_sync(DEPENDENT)
    mask = row < rows
    squares = load_squares(squares_ptr, row, mask, SQUARES_STRIDE, PARTIALS, BLOCK_P)
    is_full: tl.constexpr = takes_all_registers(FORMAT, BLOCK_M)
    if is_full:
        scale = norm_scale(squares, K, EPS, HEADROOM)
    y = multiply(
        weight_ptr,
        scale_ptr,
        first,
        weight_row,
        z_ptr,
        first_row,
        mask,
        STRIDE,
        K,
        UNIT,
        BLOCK_K,
        SLICES,
        FORMAT,
        ASSEMBLY,
    )
    if not is_full:
        scale = norm_scale(squares, K, EPS, HEADROOM)
    y = y * scale[None, :]
    gate, up = y.reshape(TILE // 2, 2, BLOCK_M).permute(0, 2, 1).split()
    hidden = gate / (1.0 + tl.exp(-gate)) * up
    column = first + tl.arange(0, TILE // 2)
    inside = (column < F)[:, None] & mask[None, :]
    tl.store(out_ptr + row[None, :] * F + column[:, None], hidden.to(out_ptr.dtype.element_ty), mask=inside)
