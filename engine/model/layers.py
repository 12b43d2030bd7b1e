"""The layers of encoder and decoder. The decoder's have two ways through them: `prefill` for the rows of a prompt at
once, `step` for one row of every slot. The residual stream x is float32 throughout; what the weights multiply is in
their dtype."""

from collections.abc import Mapping

import torch

from ..kernels.attention import decode_attention
from ..kernels.cpu.onednn import LinearWeight
from ..kernels.gated import gated
from ..kernels.gated_linear import gated_linear
from ..kernels.linear import sequence_linear
from ..kernels.norm import rms_norm
from ..kernels.norm_linear import norm_linear
from ..kernels.qkv import project_qkv
from ..kernels.residual_linear import residual_linear
from ..kernels.rope import apply_rope
from ..kernels.sequence_attention import sequence_attention
from .config import DecoderConfig, EncoderConfig
from .state import DecodeState

Rope = tuple[torch.Tensor, torch.Tensor]  # cosines, sines, [N, Dh / 2] each
Weights = Mapping[str, LinearWeight]  # named as in `parameter_shapes`


def plain_weight(weights: Weights, name: str) -> torch.Tensor:
    """A norm's weight or a table of embeddings.

    Raises:
        TypeError: it is quantized, which only the matrices of projections may be.
    """
    weight = weights[f"{name}.weight"]
    if not isinstance(weight, torch.Tensor):
        raise TypeError(f"{name}.weight must be a tensor, got {type(weight).__name__}")
    return weight


class Norm:
    """RMSNorm with its weight; the result is in the dtype of the weights that follow."""

    def __init__(self, weights: Weights, name: str, eps: float, dtype: torch.dtype):
        self.weight, self.eps, self.dtype = plain_weight(weights, name), eps, dtype

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, self.weight, self.eps, self.dtype)


class Mlp:
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, weights: Weights, name: str):
        self.gate_up, self.down = weights[f"{name}.gate_up.weight"], weights[f"{name}.down.weight"]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return sequence_linear(gated(sequence_linear(x, self.gate_up)), self.down)


class SelfAttention:
    """Grouped-query self-attention with rotary positions."""

    def __init__(self, weights: Weights, name: str, sizes: EncoderConfig | DecoderConfig):
        self.qkv, self.o = weights[f"{name}.qkv.weight"], weights[f"{name}.o.weight"]
        self.heads = [sizes.num_attention_heads, sizes.num_key_value_heads, sizes.num_key_value_heads]
        self.head_dim = sizes.head_dim

    def project(self, x: torch.Tensor, rope: Rope) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """x [N, width] -> rotated query [N, H, Dh], rotated key and value [N, G, Dh]."""
        qkv = sequence_linear(x, self.qkv).view(x.shape[0], -1, self.head_dim)
        rotated, value = qkv.split([sum(self.heads[:2]), self.heads[2]], dim=1)
        query, key = apply_rope(rotated, *rope).split(self.heads[:2], dim=1)  # together: half as many kernels
        return query, key, value

    def over_sequence(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        causal: bool,
        exists: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """All N positions of one sequence at once: heads [N, H or G, Dh] -> [N, width]."""
        mixed = sequence_attention(query, key, value, causal, exists)
        return sequence_linear(mixed, self.o)


class CrossAttention:
    """Attention from the decoder to the encoded text."""

    def __init__(self, weights: Weights, name: str, sizes: DecoderConfig):
        self.q, self.kv, self.o = (weights[f"{name}.{part}.weight"] for part in ("q", "kv", "o"))
        self.heads, self.groups = sizes.cross_num_attention_heads, sizes.cross_num_key_value_heads
        self.head_dim = sizes.cross_head_dim

    def project_text(self, encoded: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encoded text [S, E] -> keys and values [S, G, Dh]."""
        keys, values = sequence_linear(encoded, self.kv).view(-1, 2, self.groups, self.head_dim).unbind(dim=1)
        return keys, values

    def fill(self, encoded: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Write the keys and values [G, S, Dh] of an encoded text [S, E]."""
        for cache, new in zip((keys, values), self.project_text(encoded), strict=True):
            cache.copy_(new.transpose(0, 1))

    def query(self, x: torch.Tensor) -> torch.Tensor:
        """x [N, width] -> [N, H, Dh]."""
        return sequence_linear(x, self.q).view(-1, self.heads, self.head_dim)

    def unconditional_output(self, encoded: torch.Tensor) -> torch.Tensor:
        """What the layer adds to every unconditional row, [width] float32.

        The unconditional text is all zeros, so its encoding is one vector at every position [1, E], and attention over
        equal values gives that value whatever the weights: the result depends on neither the row nor the length.
        """
        _, value = self.project_text(encoded)
        value = value.repeat_interleave(self.heads // self.groups, dim=1).flatten(1)
        return sequence_linear(value, self.o)[0].float()


class EncoderLayer:
    def __init__(self, weights: Weights, name: str, sizes: EncoderConfig, dtype: torch.dtype):
        self.self_norm = Norm(weights, f"{name}.self_norm", sizes.norm_eps, dtype)
        self.self_attn = SelfAttention(weights, f"{name}.self_attn", sizes)
        self.mlp_norm = Norm(weights, f"{name}.mlp_norm", sizes.norm_eps, dtype)
        self.mlp = Mlp(weights, f"{name}.mlp")

    def __call__(self, x: torch.Tensor, rope: Rope, exists: torch.Tensor | None = None) -> torch.Tensor:
        """x [S, E] float32 -> the same, one layer on; `exists` as for `Encoder.pieces`."""
        query, key, value = self.self_attn.project(self.self_norm(x), rope)
        x = x + self.self_attn.over_sequence(query, key, value, causal=False, exists=exists)
        return x + self.mlp(self.mlp_norm(x))


class DecoderLayer:
    def __init__(self, weights: Weights, name: str, sizes: DecoderConfig, dtype: torch.dtype):
        self.self_norm = Norm(weights, f"{name}.self_norm", sizes.norm_eps, dtype)
        self.self_attn = SelfAttention(weights, f"{name}.self_attn", sizes)
        self.cross_norm = Norm(weights, f"{name}.cross_norm", sizes.norm_eps, dtype)
        self.cross_attn = CrossAttention(weights, f"{name}.cross_attn", sizes)
        self.mlp_norm = Norm(weights, f"{name}.mlp_norm", sizes.norm_eps, dtype)
        self.mlp = Mlp(weights, f"{name}.mlp")
        # Set by the model, which knows the encoder and the layer after this one.
        self.uncond_cross_out: torch.Tensor  # [D] float32
        self.next_norm: Norm

    def prefill(
        self,
        x: torch.Tensor,
        rope: Rope,
        self_cache: tuple[torch.Tensor, torch.Tensor],
        cross_cache: tuple[torch.Tensor, torch.Tensor] | None,
        start: int = 0,
    ) -> torch.Tensor:
        """Run N rows of a prompt, those from `start` on; earlier ones have been run.

        Args:
            x: [N, D] float32.
            rope: for these rows' positions.
            self_cache: keys and values [G, T, Dh] of the batch row; rows start..start+N-1 are written.
            cross_cache: keys and values [G, S, Dh] of the text; None without text.

        Returns:
            [N, D] float32.
        """
        query, key, value = self.self_attn.project(self.self_norm(x), rope)
        stop = start + x.shape[0]
        for cache, new in zip(self_cache, (key, value), strict=True):
            cache[:, start:stop] = new.transpose(0, 1)
        key, value = (cache[:, :stop].transpose(0, 1) for cache in self_cache)
        x = x + self.self_attn.over_sequence(query, key, value, causal=True)
        if cross_cache is None:
            x = x + self.uncond_cross_out
        else:
            query = self.cross_attn.query(self.cross_norm(x))
            key, value = (cache.transpose(0, 1) for cache in cross_cache)
            mixed = sequence_attention(query, key, value, causal=False)
            x = x + sequence_linear(mixed, self.cross_attn.o)
        return x + self.mlp(self.mlp_norm(x))

    def step(self, state: DecodeState, rope: Rope, index: int) -> None:
        """Run one row of every slot: the state's residual goes one layer on, its self cache gains a row."""
        residual, buffers = state.residual, state.buffers
        keys, values = state.self_cache.layer(index)
        eps = self.self_norm.eps
        project_qkv(residual, self.self_attn.qkv, eps, rope, state.position, buffers.query, keys, values)
        decode_attention(buffers.query, keys, values, state.position, buffers.attention, out=buffers.attn_out)
        residual_linear(buffers.attn_out, self.self_attn.o, residual, self.cross_norm.weight)

        keys, values = state.cross_cache.layer(index)
        norm_linear(state.cond_residual, self.cross_attn.q, eps, out=buffers.cross_query.flatten(1))
        attended = buffers.cross_attn_out
        decode_attention(buffers.cross_query, keys, values, state.last_text, buffers.cross_attention, out=attended)
        residual_linear(attended, self.cross_attn.o, residual, self.mlp_norm.weight, self.uncond_cross_out)

        gated_linear(residual, self.mlp.gate_up, eps, out=buffers.hidden)
        residual_linear(buffers.hidden, self.mlp.down, residual, self.next_norm.weight)
