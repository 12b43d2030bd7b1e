"""One query row against a cache: softmax(q K^T) V, without the usual 1/sqrt(Dh) (Dia is trained without it)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F


def decode_attention(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, lengths: Sequence[int]
) -> torch.Tensor:
    """Attend from one new position a row to the rows of its cache that are written.

    Args:
        query: [R, H, Dh].
        keys, values: [R, G, T, Dh] with G dividing H; query head h reads head h // (H / G).
        lengths: valid cache rows of each slot; R is a multiple of their number, and neighbouring rows form a slot.

    Returns:
        [R, H * Dh] in the query's dtype.
    """
    rows, heads, head_dim = query.shape
    groups = keys.shape[1]
    per_slot = rows // len(lengths)
    # Query heads that share a key head become query positions: keys and values are then read once, never repeated.
    grouped = query.view(rows, groups, heads // groups, head_dim)
    # A slot at a time over its own length: its sums do not depend on its neighbours, and nothing needs a mask.
    outputs = [
        F.scaled_dot_product_attention(
            grouped[slot * per_slot : (slot + 1) * per_slot],
            keys[slot * per_slot : (slot + 1) * per_slot, :, :length],
            values[slot * per_slot : (slot + 1) * per_slot, :, :length],
            scale=1.0,
        )
        for slot, length in enumerate(lengths)
    ]
    return torch.cat(outputs).reshape(rows, heads * head_dim)
