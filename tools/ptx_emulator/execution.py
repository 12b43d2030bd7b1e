"""Runs a launch: compiles a kernel's instructions to Python functions once, then runs its programs (CTAs).

All threads of some programs, THREADS_AT_ONCE in all, run in step, as numpy arrays. Where they part, those at the
earliest instruction go on until they reach others or part again.
"""

import random
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from . import transfers, warps
from .arithmetic import rule
from .errors import EmulationError
from .memory import GlobalMemory
from .numeric import U64, UNSIGNED, WIDTH
from .operands import parts, source, target, targets
from .parser import Instruction, Label, Program, Vector, parse
from .threads import Active, Grid, Threads

THREADS_AT_ONCE = 2048  # more do not fit a core's cache, fewer leave the interpreter's time per instruction to show
Step = Callable[[Threads, Active], None]


class Compiled(NamedTuple):
    run: Step | None  # None: a branch or an end
    target: int | None  # a branch's
    predicate: int | None
    negated: bool
    text: str


class Kernel:
    """A kernel that can be launched."""

    def __init__(self, ptx: str) -> None:
        """Read the first kernel of a PTX module.

        Raises:
            EmulationError: it has an instruction that is not known.
        """
        self.program: Program = parse(ptx)
        self.steps = [_compile(instruction, self.program) for instruction in self.program.instructions]

    def launch(
        self, grid: tuple[int, int, int], arguments: list[int], memory: GlobalMemory, shared: int,
        dependent: bool = False, order: random.Random | None = None,
    ) -> None:  # fmt: skip
        """Run all programs of a grid, in random order.

        Args:
            arguments: integers, pointers among them; 0 for parameters at the end that are not given.
            memory: all that may be touched.
            shared: bytes of shared memory for each program.
            dependent: whether the launch may start before the one before it is done.

        Raises:
            EmulationError: what the kernel does is not allowed; with the instruction.
        """
        names = [name for _, name in self.program.parameters]
        values = dict(zip(names, arguments + [0] * (len(names) - len(arguments)), strict=True))
        shape = Grid(grid, values, memory, shared, dependent)
        places = [(x, y, z) for z in range(grid[2]) for y in range(grid[1]) for x in range(grid[0])]
        (order or random).shuffle(places)
        at_once = max(1, THREADS_AT_ONCE // self.program.threads)
        for start in range(0, len(places), at_once):
            with np.errstate(all="ignore"):
                _Run(self.steps, Threads(self.program, shape, places[start : start + at_once])).run()


class _Run:
    """Threads on their way through a kernel."""

    def __init__(self, steps: list[Compiled], threads: Threads) -> None:
        self.steps, self.threads = steps, threads
        self.waiting: dict[int, np.ndarray] = {0: threads.alive}  # by the instruction that they are at

    def run(self) -> None:
        while self.waiting:
            position = min(self.waiting)
            group = self.waiting.pop(position)
            self._advance(position, group, min(self.waiting, default=len(self.steps)))

    def _put(self, position: int, group: np.ndarray) -> None:
        others = self.waiting.get(position)
        self.waiting[position] = group if others is None else group | others

    def _advance(self, position: int, group: np.ndarray, limit: int) -> None:
        """Run a group until it reaches instruction `limit`, where others wait, or parts, or ends."""
        everyone = bool(group.all())
        while position < limit:
            step = self.steps[position]
            active = self._active(step, None if everyone else group)
            if active is NOBODY:
                position += 1
            elif step.run is not None:
                self._step(position, step, active)
                position += 1
            elif active is None or (step.predicate is None or np.array_equal(active, group)):
                if step.target is None:
                    self.threads.alive = self.threads.alive & ~group
                    return
                position = step.target
            else:
                self._part(position, step, active, group)
                return
        if position < len(self.steps):
            self._put(position, group)

    def _part(self, position: int, step: Compiled, active: np.ndarray, group: np.ndarray) -> None:
        """Some threads of a group branch or end, the others go on."""
        if step.target is None:
            self.threads.alive = self.threads.alive & ~active
        else:
            self._put(step.target, active)
        self._put(position + 1, group & ~active)

    def _active(self, step: Compiled, group: Active):
        """The threads of a group whose predicate holds: a set, None for all threads there are, or NOBODY."""
        if step.predicate is None:
            return group
        condition = self.threads.registers[step.predicate]
        if condition.ndim == 0:
            return group if bool(condition) != step.negated else NOBODY
        condition = ~condition if step.negated else condition
        active = condition if group is None else condition & group
        if active.all():
            return None
        return active if active.any() else NOBODY

    def _step(self, position: int, step: Compiled, active: Active) -> None:
        try:
            step.run(self.threads, active)
        except EmulationError as error:
            raise EmulationError(f"{error}, at instruction {position}: {step.text}") from None


class _Nobody:
    """No thread."""


NOBODY = _Nobody()


def _compile(instruction: Instruction, program: Program) -> Compiled:
    predicate = target(instruction.predicate)
    step, place = None, None
    if instruction.name == "bra":
        place = program.labels[_label(instruction)]
    elif instruction.name not in ("ret", "exit"):
        try:
            step = _step(instruction)
        except EmulationError as error:
            raise EmulationError(f"{error}, in {instruction.text}") from None
    return Compiled(step, place, predicate, instruction.negated, instruction.text)


def _label(instruction: Instruction) -> str:
    (operand,) = instruction.operands
    if not isinstance(operand, Label):
        raise EmulationError(f"{instruction.text}: a branch to {operand} is not known")
    return operand.name


def _step(instruction: Instruction) -> Step:
    if instruction.name in FAMILIES:
        return FAMILIES[instruction.name](instruction)
    if instruction.name == "mov" and any(isinstance(operand, Vector) for operand in instruction.operands):
        return _move_parts(instruction)
    return _compute(instruction)


def _compute(instruction: Instruction) -> Step:
    compute, kinds = rule(instruction.opcode)
    register = target(instruction.operands[0])
    if len(instruction.operands) != len(kinds) + 1:
        raise EmulationError(f"{len(kinds)} operands expected")
    reads = [source(operand, kind) for operand, kind in zip(instruction.operands[1:], kinds, strict=True)]

    def step(threads: Threads, active: Active) -> None:
        registers = threads.registers
        threads.write(register, compute(*[read(registers) for read in reads]), active)

    return step


def _move_parts(instruction: Instruction) -> Step:
    """mov between a register and the parts of it that a vector names, lowest first."""
    into, origin = instruction.operands
    kind, count = instruction.kind, max(len(parts(into)), len(parts(origin)))
    whole, bits = UNSIGNED[WIDTH[kind]], 8 * WIDTH[kind] // count
    part = UNSIGNED[bits // 8]
    registers = targets(into)
    reads = [source(operand, kind if isinstance(into, Vector) else f"b{bits}") for operand in parts(origin)]

    def split(threads: Threads, active: Active) -> None:
        value = reads[0](threads.registers).astype(U64)
        for place, register in enumerate(registers):
            threads.write(register, (value >> U64(bits * place)).astype(part), active)

    def join(threads: Threads, active: Active) -> None:
        value = whole(0)
        for place, read in enumerate(reads):
            value = value | read(threads.registers).astype(part).astype(whole) << whole(bits * place)
        threads.write(registers[0], value, active)

    return split if isinstance(into, Vector) else join


def _dependent_launch(instruction: Instruction) -> Step:
    if "wait" in instruction.opcode:
        return lambda threads, active: threads.wait(active)
    return _nothing(instruction)


def _nothing(instruction: Instruction) -> Step:
    """Hints and fences: memory here has one order."""
    return lambda threads, active: None


def _barrier(instruction: Instruction) -> Step:
    if instruction.opcode[:2] == ("bar", "warp"):
        return lambda threads, active: threads.require_whole_warps(active)
    if len(instruction.operands) != 1 or "sync" not in instruction.opcode:
        raise EmulationError("a barrier of some threads is not known")
    return lambda threads, active: threads.meet(active)


FAMILIES: dict[str, Callable[[Instruction], Step]] = {
    "ld": transfers.load, "st": transfers.store, "atom": transfers.atomic_add, "cp": transfers.asynchronous,
    "shfl": warps.shuffle, "redux": warps.reduce, "ldmatrix": warps.load_matrix, "stmatrix": warps.store_matrix,
    "mma": warps.multiply_matrices, "bar": _barrier, "barrier": _barrier, "griddepcontrol": _dependent_launch,
    "prefetch": _nothing, "prefetchu": _nothing, "fence": _nothing, "membar": _nothing,
}  # fmt: skip
