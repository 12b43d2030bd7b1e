"""All that a decode step reads and writes."""

from dataclasses import dataclass, fields, is_dataclass, replace

import torch

from ..kernels.advance import RUNNING
from ..kernels.attention import AttentionScratch
from ..kernels.norm import Residual
from ..sampling_params import ResolvedSamplingParams
from .cache import KVCache
from .config import DecoderConfig, DiaConfig
from .delay import prompt_grid

STATUS = ("position", "countdown", "end_row", "broken")  # rows of `DecodeState.status`
PER_SLOT = (
    "grid", *STATUS, "max_tokens", "first_eos_row", "cfg_scale", "temperature", "top_p", "top_k", "seed", "last_text",
)  # fmt: skip


@dataclass(frozen=True)
class StepBuffers:
    """What the kernels of one step leave for each other."""

    query: torch.Tensor  # [2B, H, Dh]
    attn_out: torch.Tensor  # [2B, H * Dh]
    cross_query: torch.Tensor  # [B, H, Dh] of cross-attention, rows with text only
    cross_attn_out: torch.Tensor  # [B, H * Dh]
    hidden: torch.Tensor  # [2B, F]
    logits: torch.Tensor  # [2B, C, V] float32
    tokens: torch.Tensor  # [B, C] int32, as drawn
    channels_done: torch.Tensor  # [B] int32, channels drawn; 0 between steps
    attention: AttentionScratch
    cross_attention: AttentionScratch

    @classmethod
    def allocate(
        cls, sizes: DecoderConfig, slots: int, dtype: torch.dtype, device: torch.device | str
    ) -> "StepBuffers":
        rows = 2 * slots
        heads, head_dim = sizes.num_attention_heads, sizes.head_dim
        cross_heads, cross_head_dim = sizes.cross_num_attention_heads, sizes.cross_head_dim

        def empty(*shape: int, kind: torch.dtype = dtype) -> torch.Tensor:
            return torch.empty(shape, dtype=kind, device=device)

        return cls(
            query=empty(rows, heads, head_dim),
            attn_out=empty(rows, heads * head_dim),
            cross_query=empty(slots, cross_heads, cross_head_dim),
            cross_attn_out=empty(slots, cross_heads * cross_head_dim),
            hidden=empty(rows, sizes.intermediate_size),
            logits=empty(rows, sizes.num_channels, sizes.vocab_size, kind=torch.float32),
            tokens=empty(slots, sizes.num_channels, kind=torch.int32),
            channels_done=torch.zeros(slots, dtype=torch.int32, device=device),
            attention=AttentionScratch.allocate(rows, sizes.num_key_value_heads, heads, head_dim, device),
            cross_attention=AttentionScratch.allocate(
                slots, sizes.cross_num_key_value_heads, cross_heads, cross_head_dim, device
            ),
        )

    def part(self, slots: slice, rows: slice) -> "StepBuffers":
        """The same memory, for some slots and their rows."""
        return replace(
            self,
            query=self.query[rows],
            attn_out=self.attn_out[rows],
            cross_query=self.cross_query[slots],
            cross_attn_out=self.cross_attn_out[slots],
            hidden=self.hidden[rows],
            logits=self.logits[rows],
            tokens=self.tokens[slots],
            channels_done=self.channels_done[slots],
        )


@dataclass
class DecodeState:
    """B slots in one set of tensors, allocated once. Rows 2i and 2i + 1 of what has 2B rows are slot i without and with
    text.

    A new state has only stopped slots; `start` sets one going.
    """

    config: DiaConfig
    grid: torch.Tensor  # [B, T + 1, C] int64, OPEN where nothing is decided; the last row is written, never fed
    status: torch.Tensor  # [4, >= slots of the whole memory] int64: the next four fields in its rows, for one copy
    position: torch.Tensor  # [B] int64, row that the next step feeds
    countdown: torch.Tensor  # [B] int64, RUNNING, then rows left after the end; 0 = stopped
    end_row: torch.Tensor  # [B] int64, row of EOS
    broken: torch.Tensor  # [B] int64, 1 where NaN or infinite logits stopped the slot, else 0
    max_tokens: torch.Tensor  # [B] int64
    first_eos_row: torch.Tensor  # [B] int64, EOS is forbidden in the rows before it
    cfg_scale: torch.Tensor  # [B] float32
    temperature: torch.Tensor  # [B] float32
    top_p: torch.Tensor  # [B] float32
    top_k: torch.Tensor  # [B] int64
    seed: torch.Tensor  # [B] int64
    delay: torch.Tensor  # [C] int64
    self_cache: KVCache  # [L, 2B, G, T, Dh]
    cross_cache: KVCache  # [L, B, G, S, Dh], rows with text only
    last_text: torch.Tensor  # [B] int64, last text position of cross_cache
    residual: Residual  # [2B, D], of the row that the next step feeds
    cond_residual: Residual  # its odd rows
    buffers: StepBuffers

    @classmethod
    def allocate(
        cls, config: DiaConfig, slots: int, rows: int, text: int, dtype: torch.dtype, device: torch.device | str
    ) -> "DecodeState":
        """Room for `slots` requests of up to `rows` decoder rows and `text` bytes; caches in `dtype` on `device`."""
        decoder = config.decoder
        layers, channels = decoder.num_hidden_layers, decoder.num_channels

        residual = Residual.allocate(2 * slots, decoder.hidden_size, dtype, device)

        def per_slot(value: float, kind: torch.dtype) -> torch.Tensor:
            return torch.full((slots,), value, dtype=kind, device=device)

        # An even number of columns: rows then start at multiples of 16 bytes, by which Triton specializes kernels.
        status = torch.zeros((len(STATUS), slots + slots % 2), dtype=torch.int64, device=device)
        return cls(
            config=config,
            status=status,
            **dict(zip(STATUS, status[:, :slots], strict=True)),
            grid=torch.zeros((slots, rows + 1, channels), dtype=torch.int64, device=device),
            max_tokens=per_slot(rows, torch.int64),
            first_eos_row=per_slot(0, torch.int64),
            cfg_scale=per_slot(0.0, torch.float32),
            temperature=per_slot(0.0, torch.float32),
            top_p=per_slot(1.0, torch.float32),
            top_k=per_slot(1, torch.int64),
            seed=per_slot(0, torch.int64),
            delay=torch.tensor(config.delay_pattern, dtype=torch.int64, device=device),
            self_cache=KVCache.allocate(
                layers, 2 * slots, decoder.num_key_value_heads, rows, decoder.head_dim, dtype, device
            ),
            cross_cache=KVCache.allocate(
                layers, slots, decoder.cross_num_key_value_heads, text, decoder.cross_head_dim, dtype, device
            ),
            last_text=per_slot(0, torch.int64),
            residual=residual,
            cond_residual=residual.rows(slice(1, None, 2)),
            buffers=StepBuffers.allocate(decoder, slots, dtype, device),
        )

    @classmethod
    def bytes_per_slot(cls, config: DiaConfig, rows: int, text: int, dtype: torch.dtype) -> int:
        """What each slot more adds to the memory of `allocate`."""
        one, two = (_nbytes(cls.allocate(config, slots, rows, text, dtype, "meta")) for slots in (1, 2))
        return two - one

    @property
    def slots(self) -> int:
        """B."""
        return self.grid.shape[0]

    @property
    def rows(self) -> int:
        """T, the most rows that a slot can feed."""
        return self.grid.shape[1] - 1

    def start(
        self, slot: int, text_length: int, prompt: torch.Tensor, params: ResolvedSamplingParams, seed: int
    ) -> None:
        """Set a slot's fields for a new request. The slot stays stopped until the model's prefill has filled its caches
        and residual and calls `activate`; decode steps of other slots may run in between.

        A stopped slot is decoded like the others and its results are dropped: it writes the KV cache at its position
        and its residual. So the position is that of the first row to feed, which the first step writes again.

        Nothing here waits for the device.

        Args:
            slot: which one; whatever it held is forgotten.
            text_length: encoder positions of the text.
            prompt: codes [P, C] int64.
            params: how the request is sampled; checked by the caller against this state's room.
            seed: in [0, 2^63).
        """
        config, frames = self.config, prompt.shape[0]
        rows = params.rows(self.rows, frames, config.max_delay)
        grid = prompt_grid(prompt, config.delay_pattern, config.bos_token_id, self.rows + 1)
        copy_to(self.grid[slot], grid)
        self.position[slot] = frames
        self.countdown[slot] = 0
        self.end_row[slot] = 0
        self.broken[slot] = 0
        self.max_tokens[slot] = rows
        self.first_eos_row[slot] = frames + 1 + params.min_tokens
        self.cfg_scale[slot] = params.cfg_scale
        self.temperature[slot] = params.temperature
        self.top_p[slot] = params.top_p
        vocab = config.decoder.vocab_size
        self.top_k[slot] = vocab if params.cfg_filter_top_k is None else min(params.cfg_filter_top_k, vocab)
        self.seed[slot] = seed
        self.last_text[slot] = text_length - 1

    def text_cache(self, layer: int, slot: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Views of a layer's keys and values [G, length, Dh] of a slot's text."""
        keys, values = self.cross_cache.layer(layer)
        return keys[slot, :, :length], values[slot, :, :length]

    def activate(self, slot: int) -> None:
        """Let a slot run from the next step on."""
        self.countdown[slot] = RUNNING

    def release(self, slot: int) -> None:
        """Stop a slot and reset its lengths: what a stopped slot attends to costs time."""
        for field in (self.countdown, self.position, self.broken, self.last_text):
            field[slot] = 0

    def part(self, slots: range) -> "DecodeState":
        """The same memory, some neighboring slots of it."""
        some, rows = slice(slots.start, slots.stop), slice(2 * slots.start, 2 * slots.stop)
        residual = self.residual.rows(rows)
        return replace(
            self,
            **{name: getattr(self, name)[some] for name in PER_SLOT},
            self_cache=self.self_cache.part(rows),
            cross_cache=self.cross_cache.part(some),
            residual=residual,
            cond_residual=residual.rows(slice(1, None, 2)),
            buffers=self.buffers.part(some, rows),
        )

    def move_to(self, larger: "DecodeState") -> None:
        """Move into the memory of a larger state of as many rows and text positions, the slots in the same places.

        Afterwards this state has the tensors of the other. Whoever works on a slot over a longer time, as a prefill in
        pieces does, asks for its tensors anew each time.
        """
        part = larger.part(range(self.slots))
        for name in PER_SLOT:
            getattr(part, name).copy_(getattr(self, name))
        part.self_cache.copy_from(self.self_cache)
        part.cross_cache.copy_from(self.cross_cache)
        for field in fields(self.residual):
            getattr(part.residual, field.name).copy_(getattr(self.residual, field.name))
        for field in fields(self):
            setattr(self, field.name, getattr(larger, field.name))


def copy_to(target: torch.Tensor, source: torch.Tensor) -> None:
    """Copy a tensor of the host to a device without waiting for the device."""
    if target.is_cuda:
        source = source.pin_memory()  # a copy from pageable memory waits; torch keeps the pinned one until it is read
    target.copy_(source, non_blocking=True)


def _nbytes(value: object) -> int:
    """Of the tensors in a dataclass and those within it, each once."""
    storages = {}

    def visit(item: object) -> None:
        if isinstance(item, torch.Tensor):
            storage = item.untyped_storage()
            storages[storage._cdata] = storage.nbytes()
        elif is_dataclass(item) and not isinstance(item, DiaConfig):
            for field in fields(item):
                visit(getattr(item, field.name))

    visit(value)
    return sum(storages.values())
