"""x += y W^T for one row of each of many requests, and what the next norm needs of the new x (see `norm.Residual`)."""

import torch

from .cpu.onednn import LinearWeight, PackedInt8Weight
from .dispatch import architecture, launch, pdl_sync, require_contiguous, tl, triton, uses_triton
from .linear import step_linear
from .matmul import Tiling, multiply, operands, rows_from, takes_all_registers
from .norm import TILE, Residual, headroom, store_residual


def residual_linear_ref(
    inputs: torch.Tensor, weight: LinearWeight, residual: Residual, uncond_cross_out: torch.Tensor | None
) -> torch.Tensor:
    """The new x, [R, D] float32."""
    change = step_linear(inputs, weight).float()
    if uncond_cross_out is not None:
        change = torch.stack((uncond_cross_out.expand_as(change), change), dim=1).view_as(residual.x)
    return residual.x + change


def residual_linear(
    inputs: torch.Tensor,
    weight: LinearWeight,
    residual: Residual,
    norm_weight: torch.Tensor,
    uncond_cross_out: torch.Tensor | None = None,
) -> None:
    """Add a projection to the residual, in place.

    Args:
        inputs: [R, K] in the weight's dtype; [R / 2, K] with `uncond_cross_out`.
        weight: [D, K].
        residual: R rows.
        norm_weight: [D] float32, of the norm that reads the residual next.
        uncond_cross_out: [D] float32 or None. If given, row i of the product is added to residual row 2i + 1
            (conditional), and this constant to every row 2i (unconditional).
    """
    rows, width = residual.x.shape
    wanted = (rows if uncond_cross_out is None else rows // 2, weight.shape[1])
    if tuple(inputs.shape) != wanted or weight.shape[0] != width:
        raise ValueError(
            f"residual_linear: inputs {list(inputs.shape)} and weight {list(weight.shape)} do not give {rows} x {width}"
        )
    if isinstance(weight, PackedInt8Weight) or not uses_triton(inputs):
        residual.write(residual_linear_ref(inputs, weight, residual, uncond_cross_out), norm_weight)
        return
    require_contiguous(inputs=inputs, residual=residual.x)
    tiling = Tiling.choose(weight, TILE, inputs.shape[0], architecture(inputs.device))
    launch(
        _residual_linear_kernel,
        tiling.grid(inputs.shape[0], width),
        {
            "input_ptr": inputs,
            **operands(weight),
            "x_ptr": residual.x,
            "z_ptr": residual.z,
            "squares_ptr": residual.squares,
            "norm_ptr": norm_weight,
            "constant_ptr": uncond_cross_out,
            "rows": inputs.shape[0],
        },
        {"N": width, "HEADROOM": headroom(residual.z.dtype), **tiling.constants(weight, inputs)},
        warps=tiling.warps,
        stages=tiling.stages,
        registers=tiling.registers(weight, architecture(inputs.device)),
        device=inputs.device,
        fuses_multiply_add=False,  # see `matmul`
    )


@triton.jit(do_not_specialize=["rows"])
def _residual_linear_kernel(
    input_ptr,
    weight_ptr,
    scale_ptr,
    x_ptr,
    z_ptr,
    squares_ptr,
    norm_ptr,
    constant_ptr,
    rows,
    N: tl.constexpr,
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
    tile = tl.program_id(1)
    first = tile * TILE
    column = first + tl.arange(0, TILE)
    in_width = column < N
    pdl_sync(DEPENDENT)
    mask = row < rows
    inside = in_width[:, None] & mask[None, :]
    if constant_ptr is None:
        target = row
    else:
        target = 2 * row + 1
        constant = tl.load(constant_ptr + column, mask=in_width, other=0.0)
        uncond_x = tl.load(x_ptr + (2 * row)[None, :] * N + column[:, None], mask=inside, other=0.0)
    is_full: tl.constexpr = takes_all_registers(FORMAT, BLOCK_M)
    if not is_full:
        x = tl.load(x_ptr + target[None, :] * N + column[:, None], mask=inside, other=0.0)
    y = multiply(
        weight_ptr,
        scale_ptr,
        first,
        rows_from(first, tl.arange(0, TILE), N, TILE),
        input_ptr,
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
    if is_full:
        x = tl.load(x_ptr + target[None, :] * N + column[:, None], mask=inside, other=0.0)
    x += y
    # Several threads may hold a copy of the same element of x: all must have read it before one of them overwrites it.
    tl.debug_barrier()
    store_residual(x, x_ptr, z_ptr, squares_ptr, norm_ptr, target, mask, tile, column, in_width, N, HEADROOM)
    if constant_ptr is not None:
        uncond_x += constant[:, None]
        store_residual(
            uncond_x, x_ptr, z_ptr, squares_ptr, norm_ptr, 2 * row, mask, tile, column, in_width, N, HEADROOM
        )
