"""Key/value caches: one pair of tensors for all layers, allocated once, filled in place."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class KVCache:
    """keys and values, each [L, R, G, T, Dh] in the model's dtype.

    Not filled at the start: attention reads only what was written, and filling half a gigabyte takes longer than the
    first step.
    """

    keys: torch.Tensor
    values: torch.Tensor

    @classmethod
    def allocate(
        cls,
        layers: int,
        rows: int,
        heads: int,
        positions: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> "KVCache":
        shape = (layers, rows, heads, positions, head_dim)
        return cls(*(torch.empty(shape, dtype=dtype, device=device) for _ in range(2)))

    def first(self, rows: int) -> "KVCache":
        """The same memory, the first rows of every layer."""
        return KVCache(self.keys[:, :rows], self.values[:, :rows])

    def layer(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Views of one layer's keys and values, [R, G, T, Dh]."""
        return self.keys[index], self.values[index]
