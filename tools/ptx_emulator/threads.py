"""The state of threads that run in step: registers, shared memory, asynchronous copies, and who has waited or ended.

A value is an array with an element for each thread, or a numpy scalar where all have the same. A set of threads is a
bool array; None stands for all of them, which is the usual case and the fast one.
"""

from dataclasses import dataclass

import numpy as np

from .errors import EmulationError
from .memory import GlobalMemory, SharedMemory
from .numeric import U32, U64, register_dtype
from .parser import SPECIAL, Program

WARP = 32
Active = np.ndarray | None


@dataclass(frozen=True)
class Grid:
    """What every program of a launch shares."""

    size: tuple[int, int, int]
    parameters: dict[str, int]
    memory: GlobalMemory
    shared: int  # bytes for each program
    dependent: bool  # whether nothing but early buffers may be touched before griddepcontrol.wait


@dataclass
class Copy:
    """A cp.async of some threads that has not landed."""

    threads: np.ndarray  # their indices [N]
    group: np.ndarray  # of each, the number of its commit [N]
    source: np.ndarray  # [N] uint64
    target: np.ndarray  # [N] uint32
    read: np.ndarray  # bytes read, the rest is zeros [N]
    size: int  # bytes written


class Threads:
    """All threads of some programs."""

    def __init__(self, program: Program, grid: Grid, places: list[tuple[int, int, int]]) -> None:
        """Args: places: each program's index in the grid."""
        self.grid, self.per_program = grid, program.threads
        self.count = program.threads * len(places)
        self.dtypes = [register_dtype(kind) for kind in program.registers]
        self.registers = [dtype(0) for dtype in self.dtypes]
        for name, value in self._special(places).items():
            self.registers[SPECIAL.index(name)] = value
        self.alive = np.ones(self.count, bool)
        self.unwaited: Active = np.ones(self.count, bool) if grid.dependent else np.zeros(0, bool)
        self.shared = SharedMemory(grid.shared, np.repeat(np.arange(len(places)), program.threads))
        self.committed = np.zeros(self.count, np.int64)
        self.copies: list[Copy] = []

    def _special(self, places) -> dict:
        thread = np.tile(np.arange(self.per_program, dtype=U32), len(places))
        values = {"%tid.x": thread, "%laneid": thread % U32(WARP)}
        for axis, name in enumerate("xyz"):
            values[f"%ctaid.{name}"] = np.repeat(np.array(places, U32)[:, axis], self.per_program)
            values[f"%nctaid.{name}"] = U32(self.grid.size[axis])
        return values

    def full(self, value) -> np.ndarray:
        """A value as an array, to be read only."""
        return value if value.ndim else np.broadcast_to(value, (self.count,))

    def warps(self, value) -> np.ndarray:
        """A value as [warps, 32]."""
        return self.full(value).reshape(-1, WARP)

    def write(self, register: int | None, value, active: Active) -> None:
        """Set a register of the active threads; None drops the value."""
        if register is None:
            return
        dtype = self.dtypes[register]
        if value.dtype != dtype:
            value = value.astype(dtype)
        self.registers[register] = value if active is None else np.where(active, value, self.registers[register])

    def write_columns(self, registers: list[int | None], values: np.ndarray, active: Active) -> None:
        """Set several registers to the columns of values [active threads, registers]."""
        for register, column in zip(registers, values.T, strict=True):
            if active is not None:
                spread = np.zeros(self.count, values.dtype)
                spread[active] = column
                column = spread
            self.write(register, column, active)

    def require_whole_warps(self, active: Active) -> None:
        if active is not None and (active.reshape(-1, WARP).any(1) != active.reshape(-1, WARP).all(1)).any():
            raise EmulationError("only a part of a warp arrives")

    def meet(self, active: Active) -> None:
        """A barrier of all threads of a program."""
        arrived = np.ones(self.count, bool) if active is None else active
        arrived, alive = (flags.reshape(-1, self.per_program) for flags in (arrived, self.alive))
        if (arrived != alive)[arrived.any(1)].any():
            raise EmulationError("only a part of a program arrives at a barrier")

    def wait(self, active: Active) -> None:
        """griddepcontrol.wait."""
        if self.unwaited.size:
            self.unwaited = self.unwaited & (False if active is None else ~active)
            if not self.unwaited.any():
                self.unwaited = np.zeros(0, bool)

    def ahead(self, active: Active) -> np.ndarray | None:
        """Of the active threads, which have not waited for the launch before; None if all have."""
        if not self.unwaited.size:
            return None
        return self.unwaited if active is None else self.unwaited[active]

    def require_waited(self, active: Active, what: str) -> None:
        ahead = self.ahead(active)
        if ahead is not None and ahead.any():
            raise EmulationError(f"{what} before griddepcontrol.wait")

    def commit(self, active: Active) -> None:
        """cp.async.commit_group."""
        self.committed = self.committed + (1 if active is None else active)

    def land(self, active: Active, pending: int) -> None:
        """cp.async.wait_group: copies of all but the last `pending` groups land; -1 takes in what is not committed."""
        waits = np.ones(self.count, bool) if active is None else active
        left = []
        for copy in self.copies:
            ready = waits[copy.threads] & (copy.group < self.committed[copy.threads] - pending)
            if ready.any():
                self._land(copy, ready)
            if not ready.all():
                fields = (copy.threads, copy.group, copy.source, copy.target, copy.read)
                left.append(Copy(*(field[~ready] for field in fields), copy.size))
        self.copies = left

    def _land(self, copy: Copy, ready: np.ndarray) -> None:
        data = np.zeros((int(ready.sum()), copy.size // 4), U32)
        full, none = copy.read[ready] == copy.size, copy.read[ready] == 0
        if not (full | none).all():
            raise EmulationError(f"cp.async of {copy.read.max()} bytes into {copy.size} is not known")
        if full.any():
            data[full] = self.grid.memory.load(copy.source[ready][full].astype(U64), 4, copy.size // 4)
        self.shared.store(copy.threads[ready], copy.target[ready], data)
