"""The half of a prefill that reads the text, by CUDA graphs: one for each of a few lengths, to which texts are padded.

One by one, its 400 kernels take Python longer to launch than a GPU to run: prefill took 9 to 14 ms in bfloat16 and 14
to 25 with quantized weights on an H100, where the products are worth less than 2. Padding changes the last bits, so
that all texts are padded where this is on, also where nothing is captured.
"""

from collections.abc import Iterator

import torch

from ..devices.cuda_graph import GraphPool
from .cache import KVCache
from .dia import DiaModel
from .state import DecodeState

LENGTHS = (64, 128, 256, 512)  # and the longest that the model reads


class TextGraphs:
    """Reads texts into a state's slots. For one thread and one stream; holds the keys and values of one text."""

    def __init__(self, model: DiaModel, captures: bool):
        """`captures=False` runs the same operations one by one."""
        encoder, decoder, device = model.config.encoder, model.config.decoder, model.device
        longest = encoder.max_position_embeddings
        self.lengths = [*(length for length in LENGTHS if length < longest), longest]
        self._model, self._captures = model, captures
        self._ids = torch.zeros(longest, dtype=torch.int64, device=device)
        self._count = torch.ones((), dtype=torch.int64, device=device)
        self._places = torch.arange(longest, device=device)
        heads, head_dim = decoder.cross_num_key_value_heads, decoder.cross_head_dim
        self._cache = KVCache.allocate(decoder.num_hidden_layers, 1, heads, longest, head_dim, model.dtype, device)
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}  # by length
        self._pool: GraphPool | None = None

    def prepare(self) -> None:
        """Capture what is not captured yet."""
        for length in reversed(self.lengths):
            self._ensure_captured(length)

    def text_pieces(self, state: DecodeState, slot: int, text: torch.Tensor) -> Iterator[int]:
        """`DiaModel.text_pieces` in one piece."""
        length = next(length for length in self.lengths if length >= len(text))
        yield self._model.text_work(length)
        self._ids.zero_()
        self._ids[: len(text)] = text
        self._count.fill_(len(text))
        self._ensure_captured(length)
        if self._captures:
            self._graphs[length].replay()
        else:
            self._read(length)
        state.cross_cache.rows_of(slot, len(text)).copy_from(self._cache.rows_of(0, len(text)))

    def _read(self, length: int) -> None:
        cache = self._cache.rows_of(0, length)
        for _ in self._model.projected_text(self._ids[:length], cache.layer, self._places[:length] < self._count):
            pass

    def _ensure_captured(self, length: int) -> None:
        if not self._captures or length in self._graphs:
            return
        self._pool = self._pool or GraphPool(self._model.device)
        self._graphs[length] = self._pool.capture(lambda: self._read(length))
