"""The decode step of a CPU in compiled code: one call, without the GIL, over the state's own tensors.

The stages are those of `DecoderLayer.step` and `next_row`, whose torch references define them; see docs/cpu.md.
"""

import ctypes
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import torch

from ..kernels.cpu import structures
from ..kernels.cpu.build import library
from ..kernels.cpu.matmul import scratch_memory, thread_count
from ..kernels.cpu.structures import KINDS, is_compilable, matrix_of
from ..kernels.norm import headroom
from .state import DecodeState

if TYPE_CHECKING:
    from .dia import DiaModel
    from .layers import DecoderLayer

# Stages of a layer, in the order of native/step.c.
STAGES = (
    "project_qkv", "attend_to_rows", "project_attn_out", "project_cross_query", "attend_to_text",
    "project_cross_attn_out", "project_hidden", "project_down",
)  # fmt: skip
TIMES = (*STAGES, "project_logits", "next_row")  # what `timed_step` tells apart, in its order


class CompiledStep:
    """A model's step in compiled code. Whatever it points to belongs to the model, or to the state that it is given.

    Attributes:
        spare_threads: how many more threads than torch has `step` may use now. Its bits do not depend on that.
    """

    def __init__(self, model: "DiaModel", functions: ctypes.CDLL):
        self._functions = functions
        self._layers = (structures.Layer * len(model.layers))(*map(_layer, model.layers))
        self._model = _model(model, self._layers)
        self._kept = _PointedTo(lambda: None, structures.State(), torch.empty(0))
        self.spare_threads = 0
        self._spent: ctypes.Array | None = None  # nanoseconds of TIMES, while somebody wants to know

    @classmethod
    def of(cls, model: "DiaModel") -> "CompiledStep | None":
        """None where torch runs the step: on a GPU, without compiled code, and for weights that it does not know."""
        if model.device.type != "cpu" or model.dtype not in KINDS:
            return None
        if not all(map(is_compilable, step_matrices(model))) or not model.embedding.is_contiguous():
            return None
        functions = library()
        return None if functions is None else cls(model, functions)

    def step(self, state: DecodeState) -> None:
        """`DiaModel.step`."""
        threads = thread_count() + self.spare_threads
        if self._spent is None:
            self._functions.step(self._model, self._state(state), threads)
        else:
            self._functions.timed_step(self._model, self._state(state), threads, self._spent)

    @contextmanager
    def timed(self) -> Iterator[dict[str, float]]:
        """Time the stages of the steps within the context.

        Yields:
            a dict that has, behind the context, the seconds of each of TIMES, all steps and layers together.
        """
        seconds: dict[str, float] = {}
        spent = self._spent = (ctypes.c_int64 * len(TIMES))()
        try:
            yield seconds
        finally:
            self._spent = None
            seconds.update(zip(TIMES, (nanoseconds / 1e9 for nanoseconds in spent), strict=True))

    def decode(self, state: DecodeState) -> None:
        """The residual through all layers, into `state.buffers.logits`."""
        self._functions.decode(self._model, self._state(state), thread_count())

    def next_row(self, state: DecodeState) -> None:
        """`kernels.sample_and_advance.next_row` on `state.buffers.logits`."""
        self._functions.next_row(self._model, self._state(state), thread_count())

    def run_stage(self, state: DecodeState, layer: int, stage: str) -> None:
        """One of STAGES alone."""
        self._functions.run_stage(self._model, self._state(state), layer, STAGES.index(stage), thread_count())

    def _state(self, state: DecodeState) -> structures.State:
        if self._kept.state() is not state:
            slots, capacity, text = state.slots, state.rows, state.cross_cache.keys.shape[3]
            scratch = scratch_memory(self._functions.scratch_bytes(self._model, slots, capacity, text))
            self._kept = _PointedTo(weakref.ref(state), _state(state, scratch), scratch)
        return self._kept.structure


class _StateReference(Protocol):
    def __call__(self) -> DecodeState | None: ...


class _PointedTo:
    """A state's structure, while there is that state."""

    def __init__(self, state: _StateReference, structure: structures.State, scratch: torch.Tensor):
        self.state, self.structure, self.scratch = state, structure, scratch


def step_matrices(model: "DiaModel") -> list:
    """What a decode step multiplies with."""
    return [model.head, *(matrix for layer in model.layers for matrix in _matrices(layer))]


def _matrices(layer: "DecoderLayer") -> list:
    attention, cross, mlp = layer.self_attn, layer.cross_attn, layer.mlp
    return [attention.qkv, attention.o, cross.q, cross.o, mlp.gate_up, mlp.down]


def _layer(layer: "DecoderLayer") -> structures.Layer:
    norms = [layer.cross_norm.weight, layer.mlp_norm.weight, layer.next_norm.weight, layer.uncond_cross_out]
    return structures.Layer(*map(matrix_of, _matrices(layer)), *map(_address, norms))


def _model(model: "DiaModel", layers: ctypes.Array) -> structures.Model:
    config, sizes = model.config, model.config.decoder
    cosines, sines = model.rope
    return structures.Model(
        layers=layers,
        head=matrix_of(model.head),
        embedding=_address(model.embedding),
        first_norm=_address(model.layers[0].self_norm.weight),
        cosines=_address(cosines),
        sines=_address(sines),
        layer_count=len(model.layers),
        width=sizes.hidden_size,
        inner=sizes.intermediate_size,
        heads=sizes.num_attention_heads,
        groups=sizes.num_key_value_heads,
        head_dim=sizes.head_dim,
        cross_heads=sizes.cross_num_attention_heads,
        cross_groups=sizes.cross_num_key_value_heads,
        cross_head_dim=sizes.cross_head_dim,
        channels=sizes.num_channels,
        vocab=sizes.vocab_size,
        eos=config.eos_token_id,
        pad=config.pad_token_id,
        max_delay=config.max_delay,
        eps=sizes.norm_eps,
        headroom=headroom(model.dtype),
        kind=KINDS[model.dtype],
    )


def _state(state: DecodeState, scratch: torch.Tensor) -> structures.State:
    residual, buffers, own, cross = state.residual, state.buffers, state.self_cache, state.cross_cache
    per_slot = (
        "position", "countdown", "end_row", "broken", "max_tokens", "first_eos_row", "top_k", "seed", "last_text",
    )  # fmt: skip
    settings = ("cfg_scale", "temperature", "top_p", "delay")
    named = {name: _address(getattr(state, name)) for name in ("grid", *per_slot, *settings)}
    return structures.State(
        x=_address(residual.x),
        z=_address(residual.z),
        squares=_address(residual.squares),
        query=_address(buffers.query),
        attn_out=_address(buffers.attn_out),
        cross_query=_address(buffers.cross_query),
        cross_attn_out=_address(buffers.cross_attn_out),
        hidden=_address(buffers.hidden),
        logits=_address(buffers.logits),
        keys=_address(own.keys[0]),
        values=_address(own.values[0]),
        cross_keys=_address(cross.keys[0]),
        cross_values=_address(cross.values[0]),
        layer_bytes=own.keys.stride(0) * own.keys.element_size(),
        cross_layer_bytes=cross.keys.stride(0) * cross.keys.element_size(),
        slots=state.slots,
        capacity=own.keys.shape[3],
        text_capacity=cross.keys.shape[3],
        partials=residual.squares.shape[1],
        grid_rows=state.grid.shape[1],
        scratch=scratch.data_ptr(),
        **named,
    )


def _address(tensor: torch.Tensor) -> int:
    """
    Raises:
        ValueError: the tensor does not lie there as the compiled code expects it.
    """
    if not tensor.is_contiguous() or tensor.device.type != "cpu":
        raise ValueError(f"the compiled step needs contiguous tensors of the CPU, got strides {tensor.stride()}")
    return tensor.data_ptr()
