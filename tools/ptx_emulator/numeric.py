"""PTX types as numpy's. A register holds unsigned bits of its width; instructions read them as numbers of a type."""

import numpy as np

U8, U16, U32, U64 = np.uint8, np.uint16, np.uint32, np.uint64
I64, F16, F32, F64 = np.int64, np.float16, np.float32, np.float64
UNSIGNED = {1: U8, 2: U16, 4: U32, 8: U64}
SIGNED = {1: np.int8, 2: np.int16, 4: np.int32, 8: I64}
WIDTH = {
    "b8": 1, "u8": 1, "s8": 1, "b16": 2, "u16": 2, "s16": 2, "f16": 2, "bf16": 2, "b32": 4, "u32": 4, "s32": 4,
    "f32": 4, "f16x2": 4, "bf16x2": 4, "b64": 8, "u64": 8, "s64": 8, "f64": 8, "f32x2": 8,
}  # fmt: skip
PACKED = {"f16x2": "f16", "bf16x2": "bf16", "f32x2": "f32"}  # two numbers in one register, the first in the low half


def register_dtype(kind: str) -> type:
    """numpy's dtype for the bits of a register of this PTX type."""
    return np.bool_ if kind == "pred" else UNSIGNED[WIDTH[kind]]


def is_float(kind: str) -> bool:
    return "f" in kind


def is_signed(kind: str) -> bool:
    return kind[0] == "s"


def numbers(bits, kind: str):
    """Bits as numbers: signed, unsigned, float64, or float32 for the three smaller float types."""
    width = WIDTH[kind]
    if bits.dtype.itemsize != width:
        bits = bits.astype(UNSIGNED[width])
    if kind == "bf16":
        return (bits.astype(U32) << U32(16)).view(F32)
    if kind == "f16":
        return bits.view(F16).astype(F32)
    if kind in ("f32", "f64"):
        return bits.view(F32 if kind == "f32" else F64)
    return bits.view(SIGNED[width]) if is_signed(kind) else bits


def to_bits(values, kind: str):
    """Numbers as bits of a type: floats rounded to nearest even, integers cut to its width."""
    if kind == "bf16":
        return _round_to_bfloat16(values.astype(F32))
    if kind == "f16":
        return values.astype(F16).view(U16)
    if kind in ("f32", "f64"):
        return values.astype(F32).view(U32) if kind == "f32" else values.astype(F64).view(U64)
    unsigned = UNSIGNED[WIDTH[kind]]
    return values.view(unsigned) if values.dtype.itemsize == WIDTH[kind] else values.astype(unsigned)


def _round_to_bfloat16(values):
    bits = values.view(U32)
    rounded = (bits + U32(0x7FFF) + ((bits >> U32(16)) & U32(1))) >> U32(16)
    return np.where(np.isnan(values), U16(0x7FFF), rounded.astype(U16))


def halves(bits, kind: str) -> list:
    """The two numbers of a packed register, low half first."""
    part = PACKED[kind]
    width = WIDTH[part]
    unsigned = UNSIGNED[width]
    return [numbers(bits.astype(unsigned), part), numbers((bits >> bits.dtype.type(8 * width)).astype(unsigned), part)]


def pack_halves(low, high, kind: str):
    """The inverse of `halves`."""
    part, whole = PACKED[kind], UNSIGNED[WIDTH[kind]]
    return to_bits(low, part).astype(whole) | (to_bits(high, part).astype(whole) << whole(8 * WIDTH[part]))
