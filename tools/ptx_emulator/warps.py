"""Instructions that a warp executes as one: shuffles, reductions, matrix fragments and their products.

Tensor cores add their exact products in float64 here and round once; hardware keeps fewer bits and does not say which.
"""

import numpy as np

from .errors import EmulationError
from .numeric import F32, F64, U16, U32, numbers
from .operands import address, parts, source, target, targets
from .parser import Instruction, Vector
from .threads import WARP, Active, Threads

LANE = np.arange(WARP)
ROW, COLUMN = LANE // 4, 2 * (LANE % 4)  # of an 8 x 8 matrix of 16 bits, the first of a lane's two elements


def shuffle(instruction: Instruction):
    """shfl.sync; the predicate says whether the source lane was in range."""
    mode, result = instruction.opcode[2], instruction.operands[0]
    registers = targets(result) if isinstance(result, Vector) else [target(result), None]
    value, distance, bounds = (source(operand, "b32") for operand in instruction.operands[1:4])

    def step(threads: Threads, active: Active) -> None:
        threads.require_whole_warps(active)
        values, by, limit = (threads.warps(read(threads.registers)) for read in (value, distance, bounds))
        lanes, valid = _source_lanes(mode, by.astype(np.int64), limit.astype(np.int64))
        threads.write(registers[0], np.take_along_axis(values, lanes, 1).reshape(-1), active)
        threads.write(registers[1], valid.reshape(-1), active)

    return step


def _source_lanes(mode: str, by: np.ndarray, bounds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lane that each lane reads, [warps, 32], itself where that is out of its segment; and whether it is not."""
    segment = bounds >> 8 & 31
    last = LANE & segment | bounds & 31 & ~segment
    by = by & 31
    if mode == "up":
        lanes = LANE - by
        valid = lanes >= last
    elif mode in ("down", "bfly", "idx"):
        lanes = {"down": LANE + by, "bfly": LANE ^ by, "idx": LANE & segment | by & ~segment}[mode]
        valid = lanes <= last
    else:
        raise EmulationError(f"shfl.{mode} is not known")
    return np.where(valid, lanes, LANE), valid


def reduce(instruction: Instruction):
    """redux.sync.add of integers."""
    if instruction.opcode[2] != "add":
        raise EmulationError(f"{'.'.join(instruction.opcode)} is not known")
    register, read = target(instruction.operands[0]), source(instruction.operands[1], "u32")

    def step(threads: Threads, active: Active) -> None:
        threads.require_whole_warps(active)
        threads.write(register, np.repeat(threads.warps(read(threads.registers)).sum(1, dtype=U32), WARP), active)

    return step


def load_matrix(instruction: Instruction):
    """ldmatrix: 8 x 8 matrices of 16 bits, whose rows' addresses lanes 8i to 8i + 7 hold for matrix i."""
    registers, where = targets(instruction.operands[0]), address(instruction.operands[1], "u32")
    transposed = "trans" in instruction.opcode
    _require_16_bits(instruction)

    def step(threads: Threads, active: Active) -> None:
        threads.require_whole_warps(active)
        for i, register in enumerate(registers):
            rows, owners = _matrix_rows(threads, where, i, active)
            matrices = threads.shared.load(owners, rows, 2, 8).reshape(-1, 8, 8)
            matrices = matrices.transpose(0, 2, 1) if transposed else matrices
            low, high = (matrices[:, ROW, COLUMN + part].astype(U32) for part in (0, 1))
            threads.write_columns([register], (low | high << U32(16)).reshape(-1, 1), active)

    return step


def store_matrix(instruction: Instruction):
    """stmatrix, the inverse of ldmatrix."""
    where = address(instruction.operands[0], "u32")
    reads = [source(part, "b32") for part in parts(instruction.operands[1])]
    transposed = "trans" in instruction.opcode
    _require_16_bits(instruction)

    def step(threads: Threads, active: Active) -> None:
        threads.require_whole_warps(active)
        for i, read in enumerate(reads):
            rows, owners = _matrix_rows(threads, where, i, active)
            values = threads.full(read(threads.registers))
            values = (values if active is None else values[active]).reshape(-1, WARP)
            matrices = np.zeros((len(values), 8, 8), U16)
            matrices[:, ROW, COLUMN] = values.astype(U16)
            matrices[:, ROW, COLUMN + 1] = (values >> U32(16)).astype(U16)
            matrices = matrices.transpose(0, 2, 1) if transposed else matrices
            threads.shared.store(owners, rows, np.ascontiguousarray(matrices).reshape(-1, 8))

    return step


def _require_16_bits(instruction: Instruction) -> None:
    if instruction.kind != "b16" or "m8n8" not in instruction.opcode:
        raise EmulationError(f"{'.'.join(instruction.opcode)} is not known")


def _matrix_rows(threads: Threads, where, matrix: int, active: Active) -> tuple[np.ndarray, np.ndarray]:
    """Addresses of the active warps' rows of one matrix, [8 warps], and the threads that hold them."""
    owners = np.arange(threads.count) if active is None else np.flatnonzero(active)
    owners = owners.reshape(-1, WARP)[:, 8 * matrix : 8 * matrix + 8].reshape(-1)
    return threads.full(where(threads.registers))[owners], owners


def multiply_matrices(instruction: Instruction):
    """mma.sync.m16n8k16 of bfloat16 or float16, added to float32."""
    kind = instruction.opcode[-2]
    if "m16n8k16" not in instruction.opcode or instruction.kind != "f32" or kind not in ("bf16", "f16"):
        raise EmulationError(f"{'.'.join(instruction.opcode)} is not known")
    registers = targets(instruction.operands[0])
    left, right, addend = ([source(part, "b32") for part in parts(operand)] for operand in instruction.operands[1:])

    def step(threads: Threads, active: Active) -> None:
        threads.require_whole_warps(active)
        a, b = np.empty((threads.count // WARP, 16, 16)), np.empty((threads.count // WARP, 16, 8))
        for i, read in enumerate(left):
            low, high = _pair(threads, read, kind)
            a[:, ROW + 8 * (i & 1), COLUMN + 8 * (i >> 1)] = low
            a[:, ROW + 8 * (i & 1), COLUMN + 8 * (i >> 1) + 1] = high
        for i, read in enumerate(right):
            low, high = _pair(threads, read, kind)
            b[:, COLUMN + 8 * i, ROW] = low
            b[:, COLUMN + 8 * i + 1, ROW] = high
        product = np.matmul(a, b)
        sums = []
        for i, read in enumerate(addend):
            before = numbers(threads.warps(read(threads.registers)), "f32").astype(F64)
            sums.append((product[:, ROW + 8 * (i >> 1), COLUMN + (i & 1)] + before).astype(F32).view(U32).reshape(-1))
        for register, value in zip(registers, sums, strict=True):
            threads.write(register, value, active)

    return step


def _pair(threads: Threads, read, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Both numbers of a register of two, [warps, 32]."""
    bits = threads.warps(read(threads.registers))
    return numbers(bits.astype(U16), kind), numbers((bits >> U32(16)).astype(U16), kind)
