"""The two published layouts of Dia's weights, and how their tensors make up ours.

A model is a flat dict of the names in `model.parameter_shapes`. Several tensors of a checkpoint make up one of ours:
queries, keys and values stand below one another in `qkv`, gate above up in `gate_up`, channel after channel in the
decoder's embedding. `tensor_table` says which; this is the only file that knows the layouts' names.

    transformers   a linear layer is [outputs, inputs]; every name but the head's starts with `model.`
    nari-labs      a linear layer (`DenseGeneral`) is inputs + outputs, not flattened: [E, H, Dh], [H, Dh, D], [E, 2, F]
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..model.config import DecoderConfig, DiaConfig, EncoderConfig

# A buffer of transformers' model that a checkpoint may carry along; it follows from the config.
IGNORED_NAMES = frozenset({"model.decoder.embeddings.offsets"})


class Piece(NamedTuple):
    """One tensor of a checkpoint, which makes up the next `rows` rows of one of ours."""

    name: str
    shape: tuple[int, ...]  # as stored
    rows: int
    inputs_first: bool = False

    def as_rows(self, tensor: torch.Tensor) -> torch.Tensor:
        """The stored tensor as it stands in ours: [rows, inputs], or [rows] as stored."""
        return tensor.reshape(-1, self.rows).T if self.inputs_first else tensor


@dataclass(frozen=True)
class Layout:
    """What differs between the layouts."""

    title: str
    prefix: str
    head: str
    gate_up: str
    down: str
    inputs_first: bool
    joined_channels: bool

    def linear(self, name: str, outputs: tuple[int, ...], inputs: tuple[int, ...]) -> Piece:
        """A linear layer whose outputs and inputs are, say, (heads, head width)."""
        rows = math.prod(outputs)
        shape = inputs + outputs if self.inputs_first else (rows, math.prod(inputs))
        return Piece(name, shape, rows, self.inputs_first)

    def channel_tables(self, channels: int, vocab: int, width: int) -> list[Piece]:
        """The decoder's embeddings: one table of all channels, or one per channel."""
        if self.joined_channels:
            return [_plain("decoder.embeddings.embed", channels * vocab, width)]
        return [_plain(f"decoder.embeddings.{channel}", vocab, width) for channel in range(channels)]


TRANSFORMERS = Layout(
    title="transformers",
    prefix="model.",
    head="logits_dense",
    gate_up="mlp.gate_up_proj",
    down="mlp.down_proj",
    inputs_first=False,
    joined_channels=True,
)
NARI = Layout(
    title="nari-labs",
    prefix="",
    head="decoder.logits_dense",
    gate_up="mlp.wi_fused",
    down="mlp.wo",
    inputs_first=True,
    joined_channels=False,
)


def _plain(name: str, *shape: int) -> Piece:
    """A norm's weight or an embedding, which both layouts store alike."""
    return Piece(name, shape, shape[0])


def tensor_table(config: DiaConfig, layout: Layout) -> dict[str, list[Piece]]:
    """Our name -> the tensors that make it up, from the first row to the last."""
    encoder, decoder = config.encoder, config.decoder
    width, channels, vocab = decoder.hidden_size, decoder.num_channels, decoder.vocab_size
    table = {
        "encoder.embedding": [_plain("encoder.embedding", encoder.vocab_size, encoder.hidden_size)],
        "encoder.norm": [_plain("encoder.norm", encoder.hidden_size)],
        "decoder.embedding": layout.channel_tables(channels, vocab, width),
        "decoder.norm": [_plain("decoder.norm", width)],
    }
    for index in range(encoder.num_hidden_layers):
        table |= _inside(f"encoder.layers.{index}", _encoder_layer(encoder, layout))
    for index in range(decoder.num_hidden_layers):
        table |= _inside(f"decoder.layers.{index}", _decoder_layer(decoder, layout))
    table = {
        f"{name}.weight": [piece._replace(name=f"{layout.prefix}{piece.name}.weight") for piece in pieces]
        for name, pieces in table.items()
    }
    table["decoder.head.weight"] = [layout.linear(f"{layout.head}.weight", (channels, vocab), (width,))]
    return table


def _inside(module: str, table: dict[str, list[Piece]]) -> dict[str, list[Piece]]:
    return {
        f"{module}.{name}": [piece._replace(name=f"{module}.{piece.name}") for piece in pieces]
        for name, pieces in table.items()
    }


def _encoder_layer(sizes: EncoderConfig, layout: Layout) -> dict[str, list[Piece]]:
    return {
        "self_norm": [_plain("pre_sa_norm", sizes.hidden_size)],
        **_self_attention(sizes, layout),
        "mlp_norm": [_plain("post_sa_norm", sizes.hidden_size)],
        **_mlp(sizes, layout),
    }


def _decoder_layer(sizes: DecoderConfig, layout: Layout) -> dict[str, list[Piece]]:
    return {
        "self_norm": [_plain("pre_sa_norm", sizes.hidden_size)],
        **_self_attention(sizes, layout),
        "cross_norm": [_plain("pre_ca_norm", sizes.hidden_size)],
        **_cross_attention(sizes, layout),
        "mlp_norm": [_plain("pre_mlp_norm", sizes.hidden_size)],
        **_mlp(sizes, layout),
    }


def _self_attention(sizes: EncoderConfig | DecoderConfig, layout: Layout) -> dict[str, list[Piece]]:
    width = (sizes.hidden_size,)
    queries = (sizes.num_attention_heads, sizes.head_dim)
    keys = (sizes.num_key_value_heads, sizes.head_dim)
    return {
        "self_attn.qkv": [
            layout.linear("self_attention.q_proj", queries, width),
            layout.linear("self_attention.k_proj", keys, width),
            layout.linear("self_attention.v_proj", keys, width),
        ],
        "self_attn.o": [layout.linear("self_attention.o_proj", width, queries)],
    }


def _cross_attention(sizes: DecoderConfig, layout: Layout) -> dict[str, list[Piece]]:
    width, text_width = (sizes.hidden_size,), (sizes.cross_hidden_size,)
    queries = (sizes.cross_num_attention_heads, sizes.cross_head_dim)
    keys = (sizes.cross_num_key_value_heads, sizes.cross_head_dim)
    return {
        "cross_attn.q": [layout.linear("cross_attention.q_proj", queries, width)],
        "cross_attn.kv": [
            layout.linear("cross_attention.k_proj", keys, text_width),
            layout.linear("cross_attention.v_proj", keys, text_width),
        ],
        "cross_attn.o": [layout.linear("cross_attention.o_proj", width, queries)],
    }


def _mlp(sizes: EncoderConfig | DecoderConfig, layout: Layout) -> dict[str, list[Piece]]:
    width, inner = sizes.hidden_size, sizes.intermediate_size
    return {
        "mlp.gate_up": [layout.linear(layout.gate_up, (2, inner), (width,))],
        "mlp.down": [layout.linear(layout.down, (width,), (inner,))],
    }
