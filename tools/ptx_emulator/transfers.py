"""Instructions that move data between registers, global and shared memory."""

import numpy as np

from .errors import EmulationError
from .numeric import UNSIGNED, WIDTH
from .operands import address, parts, source, target, targets
from .parser import Address, Immediate, Instruction
from .threads import Active, Copy, Threads


def load(instruction: Instruction):
    """ld, from parameters, global or shared memory, of one to eight elements."""
    if "param" in instruction.opcode:
        return _load_parameter(instruction)
    space, kind, registers = _space(instruction), instruction.kind, targets(instruction.operands[0])
    where, width, count = address(instruction.operands[1], _address_kind(space)), WIDTH[kind], len(registers)

    def from_global(threads: Threads, active: Active) -> None:
        places = _chosen(threads.full(where(threads.registers)), active)
        values = threads.grid.memory.load(places, width, count, threads.ahead(active))
        threads.write_columns(registers, values, active)

    def from_shared(threads: Threads, active: Active) -> None:
        places = _chosen(threads.full(where(threads.registers)), active)
        threads.write_columns(registers, threads.shared.load(_indices(active), places, width, count), active)

    return from_global if space == "global" else from_shared


def _load_parameter(instruction: Instruction):
    register, operand = target(instruction.operands[0]), instruction.operands[1]
    dtype = UNSIGNED[WIDTH[instruction.kind]]
    if not isinstance(operand, Address) or not isinstance(operand.base, str) or operand.offset:
        raise EmulationError(f"{operand} is not a parameter")
    name, bits = operand.base, (1 << 8 * WIDTH[instruction.kind]) - 1
    return lambda threads, active: threads.write(register, dtype(threads.grid.parameters[name] & bits), active)


def store(instruction: Instruction):
    """st, to global or shared memory."""
    space, kind = _space(instruction), instruction.kind
    where = address(instruction.operands[0], _address_kind(space))
    reads, dtype = [source(part, kind) for part in parts(instruction.operands[1])], UNSIGNED[WIDTH[kind]]

    def step(threads: Threads, active: Active) -> None:
        places = _chosen(threads.full(where(threads.registers)), active)
        values = [_chosen(threads.full(read(threads.registers)), active).astype(dtype) for read in reads]
        if space == "shared":
            threads.shared.store(_indices(active), places, np.stack(values, 1))
            return
        threads.require_waited(active, "global store")
        threads.grid.memory.store(places, np.stack(values, 1))

    return step


def atomic_add(instruction: Instruction):
    """atom.global.add of integers, one thread after the other."""
    kind = instruction.kind
    if "add" not in instruction.opcode or kind[0] == "f" or _space(instruction) != "global":
        raise EmulationError(f"{'.'.join(instruction.opcode)} is not known")
    register, where = target(instruction.operands[0]), address(instruction.operands[1], "u64")
    read, dtype = source(instruction.operands[2], kind), UNSIGNED[WIDTH[kind]]

    def step(threads: Threads, active: Active) -> None:
        threads.require_waited(active, "atomic")
        places, memory = _chosen(threads.full(where(threads.registers)), active), threads.grid.memory
        amounts = _chosen(threads.full(read(threads.registers)), active).astype(dtype)
        found = np.empty((len(places), 1), dtype)
        for i in range(len(places)):
            found[i] = memory.load(places[i : i + 1], dtype().itemsize, 1)[0]
            memory.store(places[i : i + 1], found[i : i + 1] + amounts[i])
        threads.write_columns([register], found, active)

    return step


def copy_asynchronously(instruction: Instruction):
    """cp.async: the bytes are read and land when a thread waits for their group."""
    into, origin = address(instruction.operands[0], "u32"), address(instruction.operands[1], "u64")
    size, read = instruction.operands[2], source(instruction.operands[-1], "u32")
    if not isinstance(size, Immediate):
        raise EmulationError("cp.async of an unknown size is not known")

    def step(threads: Threads, active: Active) -> None:
        indices = np.arange(threads.count) if active is None else np.flatnonzero(active)
        values = (threads.full(value(threads.registers))[indices] for value in (origin, into, read))
        copy = Copy(indices, threads.committed[indices], *values, size.value)
        ahead, wanted = threads.ahead(active), copy.read != 0
        if ahead is not None and wanted.any():  # the read may come at any time from now on
            threads.grid.memory.load(copy.source[wanted], 4, size.value // 4, ahead[wanted])
        threads.copies.append(copy)

    return step


def asynchronous(instruction: Instruction):
    """The cp.async family."""
    if "commit_group" in instruction.opcode:
        return lambda threads, active: threads.commit(active)
    if "wait_all" in instruction.opcode:
        return lambda threads, active: threads.land(active, -1)
    if "wait_group" in instruction.opcode:
        pending = instruction.operands[0].value
        return lambda threads, active: threads.land(active, pending)
    if "bulk" in instruction.opcode or "mbarrier" in instruction.opcode:
        raise EmulationError(f"{'.'.join(instruction.opcode)} is not known")
    return copy_asynchronously(instruction)


def _space(instruction: Instruction) -> str:
    for space in ("global", "shared"):
        if space in instruction.opcode:
            return space
    raise EmulationError(f"{'.'.join(instruction.opcode)}: only global and shared memory are known")


def _address_kind(space: str) -> str:
    return "u64" if space == "global" else "u32"


def _chosen(values: np.ndarray, active: Active) -> np.ndarray:
    return values if active is None else values[active]


def _indices(active: Active):
    return slice(None) if active is None else active
