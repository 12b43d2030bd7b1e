"""The structures that native/step.c reads, field by field as the headers beside it have them."""

import ctypes
from ctypes import POINTER, c_float, c_int, c_long, c_uint, c_void_p
from typing import TypeGuard

import torch

from ..quantized import Int8Weight, NF4Weight, Weight
from .limbs import digits_of

KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # `Kind`
FORMAT_INT8, FORMAT_NF4, FORMAT_WIDE_NF4 = 3, 4, 5  # `Format`, of which the first are the kinds
WIDEST = 2**16  # columns of an int8 weight, so that sums fit into 32 bits

pointer = c_void_p


class Matrix(ctypes.Structure):
    _fields_ = [
        ("values", pointer), ("scales", pointer), ("outputs", c_long), ("columns", c_long),
        ("format", c_int), ("digits", c_int),
    ]  # fmt: skip


class Layer(ctypes.Structure):
    _fields_ = [(name, Matrix) for name in ("qkv", "o", "cross_q", "cross_o", "gate_up", "down")] + [
        (name, pointer) for name in ("cross_norm", "mlp_norm", "next_norm", "uncond_cross_out")
    ]


class Model(ctypes.Structure):
    _fields_ = [
        ("layers", POINTER(Layer)),
        ("head", Matrix),
        *((name, pointer) for name in ("embedding", "first_norm", "cosines", "sines")),
        *((name, c_long) for name in (
            "layer_count", "width", "inner", "heads", "groups", "head_dim", "cross_heads", "cross_groups",
            "cross_head_dim", "channels", "vocab", "eos", "pad", "max_delay",
        )),
        ("eps", c_float), ("headroom", c_float), ("kind", c_int),
    ]  # fmt: skip


class State(ctypes.Structure):
    _fields_ = [
        *((name, pointer) for name in (
            "x", "z", "squares", "query", "attn_out", "cross_query", "cross_attn_out", "hidden", "logits",
            "keys", "values", "cross_keys", "cross_values",
        )),
        *((name, c_long) for name in (
            "layer_bytes", "cross_layer_bytes", "slots", "capacity", "text_capacity", "partials", "grid_rows",
        )),
        *((name, pointer) for name in (
            "grid", "position", "countdown", "end_row", "broken", "max_tokens", "first_eos_row", "top_k",
            "seed", "last_text", "cfg_scale", "temperature", "top_p", "delay", "scratch",
        )),
    ]  # fmt: skip


class SequenceAttention(ctypes.Structure):
    """Of native/sequence.h."""

    _fields_ = [
        *((name, pointer) for name in ("query", "keys", "values", "out")),
        *((name, c_long) for name in (
            "rows", "positions", "heads", "groups", "head_dim", "query_stride", "group_stride",
        )),
        ("causal", c_int),
    ]  # fmt: skip


class Convolution(ctypes.Structure):
    """Of native/convolution.h."""

    _fields_ = [
        ("weights", pointer), ("bias", pointer),
        *((name, c_long) for name in ("inputs", "outputs", "taps", "dilation")),
    ]  # fmt: skip


class CodecLayer(ctypes.Structure):
    """Of native/codec.h."""

    _fields_ = [
        ("alpha", pointer), ("inverse_alpha", pointer), ("convolution", Convolution),
        *((name, c_long) for name in ("padding", "rate", "cut")),
        ("role", c_int),
    ]  # fmt: skip


def is_compilable(weight: object) -> TypeGuard[Weight]:
    """Whether the compiled code, where there is any, multiplies with a weight."""
    if isinstance(weight, torch.Tensor):
        parts = [weight]
        known = weight.dtype in KINDS and weight.dim() == 2
    elif isinstance(weight, Int8Weight):
        parts = [weight.values, weight.absmax]
        known = weight.dtype in KINDS and weight.shape[1] <= WIDEST
    elif isinstance(weight, NF4Weight):
        parts = [weight.packed, weight.absmax]
        known = weight.dtype in KINDS
    else:
        return False
    return known and all(part.device.type == "cpu" and part.is_contiguous() for part in parts)


def matrix_of(weight: object) -> Matrix:
    """A weight as the compiled code reads it, kept alive by the caller.

    Raises:
        TypeError: it is not `is_compilable`.
    """
    if not is_compilable(weight):
        raise TypeError(f"there is no compiled product with {type(weight).__name__}")
    outputs, columns = weight.shape
    if isinstance(weight, torch.Tensor):
        return Matrix(weight.data_ptr(), None, outputs, columns, KINDS[weight.dtype], 0)
    if isinstance(weight, Int8Weight):
        values, scales = weight.values, weight.absmax
        return Matrix(values.data_ptr(), scales.data_ptr(), outputs, columns, FORMAT_INT8, digits_of(weight.dtype))
    format = FORMAT_NF4 if weight.dtype == torch.bfloat16 else FORMAT_WIDE_NF4
    return Matrix(weight.packed.data_ptr(), weight.absmax.data_ptr(), outputs, columns, format, 0)


SIGNATURES: dict[str, tuple[list, type | None]] = {
    "scratch_bytes": ([POINTER(Model), c_long, c_long, c_long], c_long),
    "run_stage": ([POINTER(Model), POINTER(State), c_long, c_int, c_int], None),
    "decode": ([POINTER(Model), POINTER(State), c_int], None),
    "next_row": ([POINTER(Model), POINTER(State), c_int], None),
    "step": ([POINTER(Model), POINTER(State), c_int], None),
    "timed_step": ([POINTER(Model), POINTER(State), c_int, pointer], None),
    "multiply_bytes": ([POINTER(Matrix), c_long], c_long),
    "multiply_matrix": ([POINTER(Matrix), pointer, c_int, c_long, pointer, pointer, c_int], None),
    "read_matrix": ([POINTER(Matrix), pointer, c_int, c_int], None),
    "sequence_attention": ([POINTER(SequenceAttention), c_int], None),
    "normalize_rows": ([pointer, pointer, c_float, pointer, c_long, c_long, c_int], None),
    "gate_rows": ([pointer, pointer, c_long, c_long, c_int], None),
    "section_bytes": ([POINTER(CodecLayer), c_long, c_long], c_long),
    "decode_section": ([POINTER(CodecLayer), c_long, pointer, c_long, pointer, pointer, pointer, c_int], None),
    "read_memory": ([pointer, c_long, c_int], c_uint),
}  # fmt: skip
