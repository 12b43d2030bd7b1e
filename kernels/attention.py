"""One query row against a cache: softmax(q K^T) V, without the usual 1/sqrt(Dh) (Dia is trained without it).

Split-KV ("flash decoding"): a row's cache is cut into SPLITS equal spans of whole blocks, one program each, and the
last program of a row and KV head to finish combines the spans in order. The split depends on the row's own length only.
All query heads of a KV head go through one program, as the narrow operand of the tensor cores, so that every key and
value is read once.

A dependent launch prefetches its span into the L2 cache while its predecessor still runs. The predecessor computes the
query and writes only the newest position of the cache; everything else is older, see `dispatch.pdl_sync`.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .architectures import LEAST_LIMIT, SHARED_MEMORY_LIMIT
from .dispatch import (
    HOPPER,
    Architecture,
    architecture,
    launch,
    pdl_sync,
    prefetch_l2,
    require_contiguous,
    tl,
    triton,
    uses_triton,
)
from .tuning import programs_per_row, warps_per_program

POSITIONS = (32, 16)  # cache positions per loop iteration: the first that fits the shared memory


@dataclass(frozen=True)
class AttentionScratch:
    """Partial results of the spans of a row, combined by the last program to finish."""

    partial: torch.Tensor  # [n] float32, unnormalised outputs
    stats: torch.Tensor  # [m] float32, maximum score and sum of exponentials of each span and head
    arrivals: torch.Tensor  # [R * G] int32, spans that are done; 0 between launches
    splits: int  # spans that a row is cut into; depends on neither the batch nor the cache's size

    @classmethod
    def allocate(
        cls, rows: int, groups: int, heads: int, head_dim: int, device: torch.device | str
    ) -> "AttentionScratch":
        splits = max(1, programs_per_row() // max(4, 1 << (groups - 1).bit_length()))
        spans = rows * heads * splits
        return cls(
            torch.empty(spans * head_dim, dtype=torch.float32, device=device),
            torch.empty(spans * 2, dtype=torch.float32, device=device),
            torch.zeros(rows * groups, dtype=torch.int32, device=device),
            splits,
        )


def decode_attention_ref(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, last: torch.Tensor
) -> torch.Tensor:
    """[R, H, Dh] in the query's dtype."""
    return attend(query, keys, values, [position + 1 for position in last.tolist()])


def attend(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    """`decode_attention_ref` over the first `lengths` [B] cache positions of each slot."""
    rows, heads, head_dim = query.shape
    groups = keys.shape[1]
    per_slot = rows // len(lengths)
    # Query heads that share a key head become query positions: keys and values are then read once, never repeated.
    grouped = query.view(rows, groups, heads // groups, head_dim)
    # A slot at a time over its own length: its sums do not depend on its neighbors, and nothing needs a mask.
    outputs = [
        F.scaled_dot_product_attention(
            grouped[slot * per_slot : (slot + 1) * per_slot],
            keys[slot * per_slot : (slot + 1) * per_slot, :, :length],
            values[slot * per_slot : (slot + 1) * per_slot, :, :length],
            scale=1.0,
        )
        for slot, length in enumerate(lengths)
    ]
    return (torch.cat(outputs) if len(outputs) > 1 else outputs[0]).reshape(query.shape)


def decode_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    last: torch.Tensor,
    scratch: AttentionScratch,
    out: torch.Tensor,
) -> None:
    """Attend from one new position a row to the rows of its cache that are written.

    Args:
        query: [R, H, Dh].
        keys, values: [R, G, T, Dh] with G dividing H; query head h reads head h // (H / G).
        last: [B] int64, the last valid cache position of each slot; R is a multiple of B, neighbors form a slot. Not
            written by the kernel that is launched just before this one: that one may still run when `last` is read.
        scratch: allocated for at least these sizes.
        out: [R, H * Dh] in the query's dtype, written.
    """
    rows, heads, head_dim = query.shape
    groups, capacity = keys.shape[1:3]
    if keys.shape != values.shape or keys.shape[0] != rows or keys.shape[3] != head_dim or heads % groups:
        raise ValueError(
            f"decode_attention: query {list(query.shape)}, keys {list(keys.shape)}, values {list(values.shape)}"
        )
    if not uses_triton(query):
        out.view_as(query).copy_(decode_attention_ref(query, keys, values, last))
        return
    require_contiguous(query=query, keys=keys, values=values, out=out)
    ratio = heads // groups
    blocks = block_sizes(head_dim, ratio, keys.element_size(), architecture(query.device))
    launch(
        _decode_attention_kernel,
        (scratch.splits, groups, rows),
        {
            "query_ptr": query,
            "keys_ptr": keys,
            "values_ptr": values,
            "last_ptr": last,
            "partial_ptr": scratch.partial,
            "stats_ptr": scratch.stats,
            "arrivals_ptr": scratch.arrivals,
            "out_ptr": out,
            "capacity": capacity,
        },
        {
            "ROWS_PER_SLOT": rows // last.shape[0],
            "GROUPS": groups,
            "RATIO": ratio,
            "HEAD_DIM": head_dim,
            "SPLITS": scratch.splits,
            "BLOCK_R": triton.next_power_of_2(ratio),
            **blocks,
        },
        warps=warps_per_program(keys.element_size()),
        stages=3 if keys.element_size() * blocks["BLOCK_D"] <= 256 else 2,
        device=query.device,
        early=("last_ptr",),
    )


def block_sizes(head_dim: int, ratio: int, itemsize: int, architecture: Architecture) -> dict[str, int]:
    """The kernel's blocks for `ratio` query heads of one key head.

    Raises:
        ValueError: they need more shared memory than a program may use.
    """
    block_d = max(16, triton.next_power_of_2(head_dim))
    # The narrowest operand that the matrix units take; AMD's are 16 wide.
    block_h = max(16 if isinstance(architecture, str) else 8, triton.next_power_of_2(ratio))
    limit = SHARED_MEMORY_LIMIT.get(architecture, LEAST_LIMIT)
    queries = block_h * (itemsize + 4 if architecture == HOPPER else itemsize)  # there with their results
    for block_t in POSITIONS:
        needed = block_d * (2 * block_t * itemsize + queries) + 4 * block_h * (block_t + 16)  # about: the tests compile
        if needed <= limit:
            return {"BLOCK_T": block_t, "BLOCK_H": block_h, "BLOCK_D": block_d}
    raise ValueError(
        f"attention with {ratio} heads of {head_dim} numbers ({8 * itemsize} bits) for a key needs {needed} bytes of "
        f"shared memory, and this GPU has {limit}"
    )


@triton.jit
def _prefetch(
    keys_ptr, values_ptr, base, first, end, HEAD_DIM: tl.constexpr, BLOCK_T: tl.constexpr, DEPENDENT: tl.constexpr
):
    """Ask for the cache positions from `first` up to, not including, `end` to come to the L2 cache."""
    if DEPENDENT:
        per_line: tl.constexpr = 1024 // keys_ptr.dtype.element_ty.primitive_bitwidth  # elements in 128 bytes
        lines: tl.constexpr = triton.next_power_of_2(triton.cdiv(BLOCK_T * HEAD_DIM, per_line))
        line = tl.arange(0, 2 * lines)  # of the keys, then of the values
        cache = tl.where(line < lines, keys_ptr.to(tl.int64), values_ptr.to(tl.int64))
        offset = line % lines * per_line
        for start in range(first, end, BLOCK_T):
            place = base + tl.minimum(start * HEAD_DIM + offset, end * HEAD_DIM - 1)
            prefetch_l2(cache + place * (keys_ptr.dtype.element_ty.primitive_bitwidth // 8))


@triton.jit
def _decode_attention_kernel(
    query_ptr,
    keys_ptr,
    values_ptr,
    last_ptr,
    partial_ptr,
    stats_ptr,
    arrivals_ptr,
    out_ptr,
    capacity,
    ROWS_PER_SLOT: tl.constexpr,
    GROUPS: tl.constexpr,
    RATIO: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    split = tl.program_id(0)
    group = tl.program_id(1)
    row = tl.program_id(2)
    line = row * GROUPS + group
    base = line.to(tl.int64) * capacity * HEAD_DIM
    # Past the L1 cache, which may hold an older value until the wait.
    length = tl.load(last_ptr + row // ROWS_PER_SLOT, cache_modifier=".cg").to(tl.int32) + 1
    span = tl.cdiv(tl.cdiv(length, BLOCK_T), SPLITS) * BLOCK_T
    first = split * span
    # The predecessor may be writing the newest position, length - 1.
    _prefetch(keys_ptr, values_ptr, base, first, min(first + span, length - 1), HEAD_DIM, BLOCK_T, DEPENDENT)
    pdl_sync(DEPENDENT)
    head = tl.arange(0, BLOCK_H)
    d = tl.arange(0, BLOCK_D)
    query_mask = (head < RATIO)[:, None] & (d < HEAD_DIM)[None, :]
    # Before anything waits for the length.
    query = tl.load(query_ptr + (line * RATIO + head)[:, None] * HEAD_DIM + d[None, :], mask=query_mask, other=0.0)
    used = tl.cdiv(length, span)
    if split >= used:
        return

    t = tl.arange(0, BLOCK_T)
    cache = base + t[:, None] * HEAD_DIM + d[None, :]
    max_score = tl.full((BLOCK_H,), float("-inf"), tl.float32)
    sum_exp = tl.zeros((BLOCK_H,), tl.float32)
    acc = tl.zeros((BLOCK_D, BLOCK_H), tl.float32)
    for start in range(first, min(first + span, length), BLOCK_T):
        written = t < length - start
        if BLOCK_D == HEAD_DIM:
            mask = written[:, None]
        else:
            mask = written[:, None] & (d < HEAD_DIM)[None, :]
        key = tl.load(keys_ptr + cache + start * HEAD_DIM, mask=mask, other=0.0)
        value = tl.load(values_ptr + cache + start * HEAD_DIM, mask=mask, other=0.0)
        score = tl.dot(key, query.T, input_precision="ieee")
        score = tl.where(written[:, None], score, float("-inf"))
        new_max = tl.maximum(max_score, tl.max(score, axis=0))
        decay = tl.exp(max_score - new_max)
        weight = tl.exp(score - new_max[None, :])
        sum_exp = sum_exp * decay + tl.sum(weight, axis=0)
        acc = tl.dot(value.T, weight.to(value.dtype), acc * decay[None, :], input_precision="ieee")
        max_score = new_max

    line_span = line * SPLITS + split
    place = line_span * RATIO + head
    tl.store(partial_ptr + place[None, :] * HEAD_DIM + d[:, None], acc, mask=query_mask.T)
    tl.store(stats_ptr + place * 2, max_score, mask=head < RATIO)
    tl.store(stats_ptr + place * 2 + 1, sum_exp, mask=head < RATIO)
    tl.debug_barrier()  # every thread's stores come before the one thread's release
    arrived = tl.atomic_add(arrivals_ptr + line, 1, sem="acq_rel")
    if arrived == used - 1:
        _combine(partial_ptr, stats_ptr, out_ptr, line, used, RATIO, HEAD_DIM, SPLITS, BLOCK_R, BLOCK_D)
        tl.store(arrivals_ptr + line, 0)


@triton.jit
def _combine(
    partial_ptr,
    stats_ptr,
    out_ptr,
    line,
    used,
    RATIO: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """out = sum of the spans' outputs, each weighted with exp(its maximum score - the overall maximum)."""
    split = tl.arange(0, SPLITS)
    head = tl.arange(0, BLOCK_R)
    d = tl.arange(0, BLOCK_D)
    place = (line * SPLITS + split)[:, None] * RATIO + head[None, :]
    exists = (split < used)[:, None] & (head < RATIO)[None, :]
    # Other programs wrote these: .cg passes by the L1 cache, which may hold what stood here before.
    max_score = tl.load(stats_ptr + place * 2, mask=exists, other=0.0, cache_modifier=".cg")
    sum_exp = tl.load(stats_ptr + place * 2 + 1, mask=exists, other=0.0, cache_modifier=".cg")
    mask = exists[:, :, None] & (d < HEAD_DIM)[None, None, :]
    partial = tl.load(
        partial_ptr + place[:, :, None] * HEAD_DIM + d[None, None, :], mask=mask, other=0.0, cache_modifier=".cg"
    )
    max_score = tl.where((split < used)[:, None], max_score, float("-inf"))
    weight = tl.exp(max_score - tl.max(max_score, axis=0)[None, :])
    sum_exp = tl.sum(sum_exp * weight, axis=0)
    acc = tl.sum(partial * weight[:, :, None], axis=0) / sum_exp[:, None]
    out = out_ptr + (line * RATIO + head)[:, None] * HEAD_DIM + d[None, :]
    tl.store(out, acc.to(out_ptr.dtype.element_ty), mask=(head < RATIO)[:, None] & (d < HEAD_DIM)[None, :])
