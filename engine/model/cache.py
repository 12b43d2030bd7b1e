"""Key/value caches: one pair of tensors for all layers, allocated once, filled in place; what is kept of prompts."""

from collections import OrderedDict
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

    def part(self, rows: slice) -> "KVCache":
        """The same memory, some rows of every layer."""
        return KVCache(self.keys[:, rows], self.values[:, rows])

    def rows_of(self, row: int, positions: int) -> "KVCache":
        """Views of the first positions of one row, [L, G, positions, Dh]."""
        return KVCache(self.keys[:, row, :, :positions], self.values[:, row, :, :positions])

    def copy_from(self, other: "KVCache") -> None:
        """Take over what another of the same shape holds."""
        self.keys.copy_(other.keys)
        self.values.copy_(other.values)

    def clone(self) -> "KVCache":
        """The same in memory of its own."""
        return KVCache(*(part.clone(memory_format=torch.contiguous_format) for part in (self.keys, self.values)))

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    def layer(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Views of one layer's keys and values, [R, G, T, Dh]."""
        return self.keys[index], self.values[index]


class PrefixCache:
    """Half of the prefill of prompts that are used again; the least recently used are dropped.

    A prompt's rows are run with the text and without it, for guidance. Without, their keys and values depend on nothing
    but the prompt: a voice has the same for every script, and so have the pieces of a long script, which share their
    anchor. With the text they depend on the whole of it, for the encoder looks both ways.
    """

    def __init__(self, max_bytes: int):
        """`max_bytes`: of all that is kept."""
        self._max_bytes = max_bytes
        self._kept: OrderedDict[bytes, KVCache] = OrderedDict()

    @property
    def nbytes(self) -> int:
        """Bytes that are kept."""
        return sum(cache.nbytes for cache in self._kept.values())

    def clear(self) -> None:
        """Forget everything, as its memory is needed."""
        self._kept.clear()

    def find(self, prompt: torch.Tensor) -> KVCache | None:
        """What was kept of a prompt, codes [P, C] int64 on the CPU: [L, G, P, Dh]."""
        key = _key(prompt)
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def keep(self, prompt: torch.Tensor, cache: KVCache) -> None:
        """Keep a copy of a prompt's keys and values, if there is room: a prompt without rows is not worth it, and
        what finds no memory is only computed again."""
        if not len(prompt) or cache.nbytes > self._max_bytes:
            return
        while self.nbytes + cache.nbytes > self._max_bytes:
            self._kept.popitem(last=False)
        try:
            self._kept[_key(prompt)] = cache.clone()
        except torch.OutOfMemoryError:
            self.clear()


def _key(prompt: torch.Tensor) -> bytes:
    return prompt.numpy().tobytes()
