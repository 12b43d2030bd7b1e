"""What a compiled kernel's machine code says about it: registers, spills, loads and instructions."""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import triton

from dia_engine.kernels.architectures import SHARED_MEMORY_LIMIT
from dia_engine.kernels.dispatch import Architecture, Launch

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
RESERVED_SHARED_MEMORY = 1024  # bytes that CUDA takes of a multiprocessor's shared memory for each program
FEWER_THREADS = (86, 87, 89, 120, 121)  # architectures with 1536 threads a multiprocessor
EXACT_SPILL_BYTES = 16  # allowed where float32 meets quantized weights, which is there to be exact and not fast


@dataclass(frozen=True)
class Build:
    """One kernel as compiled for one architecture."""

    architecture: Architecture
    registers: int
    stack: int  # bytes a thread, nonzero if registers spill
    shared: int  # bytes a program
    widest_load: int  # bits, from global memory to registers or to shared memory
    tensor_core: str  # the multiplying instructions, or "-"
    instructions: int
    loads_before_wait: int | None  # for the kernel before this one; None: a store comes first, or there is no wait

    def faults(self, launch: Launch) -> list[str]:
        """What must not be shipped. On AMD GPUs only what would not start: nothing has been tuned for them."""
        limit = SHARED_MEMORY_LIMIT[self.architecture]
        faults = [f"{self.shared} bytes of shared memory, {limit} are there"] if self.shared > limit else []
        if isinstance(self.architecture, str):
            return faults
        if self.stack > (EXACT_SPILL_BYTES if _is_exact_product_of_quantized(launch) else 0):
            faults.append("spills")
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


def _is_exact_product_of_quantized(launch: Launch) -> bool:
    tensors = {name: value.dtype for name, value in launch.arguments.items() if isinstance(value, torch.Tensor)}
    quantized = tensors.get("weight_ptr") in (torch.int8, torch.uint8)
    return quantized and not {torch.bfloat16, torch.float16} & set(tensors.values())


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
    # Lines of data have an address too, but no semicolon.
    instructions = re.findall(r"/\*[0-9a-f]{4,}\*/(.*);", code)
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
    )


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
