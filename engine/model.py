"""Encoder and decoder as functions of their weights, and the decode step."""

from collections.abc import Mapping

import torch

from .config import DecoderConfig, DiaConfig, EncoderConfig
from .kernels.advance import advance
from .kernels.linear import step_linear
from .kernels.rope import rope_table
from .kernels.sample import sample_tokens
from .layers import DecoderLayer, EncoderLayer, Norm
from .state import DecodeState


def parameter_shapes(config: DiaConfig) -> dict[str, tuple[int, ...]]:
    """Every weight of a model and its shape, in the order of use. Names that end in `norm.weight` are float32."""
    encoder, decoder = config.encoder, config.decoder
    shapes = {"encoder.embedding.weight": (encoder.vocab_size, encoder.hidden_size)}
    for index in range(encoder.num_hidden_layers):
        shapes |= _block_shapes(f"encoder.layers.{index}", encoder)
    shapes["encoder.norm.weight"] = (encoder.hidden_size,)
    table = (decoder.num_channels * decoder.vocab_size, decoder.hidden_size)
    shapes["decoder.embedding.weight"] = table
    for index in range(decoder.num_hidden_layers):
        shapes |= _block_shapes(f"decoder.layers.{index}", decoder)
    shapes["decoder.norm.weight"] = (decoder.hidden_size,)
    shapes["decoder.head.weight"] = table
    return shapes


def _block_shapes(name: str, sizes: EncoderConfig | DecoderConfig) -> dict[str, tuple[int, ...]]:
    width, inner = sizes.hidden_size, sizes.intermediate_size
    queries = sizes.num_attention_heads * sizes.head_dim
    keys = sizes.num_key_value_heads * sizes.head_dim
    shapes = {
        "self_norm": (width,),
        "self_attn.qkv": (queries + 2 * keys, width),
        "self_attn.o": (width, queries),
    }
    if isinstance(sizes, DecoderConfig):
        queries = sizes.cross_num_attention_heads * sizes.cross_head_dim
        keys = sizes.cross_num_key_value_heads * sizes.cross_head_dim
        shapes |= {
            "cross_norm": (width,),
            "cross_attn.q": (queries, width),
            "cross_attn.kv": (2 * keys, sizes.cross_hidden_size),
            "cross_attn.o": (width, queries),
        }
    shapes |= {"mlp_norm": (width,), "mlp.gate_up": (2 * inner, width), "mlp.down": (width, inner)}
    return {f"{name}.{part}.weight": shape for part, shape in shapes.items()}


class Encoder:
    """Text ids to one vector a position."""

    def __init__(self, config: EncoderConfig, weights: Mapping[str, torch.Tensor]):
        self.embedding = weights["encoder.embedding.weight"]
        dtype = self.embedding.dtype
        self.layers = [
            EncoderLayer(weights, f"encoder.layers.{index}", config, dtype) for index in range(config.num_hidden_layers)
        ]
        self.norm = Norm(weights, "encoder.norm", config.norm_eps, dtype)
        self.rope = rope_table(config.max_position_embeddings, config.head_dim, config.rope_theta, self.embedding.device)

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        """ids [S] int64, S at most the model's positions -> [S, E] in the weights' dtype."""
        rope = tuple(table[: ids.shape[0]] for table in self.rope)
        x = self.embedding[ids].float()
        for layer in self.layers:
            x = layer(x, rope)
        return self.norm(x)


class Dia:
    """The whole model over weights named as in `parameter_shapes`."""

    def __init__(self, config: DiaConfig, weights: Mapping[str, torch.Tensor]):
        self.config = config
        self.encoder = Encoder(config.encoder, weights)
        decoder = config.decoder
        self.embedding = weights["decoder.embedding.weight"]
        self.dtype, self.device = self.embedding.dtype, self.embedding.device
        self.layers = [
            DecoderLayer(weights, f"decoder.layers.{index}", decoder, self.dtype)
            for index in range(decoder.num_hidden_layers)
        ]
        self.norm = Norm(weights, "decoder.norm", decoder.norm_eps, self.dtype)
        self.head = weights["decoder.head.weight"]
        self.rope = rope_table(decoder.max_position_embeddings, decoder.head_dim, decoder.rope_theta, self.device)
        self.channel_offset = torch.arange(decoder.num_channels, device=self.device) * decoder.vocab_size
        no_text = self.encoder(torch.zeros(1, dtype=torch.int64, device=self.device))
        for layer in self.layers:
            layer.without_text = layer.cross_attn.without_text(no_text)

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens [..., C] -> sum of the channels' embeddings [..., D] float32."""
        return self.embedding[tokens + self.channel_offset].float().sum(dim=-2)

    def prefill(self, state: DecodeState, slot: int, text: torch.Tensor) -> None:
        """Fill a started slot's caches: keys and values of its text, and of the prompt rows before its position.

        Args:
            state: on which `start` was called for the slot.
            slot: which one.
            text: ids [S] int64 on the model's device.
        """
        encoded = self.encoder(text)
        length = state.lengths[slot] - 1
        x = self.embed(state.grid[slot, :length]).expand(2, -1, -1)
        rope = tuple(table[:length] for table in self.rope)
        for index, layer in enumerate(self.layers):
            text_cache = layer.cross_attn.project_text(encoded)
            for cache, new in zip(state.cross_cache.layer(index), text_cache):
                cache[slot, :, : text.shape[0]] = new.transpose(0, 1)
            if length:
                self_cache = [cache[2 * slot : 2 * slot + 2] for cache in state.self_cache.layer(index)]
                x = layer.prefill(x, rope, self_cache, text_cache)

    def logits(self, state: DecodeState) -> torch.Tensor:
        """Feed each slot's row at its position -> logits [2B, C, V] float32 of the row that follows."""
        slots = torch.arange(state.slots, device=self.device)
        x = self.embed(state.grid[slots, state.position]).repeat_interleave(2, dim=0)
        position = state.position.repeat_interleave(2)
        rope = tuple(table[position] for table in self.rope)
        for index, layer in enumerate(self.layers):
            x = layer.step(x, rope, state, index)
        decoder = self.config.decoder
        return step_linear(self.norm(x), self.head).float().view(-1, decoder.num_channels, decoder.vocab_size)

    def step(self, state: DecodeState) -> None:
        """One row for every slot that runs: decode, draw, write, move on.

        Device operations only: no value of a tensor decides what runs, nothing waits for the device, and what is
        allocated does not depend on the position.
        """
        tokens = sample_tokens(
            self.logits(state),
            state.cfg_scale,
            state.temperature,
            state.top_p,
            state.top_k,
            state.seed,
            state.position + 1,
            self.config.eos_token_id,
        )
        advance(
            tokens,
            state.grid,
            state.position,
            state.countdown,
            state.end_row,
            state.max_tokens,
            state.delay,
            self.config.max_delay,
            self.config.eos_token_id,
            self.config.pad_token_id,
        )
        # A slot that has stopped stays where it is; its count goes on here, within the cache, and nobody reads its rows.
        state.lengths = [min(length + 1, state.rows) for length in state.lengths]
