"""Operands as functions of the register file."""

from collections.abc import Callable
from typing import Any

import numpy as np

from .errors import EmulationError
from .numeric import UNSIGNED, WIDTH
from .parser import Address, Immediate, Operand, Register, Vector

Registers = list[Any]  # bits of every register: an array with an element per thread, or a scalar where all are equal
Read = Callable[[Registers], Any]


def source(operand: Operand | None, kind: str) -> Read:
    """Reads an operand's bits; a constant becomes one of PTX type `kind`."""
    if isinstance(operand, Register):
        index = operand.index
        return lambda registers: registers[index]
    if not isinstance(operand, Immediate):
        raise EmulationError(f"{operand} cannot be read as a number")
    value = np.bool_(operand.value != 0) if kind == "pred" else _constant(operand.value, kind)
    return lambda registers: value


def _constant(value: int, kind: str):
    width = WIDTH[kind]
    return UNSIGNED[width](value & ((1 << 8 * width) - 1))


def address(operand: Operand, kind: str) -> Read:
    """Computes [base + offset] in `kind`: u64 for global memory, u32 for shared."""
    if not isinstance(operand, Address) or isinstance(operand.base, str):
        raise EmulationError(f"{operand} is not an address")
    base, dtype = source(operand.base, kind), UNSIGNED[WIDTH[kind]]
    offset = _constant(operand.offset, kind)
    return lambda registers: base(registers).astype(dtype) + offset


def parts(operand: Operand) -> tuple:
    """A vector's elements; a single operand is a vector of one."""
    return operand.parts if isinstance(operand, Vector) else (operand,)


def target(operand: Operand | None) -> int | None:
    """The register that a result goes to; None for `_`, which drops it."""
    if operand is None:
        return None
    if not isinstance(operand, Register):
        raise EmulationError(f"{operand} cannot take a result")
    return operand.index


def targets(operand: Operand) -> list[int | None]:
    return [target(part) for part in parts(operand)]
