"""Instructions that compute a thread's result from its own operands: integers, floats, bits, comparisons, selection.

Where hardware and this differ: `fma` rounds to float64 before it rounds to float32 (about one result in 2^29);
approximate instructions (`ex2`, `lg2`, `rsqrt`, `div.full`) are exact to the last bit or so; `.ftz` does not flush.
"""

from collections.abc import Callable, Container

import numpy as np

from .errors import EmulationError
from .numeric import (
    F64,
    I64,
    PACKED,
    SIGNED,
    U32,
    U64,
    UNSIGNED,
    WIDTH,
    halves,
    is_float,
    is_signed,
    numbers,
    pack_halves,
    to_bits,
)

Compute = Callable[..., np.ndarray]  # bits of the operands -> bits of the result
Rule = tuple[Compute, tuple[str, ...]]  # with the PTX types of the operands


def rule(opcode: tuple[str, ...]) -> Rule:
    """How an instruction computes.

    Raises:
        EmulationError: it is not known.
    """
    if opcode[0] == "cvt":
        return _convert(opcode)
    for family, modifiers in FAMILIES:
        found = family(opcode[0], opcode, opcode[-1])
        if found:
            _require_known(opcode, modifiers)
            return found
    raise _unknown(opcode)


def _require_known(opcode: tuple[str, ...], modifiers: Container[str]) -> None:
    """A modifier that is passed over would be another instruction."""
    if not all(part in WIDTH or part == "pred" or part in modifiers for part in opcode[1:]):
        raise _unknown(opcode)


def _unknown(opcode: tuple[str, ...]) -> EmulationError:
    return EmulationError(f"{'.'.join(opcode)} is not known")


# Bits


def _bits(name: str, opcode: tuple[str, ...], kind: str) -> Rule | None:
    if name in BITWISE:
        return BITWISE[name], (kind, kind)
    if name == "not":
        return np.invert, (kind,)
    if name in ("shl", "shr"):
        return _shift(name, kind), (kind, "u32")
    if name == "prmt" and len(opcode) == 2:
        return _permute_bytes, (kind,) * 3
    if name == "bfe":
        return _extract_signed if is_signed(kind) else _extract, (kind,) * 3
    if name == "lop3":
        return _three_input_logic, (kind,) * 3 + ("u32",)
    return (_count_ones, (kind,)) if name == "popc" else None


BITWISE = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}


def _shift(name: str, kind: str) -> Compute:
    """A shift by the register's width or more leaves no bit but the sign's."""
    bits, dtype = 8 * WIDTH[kind], UNSIGNED[WIDTH[kind]]

    def left(value, amount):
        return np.where(amount < bits, value << np.minimum(amount, bits - 1).astype(dtype), dtype(0))

    def right(value, amount):
        return np.where(amount < bits, value >> np.minimum(amount, bits - 1).astype(dtype), dtype(0))

    def right_signed(value, amount):
        signed = numbers(value, kind)
        return to_bits(signed >> np.minimum(amount, bits - 1).astype(signed.dtype), kind)

    return left if name == "shl" else right_signed if is_signed(kind) else right


def _permute_bytes(low, high, selector):
    """Four bytes of eight, each chosen by four bits, of which the highest asks for the byte's sign."""
    pool = low.astype(U64) | (high.astype(U64) << U64(32))
    result = U64(0)
    for place in range(4):
        choice = (selector >> U32(4 * place)).astype(U64)
        byte = (pool >> ((choice & U64(7)) << U64(3))) & U64(255)
        sign = np.where(byte & U64(128), U64(255), U64(0))
        result = result | np.where(choice & U64(8), sign, byte) << U64(8 * place)
    return result.astype(U32)


def _extract(value, position, length):
    field = value.astype(U64) >> (position & U32(255)).astype(U64)
    return (field & ((U64(1) << (length & U32(255)).astype(U64)) - U64(1))).astype(value.dtype)


def _extract_signed(value, position, length):
    """Above the field are copies of its highest bit; a field that goes beyond the value has the value's sign there."""
    signed, bits = value.view(SIGNED[value.dtype.itemsize]), 8 * value.dtype.itemsize
    length = length & U32(255)
    field = signed >> np.minimum(position & U32(255), bits - 1).astype(signed.dtype)
    unused = (bits - np.clip(length, 1, bits)).astype(signed.dtype)
    return np.where(length == 0, value.dtype.type(0), (field << unused >> unused).view(value.dtype))


def _three_input_logic(first, second, third, table):
    """A truth table of eight bits."""
    result = U32(0)
    for row in range(8):
        a, b, c = (value if row & bit else ~value for value, bit in ((first, 4), (second, 2), (third, 1)))
        result = result | np.where(table >> U32(row) & U32(1), a & b & c, U32(0))
    return result


def _count_ones(value):
    return sum((value >> value.dtype.type(bit)) & value.dtype.type(1) for bit in range(8 * value.dtype.itemsize))


# Selection and comparison


def _selection(name: str, opcode: tuple[str, ...], kind: str) -> Rule | None:
    if name == "mov":
        return (lambda value: value), (kind,)
    if name == "selp":
        return (lambda first, second, condition: np.where(condition, first, second)), (kind, kind, "pred")
    return (_comparison(opcode, kind), (kind, kind)) if name == "setp" else None


COMPARISONS = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal,
}  # fmt: skip


def _comparison(opcode: tuple[str, ...], kind: str) -> Compute:
    """setp with one result. Of floats, `ltu` and the like are true where an operand is NaN, `lt` is not."""
    how = opcode[1]
    if len([part for part in opcode if part != "ftz"]) != 3:
        raise _unknown(opcode)
    if not is_float(kind):
        return lambda first, second: COMPARISONS[how](numbers(first, kind), numbers(second, kind))

    def compare(first, second):
        first, second = numbers(first, kind), numbers(second, kind)
        unordered = np.isnan(first) | np.isnan(second)
        if how in ("nan", "num"):
            return unordered if how == "nan" else ~unordered
        if how in COMPARISONS:
            return COMPARISONS[how](first, second) & ~unordered
        return COMPARISONS[how[:-1]](first, second) | unordered

    return compare


# Integers


def _integer(name: str, opcode: tuple[str, ...], kind: str) -> Rule | None:
    if kind[0] not in "us":
        return None
    if name in ("mul", "mad"):
        return _product(name, opcode, kind)
    if name in ("add", "sub"):
        return (np.add if name == "add" else np.subtract), (kind, kind)
    if name in ("min", "max"):
        return _typed(np.minimum if name == "min" else np.maximum, kind), (kind, kind)
    if name in ("div", "rem"):
        return _typed(_quotient if name == "div" else _remainder, kind), (kind, kind)
    return (_typed(np.negative if name == "neg" else np.abs, kind), (kind,)) if name in ("neg", "abs") else None


def _product(name: str, opcode: tuple[str, ...], kind: str) -> Rule:
    """mul and mad: the low half, the high half (of up to 32 bits), or all of the product."""
    width = WIDTH[kind]
    if "lo" in opcode:
        multiply, result = np.multiply, kind
    elif "wide" in opcode or ("hi" in opcode and width <= 4):
        multiply = _wide_product(kind) if "wide" in opcode else _high_product(kind)
        result = f"{kind[0]}{16 * width}" if "wide" in opcode else kind
    else:
        raise _unknown(opcode)
    if name == "mul":
        return multiply, (kind, kind)
    return (lambda first, second, third: multiply(first, second) + third), (kind, kind, result)


def _wide_product(kind: str) -> Compute:
    wide = (SIGNED if is_signed(kind) else UNSIGNED)[2 * WIDTH[kind]]
    unsigned = UNSIGNED[2 * WIDTH[kind]]
    return lambda first, second: (numbers(first, kind).astype(wide) * numbers(second, kind).astype(wide)).view(unsigned)


def _high_product(kind: str) -> Compute:
    multiply, unsigned = _wide_product(kind), UNSIGNED[WIDTH[kind]]
    bits = UNSIGNED[2 * WIDTH[kind]](8 * WIDTH[kind])
    return lambda first, second: (multiply(first, second) >> bits).astype(unsigned)


def _quotient(first, second):
    """Rounds toward zero; by zero, which PTX leaves open, it divides by one."""
    divisor = np.where(second == 0, second.dtype.type(1), second)
    down = first // divisor
    return down + ((first % divisor != 0) & ((first < 0) != (divisor < 0))).astype(down.dtype)


def _remainder(first, second):
    return first - _quotient(first, second) * second


# Floats


def _floating(name: str, opcode: tuple[str, ...], kind: str) -> Rule | None:
    if not is_float(kind):
        return None
    if name in ("min", "max"):
        pair = (np.minimum, np.maximum) if "NaN" in opcode else (np.fmin, np.fmax)
        function, count = pair[name == "max"], 2
    elif name in FLOATING:
        function, count = FLOATING[name]
    else:
        return None
    return (_packed if kind in PACKED else _typed)(function, kind), (kind,) * count


def _fused(first, second, third):
    return first.astype(F64) * second.astype(F64) + third.astype(F64)


FLOATING = {
    "add": (np.add, 2), "sub": (np.subtract, 2), "mul": (np.multiply, 2), "div": (np.divide, 2), "fma": (_fused, 3),
    "mad": (_fused, 3), "neg": (np.negative, 1), "abs": (np.abs, 1), "ex2": (np.exp2, 1), "lg2": (np.log2, 1),
    "sqrt": (np.sqrt, 1), "rcp": (lambda value: value.dtype.type(1) / value, 1),
    "rsqrt": (lambda value: 1 / np.sqrt(value.astype(F64)), 1),
}  # fmt: skip


def _typed(function: Callable, kind: str) -> Compute:
    """A function of numbers as one of bits."""
    return lambda *bits: to_bits(function(*(numbers(value, kind) for value in bits)), kind)


def _packed(function: Callable, kind: str) -> Compute:
    """The same for registers of two numbers."""

    def compute(*bits):
        low, high = zip(*(halves(value, kind) for value in bits), strict=True)
        return pack_halves(function(*low), function(*high), kind)

    return compute


# Instructions by family, each with the modifiers that it heeds or need not heed.
FAMILIES = (
    (_bits, ()),
    (_selection, {*COMPARISONS, *(f"{how}u" for how in COMPARISONS), "nan", "num", "ftz"}),
    (_integer, ("lo", "hi", "wide")),
    (_floating, ("rn", "ftz", "approx", "full", "NaN")),
)


# Conversions

ROUNDINGS = {"rzi": np.trunc, "rni": np.rint, "rmi": np.floor, "rpi": np.ceil}


def _convert(opcode: tuple[str, ...]) -> Rule:
    types = [part for part in opcode if part in WIDTH]
    if len(types) != 2 or "f32x2" in types:
        raise _unknown(opcode)
    result, kind = types
    to_whole = is_float(kind) and (result == kind or not is_float(result))  # numbers without a fraction
    rounding = next((ROUNDINGS[part] for part in opcode if part in ROUNDINGS and to_whole), None)
    if is_float(kind) and not is_float(result) and rounding is None:
        raise _unknown(opcode)
    _require_known(opcode, ("ftz", *(ROUNDINGS if to_whole else ("rn",) if is_float(result) else ())))
    if result in PACKED:
        return (lambda high, low: pack_halves(numbers(low, kind), numbers(high, kind), result)), (kind, kind)
    if is_float(result):
        whole = rounding or (lambda value: value)
        return (lambda value: to_bits(whole(numbers(value, kind)), result)), (kind,)
    if is_float(kind):
        return (lambda value: _to_integer(rounding(numbers(value, kind).astype(F64)), result)), (kind,)
    dtype = (SIGNED if is_signed(result) else UNSIGNED)[WIDTH[result]]
    return (lambda value: numbers(value, kind).astype(dtype)), (kind,)


def _to_integer(value, kind: str):
    """Out of range goes to the nearest end, NaN to 0."""
    bits = 8 * WIDTH[kind]
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if is_signed(kind) else (0, (1 << bits) - 1)
    dtype = (SIGNED if is_signed(kind) else UNSIGNED)[WIDTH[kind]]
    if bits == 64:
        raise EmulationError(f"a conversion of floats to {kind} is not known")
    return np.clip(np.nan_to_num(value, nan=0.0, posinf=high, neginf=low), low, high).astype(I64).astype(dtype)
