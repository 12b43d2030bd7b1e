"""y = RMSNorm(x) W^T for one row of each of many requests, from the residual as `norm.Residual` carries it."""

import torch

from .cpu.onednn import LinearWeight, PackedInt8Weight
from .dispatch import architecture, launch, pdl_sync, require_contiguous, tl, triton, uses_triton
from .linear import step_linear
from .matmul import Tiling, multiply, operands, rows_from
from .norm import FEWEST_PARTIALS, TILE, Residual, headroom, load_squares, norm_scale


def norm_linear_ref(residual: Residual, weight: LinearWeight, eps: float) -> torch.Tensor:
    """[M, N] float32."""
    return step_linear(residual.z, weight).float() * residual.scale(eps)


def norm_linear(residual: Residual, weight: LinearWeight, eps: float, out: torch.Tensor) -> None:
    """Project the normed residual.

    Args:
        residual: M rows.
        weight: [N, D].
        eps: of the norm.
        out: [M, N] any float dtype, rounded once.
    """
    rows, outputs = out.shape
    if (rows, weight.shape[1]) != residual.z.shape or outputs != weight.shape[0]:
        raise ValueError(f"norm_linear: out {list(out.shape)} is not {list(residual.z.shape)} x {list(weight.shape)}^T")
    if isinstance(weight, PackedInt8Weight) or not uses_triton(out):
        out.copy_(norm_linear_ref(residual, weight, eps))
        return
    require_contiguous(out=out)
    tiling = Tiling.choose(weight, TILE, rows, architecture(out.device))
    launch(
        _norm_linear_kernel,
        tiling.grid(rows, outputs),
        {"z_ptr": residual.z, "squares_ptr": residual.squares, **operands(weight), "out_ptr": out, "rows": rows},
        {"N": outputs, **norm_constants(residual, eps), **tiling.constants(weight, residual.z)},
        warps=tiling.warps,
        stages=tiling.stages,
        registers=tiling.registers(weight, architecture(out.device)),
        device=out.device,
        fuses_multiply_add=False,  # see `matmul`
    )


def norm_constants(residual: Residual, eps: float) -> dict[str, int | float]:
    partials = residual.squares.shape[1]
    return {
        "SQUARES_STRIDE": residual.squares.stride(0),
        "PARTIALS": partials,
        "BLOCK_P": max(FEWEST_PARTIALS, triton.next_power_of_2(partials)),
        "EPS": eps,
        "HEADROOM": headroom(residual.z.dtype),
    }


@triton.jit(do_not_specialize=["rows"])
def _norm_linear_kernel(
    z_ptr,
    squares_ptr,
    weight_ptr,
    scale_ptr,
    out_ptr,
    rows,
    N: tl.constexpr,
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
    first = tl.program_id(1) * TILE
    column = first + tl.arange(0, TILE)
    pdl_sync(DEPENDENT)
    mask = row < rows
    squares = load_squares(squares_ptr, row, mask, SQUARES_STRIDE, PARTIALS, BLOCK_P)
    y = multiply(
        weight_ptr,
        scale_ptr,
        first,
        rows_from(first, tl.arange(0, TILE), N, TILE),
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
    y = y * norm_scale(squares, K, EPS, HEADROOM)[None, :]
    inside = (column < N)[:, None] & mask[None, :]
    tl.store(out_ptr + row[None, :] * N + column[:, None], y.to(out_ptr.dtype.element_ty), mask=inside)
