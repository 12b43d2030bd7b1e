"""Query, key and value of a decode step: q, k, v = RMSNorm(x) W^T, q and k rotated (see `rope`), k and v cached.

W [(H + 2G) Dh, D] holds the heads of q, then of k, then of v. A program takes pairs of rows that are rotated together,
(i, i + Dh / 2) of a head, so that it can rotate them by itself.
"""

import torch

from .cpu.onednn import LinearWeight, PackedInt8Weight
from .dispatch import architecture, launch, pdl_sync, require_contiguous, tl, triton, uses_triton
from .matmul import Tiling, multiply, operands, takes_all_registers
from .norm import TILE, Residual, load_squares, norm_scale
from .norm_linear import norm_constants, norm_linear_ref
from .rope import apply_rope


def project_qkv_ref(
    residual: Residual,
    weight: LinearWeight,
    eps: float,
    rope: tuple[torch.Tensor, torch.Tensor],
    position: torch.Tensor,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
) -> None:
    rows, groups, _, head_dim = keys.shape
    qkv = norm_linear_ref(residual, weight, eps).to(query.dtype).view(rows, -1, head_dim)
    heads = qkv.shape[1] - 2 * groups
    position = position.repeat_interleave(2)
    angles = tuple(table[position] for table in rope)
    every_row = torch.arange(rows, device=query.device)
    rotated = apply_rope(qkv[:, : heads + groups], *angles)
    query.copy_(rotated[:, :heads])
    keys[every_row, :, position] = rotated[:, heads:]
    values[every_row, :, position] = qkv[:, heads + groups :]


def project_qkv(
    residual: Residual,
    weight: LinearWeight,
    eps: float,
    rope: tuple[torch.Tensor, torch.Tensor],
    position: torch.Tensor,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
) -> None:
    """Project the normed residual, rotate, and write the cache at each slot's position.

    Args:
        residual: R = 2B rows.
        weight: [(H + 2G) Dh, D].
        eps: of the norm.
        rope: cosines and sines [positions, Dh / 2] float32.
        position: [B] int64, below T and the table's positions; rows 2i and 2i + 1 belong to slot i.
        query: [R, H, Dh], written.
        keys, values: caches [R, G, T, Dh], one position of each row is written.
    """
    rows, heads, head_dim = query.shape
    groups = keys.shape[1]
    if weight.shape[0] != (heads + 2 * groups) * head_dim or residual.z.shape != (rows, weight.shape[1]):
        raise ValueError(
            f"project_qkv: weight {list(weight.shape)} does not give {heads} + 2 x {groups} heads of {head_dim}"
        )
    if isinstance(weight, PackedInt8Weight) or not uses_triton(query):
        project_qkv_ref(residual, weight, eps, rope, position, query, keys, values)
        return
    require_contiguous(query=query, keys=keys, values=values)
    tiling = Tiling.choose(weight, TILE, rows, architecture(query.device))
    cosines, sines = rope
    launch(
        _project_qkv_kernel,
        tiling.grid(rows, weight.shape[0]),
        {
            "z_ptr": residual.z,
            "squares_ptr": residual.squares,
            **operands(weight),
            "cosines_ptr": cosines,
            "sines_ptr": sines,
            "position_ptr": position,
            "query_ptr": query,
            "keys_ptr": keys,
            "values_ptr": values,
            "capacity": keys.shape[2],
            "rows": rows,
        },
        {
            "HEADS": heads,
            "GROUPS": groups,
            "HEAD_DIM": head_dim,
            **norm_constants(residual, eps),
            **tiling.constants(weight, residual.z),
        },
        warps=tiling.warps,
        stages=tiling.stages,
        registers=tiling.registers(weight, architecture(query.device)),
        device=query.device,
        fuses_multiply_add=False,  # see `matmul`
    )


@triton.jit(do_not_specialize=["rows"])
def _project_qkv_kernel(
    z_ptr,
    squares_ptr,
    weight_ptr,
    scale_ptr,
    cosines_ptr,
    sines_ptr,
    position_ptr,
    query_ptr,
    keys_ptr,
    values_ptr,
    capacity,
    rows,
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
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
    half: tl.constexpr = HEAD_DIM // 2
    pairs: tl.constexpr = (HEADS + 2 * GROUPS) * half
    first_row = tl.program_id(0) * BLOCK_M
    row = first_row + tl.arange(0, BLOCK_M)
    first = tl.program_id(1) * (TILE // 2)
    place = tl.arange(0, TILE)
    if half % (TILE // 2) == 0:  # all of one head
        first_weight_row = first // half * HEAD_DIM + first % half
        weight_row = place // 2 + (place % 2) * half
    else:
        first_weight_row = 0
        pair = tl.minimum(first + place // 2, pairs - 1)
        weight_row = pair // half * HEAD_DIM + pair % half + (place % 2) * half
    pdl_sync(DEPENDENT)

    mask = row < rows
    pair = first + tl.arange(0, TILE // 2)
    head = pair // half
    rotates = head < HEADS + GROUPS
    is_full: tl.constexpr = takes_all_registers(FORMAT, BLOCK_M)
    if not is_full:
        position = tl.load(position_ptr + row // 2, mask=mask, other=0)
    squares = load_squares(squares_ptr, row, mask, SQUARES_STRIDE, PARTIALS, BLOCK_P)
    if is_full:
        scale = norm_scale(squares, K, EPS, HEADROOM)
    y = multiply(
        weight_ptr,
        scale_ptr,
        first_weight_row,
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
    if is_full:
        position = tl.load(position_ptr + row // 2, mask=mask, other=0)
    # Not before the product: their addresses would have the weights wait for the position.
    angle = position[None, :] * half + (pair % half)[:, None]
    wanted = rotates[:, None] & mask[None, :]
    cosine = tl.load(cosines_ptr + angle, mask=wanted, other=1.0)
    sine = tl.load(sines_ptr + angle, mask=wanted, other=0.0)
    if not is_full:
        scale = norm_scale(squares, K, EPS, HEADROOM)
    y = y * scale[None, :]
    real, imaginary = y.reshape(TILE // 2, 2, BLOCK_M).permute(0, 2, 1).split()
    rotated = (real * cosine - imaginary * sine).to(query_ptr.dtype.element_ty)
    across = (imaginary * cosine + real * sine).to(query_ptr.dtype.element_ty)

    inside = (pair < pairs)[:, None] & mask[None, :]
    is_query = (head < HEADS)[:, None]
    query = query_ptr + (row[None, :] * HEADS + head[:, None]) * HEAD_DIM + (pair % half)[:, None]
    tl.store(query, rotated, mask=inside & is_query)
    tl.store(query + half, across, mask=inside & is_query)
    group = head - HEADS - tl.where(rotates, 0, GROUPS)
    line = row.to(tl.int64)[None, :] * GROUPS + group[:, None]
    cell = (line * capacity + position[None, :]) * HEAD_DIM + (pair % half)[:, None]
    is_key = rotates[:, None] & (inside & ~is_query)
    tl.store(keys_ptr + cell, rotated, mask=is_key)
    tl.store(keys_ptr + cell + half, across, mask=is_key)
    is_value = inside & ~rotates[:, None]
    tl.store(values_ptr + cell, rotated, mask=is_value)
    tl.store(values_ptr + cell + half, across, mask=is_value)
