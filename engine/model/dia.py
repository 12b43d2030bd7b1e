"""Encoder and decoder as functions of their weights, and the decode step."""

from collections.abc import Callable, Iterator

import torch

from ..kernels.attention import block_sizes
from ..kernels.dispatch import architecture, uses_triton
from ..kernels.matmul import require_countable
from ..kernels.norm_linear import norm_linear
from ..kernels.rope import rope_table
from ..kernels.sample_and_advance import embed, next_row
from .cache import KVCache
from .config import DiaConfig, EncoderConfig
from .cpu_step import CompiledStep, step_matrices
from .layers import DecoderLayer, EncoderLayer, Norm, Weights, plain_weight
from .shapes import block_weights, text_projection_weights
from .state import DecodeState

# Rows of a prompt that one piece of a prefill runs, with text or without: on a CPU, elsewhere. A piece must not hold up
# decode steps for long; a larger one reads the weights less often.
PREFILL_ROWS = (128, 1024)


class Encoder:
    """Text ids to one vector per position."""

    def __init__(self, config: EncoderConfig, weights: Weights):
        self.embedding = plain_weight(weights, "encoder.embedding")
        dtype = self.embedding.dtype
        self.layers = [
            EncoderLayer(weights, f"encoder.layers.{index}", config, dtype) for index in range(config.num_hidden_layers)
        ]
        self.norm = Norm(weights, "encoder.norm", config.norm_eps, dtype)
        device = self.embedding.device
        self.rope = rope_table(config.max_position_embeddings, config.head_dim, config.rope_theta, device)

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        """ids [S] int64, S at most the model's positions -> [S, E] in the weights' dtype."""
        *_, encoded = self.pieces(ids)
        return encoded

    def pieces(self, ids: torch.Tensor, exists: torch.Tensor | None = None) -> Iterator[torch.Tensor]:
        """The result of each layer, of which the last is that of the encoder.

        Args:
            ids: [S] int64.
            exists: [S] bool, false for ids that only fill up, which no other attends to; None if all of them count.
        """
        cosines, sines = (table[: ids.shape[0]] for table in self.rope)
        x = self.embedding[ids].float()
        for layer in self.layers[:-1]:
            x = layer(x, (cosines, sines), exists)
            yield x
        yield self.norm(self.layers[-1](x, (cosines, sines), exists))


class DiaModel:
    """The whole model over weights named as in `shapes.parameter_shapes`."""

    def __init__(self, config: DiaConfig, weights: Weights):
        """
        Raises:
            ValueError: sizes that the kernels of the weights' GPU cannot take.
        """
        self.config = config
        self.encoder = Encoder(config.encoder, weights)
        decoder = config.decoder
        self.embedding = plain_weight(weights, "decoder.embedding")
        self.dtype, self.device = self.embedding.dtype, self.embedding.device
        self.layers = [
            DecoderLayer(weights, f"decoder.layers.{index}", decoder, self.dtype)
            for index in range(decoder.num_hidden_layers)
        ]
        self.norm = Norm(weights, "decoder.norm", decoder.norm_eps, self.dtype)
        self.head = weights["decoder.head.weight"]
        if uses_triton(self.embedding):
            self._require_sizes_of_kernels()
        self.rope = rope_table(decoder.max_position_embeddings, decoder.head_dim, decoder.rope_theta, self.device)
        no_text = self.encoder(torch.zeros(1, dtype=torch.int64, device=self.device))
        next_norms = [layer.self_norm for layer in self.layers[1:]] + [self.norm]
        for layer, next_norm in zip(self.layers, next_norms, strict=True):
            layer.uncond_cross_out = layer.cross_attn.unconditional_output(no_text)
            layer.next_norm = next_norm
        self.compiled_step = CompiledStep.of(self)

    def _require_sizes_of_kernels(self) -> None:
        for matrix in step_matrices(self):
            require_countable(matrix)
        sizes, target = self.config.decoder, architecture(self.device)
        for heads, groups, head_dim in (
            (sizes.num_attention_heads, sizes.num_key_value_heads, sizes.head_dim),
            (sizes.cross_num_attention_heads, sizes.cross_num_key_value_heads, sizes.cross_head_dim),
        ):
            block_sizes(head_dim, heads // groups, self.dtype.itemsize, target)

    @property
    def prefill_rows(self) -> int:
        """Rows of a prompt that one piece of a prefill runs."""
        return PREFILL_ROWS[self.device.type != "cpu"]

    def prefill(self, state: DecodeState, slot: int, text: torch.Tensor) -> None:
        """Fill a slot's caches and let it run, all in one go; arguments are those of `text_pieces`. The length of the
        prompt is read back from the device."""
        length = int(state.position[slot])
        for _ in self.text_pieces(state, slot, text):
            pass
        for _ in self.prompt_pieces(state, slot, len(text), length):
            pass
        self.activate(state, slot, length)

    # A prefill runs piece by piece: decode steps of other slots may run between two, on a CPU also beside one, and the
    # state may grow, so that nothing refers to its memory from one piece to the next. The pieces are layers, and in the
    # decoder PREFILL_ROWS rows of the prompt at a time, always cut at the same rows, so that the result does not depend
    # on what else runs.

    def text_pieces(self, state: DecodeState, slot: int, text: torch.Tensor) -> Iterator[int]:
        """The first half of a prefill: encode the text, and project it for each layer of the decoder.

        Args:
            state: on which `start` was called for the slot.
            slot: which one.
            text: ids [S] int64 on the model's device.

        Yields:
            the multiplications of each piece, before it is run.
        """
        return self.projected_text(text, lambda layer: state.text_cache(layer, slot, len(text)))

    def projected_text(
        self,
        text: torch.Tensor,
        cache: Callable[[int], tuple[torch.Tensor, torch.Tensor]],
        exists: torch.Tensor | None = None,
    ) -> Iterator[int]:
        """`text_pieces` into any memory.

        Args:
            text: ids [S] int64 on the model's device.
            cache: gives a layer's keys and values [G, S, Dh], to be written.
            exists: as for `Encoder.pieces`.
        """
        encoder, decoder = self.config.encoder, self.config.decoder
        encoder_pieces = self.encoder.pieces(text, exists)
        for _ in self.encoder.layers:
            yield text.shape[0] * block_weights(encoder)
            encoded = next(encoder_pieces)
        for index, layer in enumerate(self.layers):
            yield text.shape[0] * text_projection_weights(decoder)
            layer.cross_attn.fill(encoded, *cache(index))

    def text_work(self, length: int) -> int:
        """Multiplications of all of `text_pieces` for a text of so many positions."""
        encoder, decoder = self.config.encoder, self.config.decoder
        layers = encoder.num_hidden_layers * block_weights(encoder)
        return length * (layers + decoder.num_hidden_layers * text_projection_weights(decoder))

    def prompt_pieces(
        self, state: DecodeState, slot: int, text_length: int, length: int, prefix: KVCache | None = None
    ) -> Iterator[int]:
        """The second half: run the rows of the prompt.

        Args:
            state, slot: whose text has been read.
            text_length: positions of the text.
            length: rows of the prompt, the slot's position.
            prefix: keys and values [L, G, length, Dh] of the prompt's rows without text, which do not depend on the
                text: what `prompt_cache` gave after an earlier prefill of the same prompt.

        Yields:
            as `text_pieces`.
        """
        if prefix is None:
            yield from self._prompt_rows(state, slot, None, length)
        else:
            self.prompt_cache(state, slot, length).copy_from(prefix)
            prefix = None  # memory that may be needed elsewhere
        yield from self._prompt_rows(state, slot, text_length, length)

    def activate(self, state: DecodeState, slot: int, length: int) -> None:
        """Let a slot whose caches are filled run from the next step on: its first row is `length`."""
        residual = state.residual.rows(slice(2 * slot, 2 * slot + 2))
        first_row = embed(state.grid[slot, length : length + 1], self.embedding)
        residual.write(first_row, self.layers[0].self_norm.weight)
        state.activate(slot)

    def _prompt_rows(self, state: DecodeState, slot: int, text_length: int | None, length: int) -> Iterator[int]:
        """Run a prompt's rows, with the text or, where its length is None, without."""
        for start in range(0, length, self.prefill_rows):
            stop = min(start + self.prefill_rows, length)
            x = embed(state.grid[slot, start:stop], self.embedding)
            cosines, sines = (table[start:stop] for table in self.rope)
            for index in range(len(self.layers)):
                yield (stop - start) * block_weights(self.config.decoder)
                x = self._layer_of_prompt(index, x, (cosines, sines), state, slot, text_length, start)

    def _layer_of_prompt(
        self,
        index: int,
        x: torch.Tensor,
        rope: tuple[torch.Tensor, torch.Tensor],
        state: DecodeState,
        slot: int,
        text_length: int | None,
        start: int,
    ) -> torch.Tensor:
        keys, values = (cache[2 * slot + (text_length is not None)] for cache in state.self_cache.layer(index))
        text = None if text_length is None else state.text_cache(index, slot, text_length)
        return self.layers[index].prefill(x, rope, (keys, values), text, start)

    @staticmethod
    def prompt_cache(state: DecodeState, slot: int, length: int) -> KVCache:
        """Keys and values [L, G, length, Dh] of a prefilled slot's prompt without text: views, which last as long as
        the request has the slot."""
        return state.self_cache.rows_of(2 * slot, length)

    def embed_current_tokens(self, state: DecodeState) -> None:
        """Load the residual from the token grid, for positions that `step` did not produce."""
        slots = torch.arange(state.slots, device=self.device)
        x = embed(state.grid[slots, state.position], self.embedding)
        state.residual.write(x.repeat_interleave(2, dim=0), self.layers[0].self_norm.weight)

    def logits(self, state: DecodeState) -> torch.Tensor:
        """Feed each slot's row at its position -> logits [2B, C, V] float32 of the row that follows.

        Changes nothing that a later call reads, so that it can be asked again.
        """
        self.embed_current_tokens(state)
        logits = self._decode(state).clone()
        self.embed_current_tokens(state)
        return logits

    def step(self, state: DecodeState) -> None:
        """One row for every slot that runs: decode, draw, write, move on.

        Device operations only: on a GPU no value of a tensor decides what runs, nothing is allocated, and the host
        waits for nothing. On a CPU it is one call of compiled code where there is any; else the reference of attention
        reads the positions, to look at no more of the cache than is written.
        """
        if self.compiled_step is not None and not uses_triton(state.grid):
            self.compiled_step.step(state)
            return
        next_row(self._decode(state), state, self.embedding, self.layers[0].self_norm.weight)

    def _decode(self, state: DecodeState) -> torch.Tensor:
        """The residual through all layers, in place -> logits [2B, C, V]."""
        if self.compiled_step is not None and not uses_triton(state.grid):
            self.compiled_step.decode(state)
            return state.buffers.logits
        for index, layer in enumerate(self.layers):
            layer.step(state, self.rope, index)
        logits = state.buffers.logits
        norm_linear(state.residual, self.head, self.norm.eps, out=logits.flatten(1))
        return logits
