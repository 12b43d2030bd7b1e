"""What a compiled kernel's machine code says about it: registers, spills, loads and instructions."""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import triton

from dia_engine.kernels.architectures import SHARED_MEMORY_LIMIT
from dia_engine.kernels.dispatch import Architecture, Launch

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
RESERVED_SHARED_MEMORY = 1024  # bytes that CUDA takes of a multiprocessor's shared memory for each program
FEWER_THREADS = (86, 87, 89, 120, 121)  # architectures with 1536 threads a multiprocessor
# Spilled bytes per thread that are allowed where float32 meets quantized weights, outside of loops: it is there to be
# exact and not fast, and no tensor core helps it.
EXACT_SPILL_BYTES = 16


@dataclass(frozen=True)
class Build:
    """One kernel as compiled for one architecture."""

    architecture: Architecture
    registers: int
    stack: int  # bytes per thread, nonzero if registers spill
    shared: int  # bytes per program
    widest_load: int  # bits, from global memory to registers or to shared memory
    tensor_core: str  # the multiplying instructions, or "-"
    instructions: int
    loads_before_wait: int | None  # for the kernel before this one; None: a store comes first, or there is no wait
    products: int = 0  # tensor-core instructions
    loop: int = 0  # instructions of the loop that holds such; 0 where it is unrolled
    loop_products: int = 0  # tensor-core instructions of that loop
    loop_spills: int = 0  # loads and stores of spilled registers in any loop: none is allowed

    def faults(self, launch: Launch) -> list[str]:
        """What must not be shipped. On AMD GPUs only what would not start: nothing has been tuned for them."""
        limit = SHARED_MEMORY_LIMIT[self.architecture]
        faults = [f"{self.shared} bytes of shared memory, {limit} are there"] if self.shared > limit else []
        if isinstance(self.architecture, str):
            return faults
        if self.stack > _spill_limit(launch):
            faults.append("spills")
        if self.loop_spills:
            faults.append("spills in a loop")
        if "weight_ptr" in launch.arguments and self.widest_load < 128:
            faults.append("narrow loads")
        if launch.dependent and (self.loads_before_wait is None or self.loads_before_wait > len(launch.early)):
            faults.append("does not wait")
        return faults

    def resident(self, launch: Launch) -> int | None:
        """Programs that fit on one multiprocessor at a time; None where this is not worked out (AMD)."""
        if isinstance(self.architecture, str):
            return None
        threads = 32 * launch.warps
        registers = 65536 // (threads * -(-self.registers // 8) * 8)
        shared_memory = SHARED_MEMORY_LIMIT[self.architecture] + RESERVED_SHARED_MEMORY
        shared = shared_memory // (self.shared + RESERVED_SHARED_MEMORY)
        return min(registers, shared, (1536 if self.architecture in FEWER_THREADS else 2048) // threads)

    def executed(self, launch: Launch) -> float | None:
        """Instructions that a warp of a projection executes; None where this is not worked out (no tensor cores)."""
        constants = launch.constants
        if not self.products or "K" not in constants:
            return None
        # Of a warp: its slice of the columns, all weight rows and all input rows of the program, 16 x 8 at once.
        columns = -(-constants["K"] // (constants["SLICES"] * constants["UNIT"])) * constants["UNIT"]
        depth = int(re.search(r"168(\d+)", self.tensor_core)[1])
        needed = constants["TILE"] // 16 * (constants["BLOCK_M"] // 8) * (columns // depth)
        needed *= constants["SLICES"] // launch.warps
        if not self.loop:
            return self.instructions
        trips = (needed - (self.products - self.loop_products)) / self.loop_products
        return self.instructions + (trips - 1) * self.loop


def _spill_limit(launch: Launch) -> int:
    """Bytes that a kernel may spill per thread outside of its loops."""
    tensors = {name: value.dtype for name, value in launch.arguments.items() if isinstance(value, torch.Tensor)}
    is_quantized = tensors.get("weight_ptr") in (torch.int8, torch.uint8)
    is_exact = not {torch.bfloat16, torch.float16} & set(tensors.values())
    return EXACT_SPILL_BYTES if is_quantized and is_exact else 0


def read_build(compiled, architecture: Architecture) -> Build:
    """Read what `triton.compile` returned."""
    if isinstance(architecture, str):
        return read_amd(compiled.asm["amdgcn"], compiled.metadata.shared, architecture)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _run("cuobjdump", "-res-usage", file.name)
        code = _run("nvdisasm", file.name)
    return read_nvidia(code, usage, compiled.metadata.shared, architecture)


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run([TOOLS / tool, *arguments], check=True, capture_output=True, text=True).stdout


def read_nvidia(code: str, usage: str, shared: int, architecture: int) -> Build:
    """From nvdisasm's and `cuobjdump -res-usage`'s output."""
    instructions, labels = _instructions(code)
    loop = _loop_of_products(instructions, labels)
    loads = [line for line in instructions if re.search(r"\b(LDG|LDGSTS|UBLKCP)\b", line)]
    widths = [int(width) for load in loads for width in re.findall(r"\.(64|128)\b", load)] or [32]
    return Build(
        architecture,
        registers=int(re.search(r"REG:(\d+)", usage)[1]),
        stack=int(re.search(r"STACK:(\d+)", usage)[1]) + int(re.search(r"LOCAL:(\d+)", usage)[1]),
        shared=shared,
        widest_load=max(widths),
        tensor_core=" ".join(sorted(set(re.findall(r"\b([HIQ]G?MMA\.\d+(?:x\d+)*)", code)))) or "-",
        instructions=len(instructions),
        loads_before_wait=_loads_before_wait(instructions),
        products=_products(instructions),
        loop=len(loop),
        loop_products=_products(loop),
        loop_spills=_loop_spills(instructions, labels),
    )


def _instructions(code: str) -> tuple[list[str], dict[str, int]]:
    """The instructions in nvdisasm's output up to the padding, and which of them is behind each label."""
    instructions, labels = [], {}
    for line in code.splitlines():
        if label := re.match(r"(\.L_\w+):", line):
            labels[label[1]] = len(instructions)
        # Lines of data have an address too, but no semicolon.
        elif instruction := re.search(r"/\*[0-9a-f]{4,}\*/(.*);", line):
            if labels.get(_jumps_to(instruction[1])) == len(instructions):
                break  # a jump to itself: nothing comes here
            instructions.append(instruction[1])
    return instructions, labels


def _jumps_to(instruction: str) -> str | None:
    label = re.search(r"\bBRA\b.*`\((\.L_\w+)\)", instruction)
    return label and label[1]


def _loop_of_products(instructions: list[str], labels: dict[str, int]) -> list[str]:
    """The instructions of the innermost loop with tensor-core instructions, empty if there is none."""
    loops = [instructions[loop.start : loop.stop] for loop in _loops(instructions, labels)]
    return min(filter(_products, loops), key=len, default=[])


def _loops(instructions: list[str], labels: dict[str, int]) -> Iterator[range]:
    """From the target of each jump backwards to the jump."""
    for end, instruction in enumerate(instructions):
        start = labels.get(_jumps_to(instruction), end + 1)
        if start <= end:
            yield range(start, end + 1)


def _loop_spills(instructions: list[str], labels: dict[str, int]) -> int:
    inside = {place for loop in _loops(instructions, labels) for place in loop}
    return sum(bool(re.search(r"\b(LDL|STL)\b", instructions[place])) for place in inside)


def _products(instructions: list[str]) -> int:
    return sum(bool(re.search(r"\b[HIQ]G?MMA\.", line)) for line in instructions)


def _loads_before_wait(instructions: list[str]) -> int | None:
    wait = next((place for place, line in enumerate(instructions) if "ACQBULK" in line), None)
    if wait is None:
        return None
    before = "\n".join(instructions[:wait])
    if re.search(r"\b(STG|ST|ATOM|ATOMG|RED|REDG|LD|LDGSTS|UBLKCP)\b", before):
        return None
    return len(re.findall(r"\bLDG\b", before))


def read_amd(code: str, shared: int, architecture: str) -> Build:
    """From the assembly that the compiler wrote."""

    def note(name: str) -> int:
        return int(re.search(rf"\.{name}:\s+(\d+)", code)[1])

    instructions = re.findall(r"^\s+([a-z]+_\w+)", code, re.MULTILINE)
    loads = [line for line in instructions if re.match(r"(global|buffer)_load_", line)]
    words = [int(count) for load in loads for count in re.findall(r"(?:dwordx|_b)(\d+)", load)]
    widths = [count if count > 4 else 32 * count for count in words] or [32]  # dwordx4 and b128 are the same width
    return Build(
        architecture,
        registers=note("vgpr_count"),
        stack=note("private_segment_fixed_size"),
        shared=shared,
        widest_load=max(widths),
        tensor_core=" ".join(sorted({line for line in instructions if re.match(r"v_(mfma|wmma)_", line)})) or "-",
        instructions=len(instructions),
        loads_before_wait=None,
    )
