"""From nibbles to NF4 levels inside a kernel, two tensors from one of bytes.

In bfloat16 and float16 a level is two bytes, and each byte comes from a table of sixteen in four registers: PRMT picks
four bytes at a time, by nibbles with three bits each, and the fourth bit chooses between two picks. Elsewhere, in
float32 and in the interpreter, which has no assembly, a tree of selections gives the same numbers.
"""

import struct

import torch

from .dispatch import tl, triton
from .quantized import LEVELS, levels_on


def _words(dtype: torch.dtype, place: int) -> list[int]:
    """The low (0) or high (1) bytes of the sixteen levels as four registers."""
    codes = levels_on("cpu").to(dtype).view(torch.int16).tolist()
    values = bytes((code & 0xFFFF) >> 8 * place & 0xFF for code in codes)
    return list(struct.unpack("<4I", values))


def assembly(dtype: torch.dtype) -> str:
    """PTX from a register of four bytes, $4, to the levels of the low nibbles, $0 and $1, and the high, $2 and $3."""
    lines = [".reg .b32 bits, index, side, below, above, low, high;"]
    for half in (0, 1):
        lines.append(f"shr.b32 bits, $4, {16 * half};")
        lines.append("and.b32 index, bits, 0x7777;")
        lines.append("and.b32 side, bits, 0x8888;")
        lines.append("shr.b32 side, side, 1;")
        lines.append("or.b32 side, side, 0x3210;")
        for place, name in enumerate(("low", "high")):
            first, second, third, fourth = (f"0x{word:08x}" for word in _words(dtype, place))
            lines.append(f"prmt.b32 below, {first}, {second}, index;")
            lines.append(f"prmt.b32 above, {third}, {fourth}, index;")
            lines.append(f"prmt.b32 {name}, below, above, side;")
        lines.append(f"prmt.b32 ${half}, low, high, 0x6240;")
        lines.append(f"prmt.b32 ${2 + half}, low, high, 0x7351;")
    return "{ " + " ".join(lines) + " }"


BFLOAT16 = tl.constexpr(assembly(torch.bfloat16))
FLOAT16 = tl.constexpr(assembly(torch.float16))
TABLE = tl.constexpr(LEVELS)


@triton.jit
def nf4_levels(packed, DTYPE: tl.constexpr, ASSEMBLY: tl.constexpr):
    """Bytes -> the levels of their low and of their high nibbles, rounded to DTYPE."""
    if ASSEMBLY and DTYPE == tl.bfloat16:
        low, high = tl.inline_asm_elementwise(
            BFLOAT16, "=r,=r,=r,=r,r", [packed], dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=4
        )
    elif ASSEMBLY and DTYPE == tl.float16:
        low, high = tl.inline_asm_elementwise(
            FLOAT16, "=r,=r,=r,=r,r", [packed], dtype=(tl.float16, tl.float16), is_pure=True, pack=4
        )
    else:
        low, high = _select(packed & 15).to(DTYPE), _select(packed >> 4).to(DTYPE)
    return low, high


@triton.jit
def _select(nibble):
    """The levels of nibbles, in float32."""
    one, two, four, eight = nibble & 1 != 0, nibble & 2 != 0, nibble & 4 != 0, nibble & 8 != 0
    a = tl.where(two, tl.where(one, TABLE[3], TABLE[2]), tl.where(one, TABLE[1], TABLE[0]))
    b = tl.where(two, tl.where(one, TABLE[7], TABLE[6]), tl.where(one, TABLE[5], TABLE[4]))
    c = tl.where(two, tl.where(one, TABLE[11], TABLE[10]), tl.where(one, TABLE[9], TABLE[8]))
    d = tl.where(two, tl.where(one, TABLE[15], TABLE[14]), tl.where(one, TABLE[13], TABLE[12]))
    return tl.where(eight, tl.where(four, d, c), tl.where(four, b, a))
