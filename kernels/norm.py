"""RMSNorm: x / sqrt(mean(x^2) + eps) * weight, computed in float32 with float32 weights.

In a decode step no kernel normalizes. Whoever writes the residual x also writes z = x * weight * HEADROOM, rounded to
the model's dtype, and sums of x^2; whoever multiplies the normed x by a matrix multiplies z instead, and the product by
1 / sqrt(mean(x^2) + eps) / HEADROOM. So a matrix starts to flow before the norm of its input is known.
"""

from dataclasses import dataclass

import torch

from .cpu.matmul import compiled_for_rows, thread_count
from .dispatch import tl, triton
from .ordered_sum import halves, ordered_sum

TILE = 16  # elements of x whose squares form one partial sum: the weight rows of one tensor-core tile
PARTIAL = tl.constexpr(TILE)
# Partial sums that one reduction covers at least. A row of so many lies in one warp, four in a thread, whatever the
# number of rows; with fewer, Triton lays rows side by side and the order of the sum follows the batch.
FEWEST_PARTIALS = 128

# float16 ends at 65504, and z lacks the division that keeps a normed x small. A power of two costs no precision for
# what matters: x * weight may reach 4e6, and below 2^-8 it loses bits that are worth less than 2^-19.
HEADROOM = {torch.float16: 2.0**-6}


def headroom(dtype: torch.dtype) -> float:
    return HEADROOM.get(dtype, 1.0)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, dtype: torch.dtype) -> torch.Tensor:
    """Normalize rows.

    Args:
        x: [..., D] any float dtype.
        weight: [D] float32.
        eps: added to the mean square.
        dtype: of the result.

    Returns:
        [..., D] in `dtype`, rounded once, after the weight.
    """
    functions = compiled_for_rows(x) if dtype == torch.float32 and weight.is_contiguous() else None
    if functions is None:
        return rms_norm_ref(x, weight, eps, dtype)
    y = torch.empty_like(x)
    functions.normalize_rows(x.data_ptr(), weight.data_ptr(), eps, y.data_ptr(), *x.shape, thread_count())
    return y


def rms_norm_ref(x: torch.Tensor, weight: torch.Tensor, eps: float, dtype: torch.dtype) -> torch.Tensor:
    """See `rms_norm`."""
    x = x.float()
    scale = torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps)
    return (x * scale * weight).to(dtype)


@dataclass(frozen=True)
class Residual:
    """The residual stream of a step between two kernels, written in place."""

    x: torch.Tensor  # [R, D] float32
    z: torch.Tensor  # [R, D] in the model's dtype, x * weight of the next norm * HEADROOM
    squares: torch.Tensor  # [R, ceil(D / TILE)] float32, partial sums of x^2

    @classmethod
    def allocate(cls, rows: int, width: int, dtype: torch.dtype, device: torch.device | str) -> "Residual":
        def zeros(columns: int, kind: torch.dtype) -> torch.Tensor:
            return torch.zeros((rows, columns), dtype=kind, device=device)

        return cls(zeros(width, torch.float32), zeros(width, dtype), zeros(-(-width // TILE), torch.float32))

    def rows(self, rows: slice) -> "Residual":
        """A view of some of the rows."""
        return Residual(self.x[rows], self.z[rows], self.squares[rows])

    def write(self, x: torch.Tensor, weight: torch.Tensor) -> None:
        """Make x [R, D] the residual, on its way to the norm with `weight`."""
        self.x.copy_(x)
        room = headroom(self.z.dtype)
        torch.mul(self.x, weight if room == 1 else weight * room, out=self.z)
        self.squares.zero_()
        torch.sum(self.x.square(), dim=-1, out=self.squares[:, 0])

    def scale(self, eps: float) -> torch.Tensor:
        """What turns a product with z into a product with the normed x, [R, 1] float32."""
        scale = self.squares.sum(dim=-1, keepdim=True).div_(self.x.shape[1]).add_(eps).rsqrt_()
        return scale.div_(headroom(self.z.dtype))


@triton.jit
def load_squares(squares_ptr, rows, mask, STRIDE: tl.constexpr, PARTIALS: tl.constexpr, BLOCK: tl.constexpr):
    """The partial sums of some rows, [rows, BLOCK]. To be loaded before a product and summed after it."""
    partial = tl.arange(0, BLOCK)
    mask = mask[:, None] & (partial < PARTIALS)[None, :]
    return tl.load(squares_ptr + rows[:, None] * STRIDE + partial[None, :], mask=mask, other=0.0)


@triton.jit
def norm_scale(squares, WIDTH: tl.constexpr, EPS: tl.constexpr, HEADROOM: tl.constexpr):
    """`Residual.scale` of each row."""
    return tl.rsqrt(tl.sum(squares, axis=1) / WIDTH + EPS) / HEADROOM


@triton.jit
def store_residual(
    x,
    x_ptr,
    z_ptr,
    squares_ptr,
    norm_ptr,
    row,
    mask,
    tile,
    column,
    in_width,
    WIDTH: tl.constexpr,
    HEADROOM: tl.constexpr,
):
    """`Residual.write` of one tile: x [columns, rows] float32."""
    inside = in_width[:, None] & mask[None, :]
    place = row[None, :] * WIDTH + column[:, None]
    weight = tl.load(norm_ptr + column, mask=in_width, other=0.0)
    tl.store(x_ptr + place, x, mask=inside)
    tl.store(z_ptr + place, (x * (weight * HEADROOM)[:, None]).to(z_ptr.dtype.element_ty), mask=inside)
    partials: tl.constexpr = tl.cdiv(WIDTH, PARTIAL)
    partial = (column.shape[0] // PARTIAL) * tile + tl.arange(0, column.shape[0] // PARTIAL)
    # The sum over one element changes nothing but the layout: without it Triton gives every thread a whole sum of
    # squares and the product's sum over slices for all of its elements, 150 instructions more.
    values = tl.sum(tl.where(inside, x, 0.0)[None, :, :], axis=0)
    squares = sums_of_squares(values)
    tl.store(
        squares_ptr + row[None, :] * partials + partial[:, None],
        squares,
        mask=(partial < partials)[:, None] & mask[None, :],
    )


@triton.jit
def sums_of_squares(x):
    """The sums of the squares of PARTIAL neighbors in each column of x: [G * PARTIAL, R] -> [G, R] float32.

    The first addition is an explicit fused multiply-add, because the compiler fuses a * a + b * b by itself only where
    one thread happens to hold both (see `ordered_sum`).
    """
    groups: tl.constexpr = x.shape[0] // PARTIAL
    low, high = halves(x.reshape(groups, PARTIAL, x.shape[1]).permute(0, 2, 1))
    return ordered_sum(tl.fma(low, low, high * high))
