"""The rows of one sequence against its keys and values: softmax(q K^T) V, without a scale, as in `attention.py`.

On a CPU with AVX-512 float32 is compiled code (`cpu/native/sequence.h`), elsewhere torch's operation. One core of a
Zen 5, heads of 32: 6 heads and 116 causal rows take 0.121 ms and 0.170 by torch, with 284 earlier rows 0.42 and 0.54;
4 heads and all of 190 positions 0.27 and 0.31, of 100 positions 0.093 both.
"""

import ctypes

import torch
import torch.nn.functional as F

from .cpu.matmul import compiled_for_sequences, thread_count
from .cpu.structures import SequenceAttention


def sequence_attention_ref(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, causal: bool, exists: torch.Tensor | None = None
) -> torch.Tensor:
    """See `sequence_attention`."""
    rows, positions = query.shape[0], key.shape[0]
    shares_keys = query.shape[1] != key.shape[1]  # which not all of torch's operations with a mask can do
    query, key, value = (tensor.transpose(0, 1)[None] for tensor in (query, key, value))  # heads first
    mask = None if exists is None else exists.expand(rows, positions)
    if causal and rows != positions:
        mask = torch.ones(rows, positions, dtype=torch.bool, device=query.device).tril(positions - rows)
    is_causal = causal and mask is None
    mixed = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=is_causal, scale=1.0, enable_gqa=shares_keys
    )
    return mixed[0].transpose(0, 1).flatten(1)


def sequence_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, causal: bool, exists: torch.Tensor | None = None
) -> torch.Tensor:
    """Attend from N rows of a sequence to M positions.

    Args:
        query: [N, H, Dh].
        key, value: [M, G, Dh] in the same dtype, with G dividing H; query head h reads head h // (H / G).
        causal: the queries are those of the last N positions, and attend up to their own.
        exists: [M] bool, positions that are attended to; None for all. Not together with `causal`.

    Returns:
        [N, H * Dh] in the query's dtype.
    """
    functions = None if exists is not None else compiled_for_sequences(query)
    if functions is None:
        return sequence_attention_ref(query, key, value, causal, exists)
    return attend_compiled(query, key, value, causal, functions)


def attend_compiled(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, causal: bool, functions: ctypes.CDLL
) -> torch.Tensor:
    """`sequence_attention` in float32 by compiled functions. A row's bits depend on the positions it sees alone."""
    rows, heads, head_dim = query.shape
    positions, groups = key.shape[:2]
    if query.stride()[1:] != (head_dim, 1):
        query = query.contiguous()
    key, value = key.transpose(0, 1), value.transpose(0, 1)
    if not (key.stride() == value.stride() and key.stride()[1:] == (head_dim, 1)):
        key, value = key.contiguous(), value.contiguous()
    out = torch.empty((rows, heads * head_dim), dtype=torch.float32, device="cpu")
    addresses = (tensor.data_ptr() for tensor in (query, key, value, out))
    sizes = rows, positions, heads, groups, head_dim, query.stride(0), key.stride(0)
    functions.sequence_attention(SequenceAttention(*addresses, *sizes, causal), thread_count())
    return out
