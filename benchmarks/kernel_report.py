"""What the compiler makes of every kernel launch of a decode step, without a GPU.

    python -m benchmarks.kernel_report [--arch 80 86 89 90 120] [--slots 1 4 16] [--dtype bfloat16 float16 float32]
                                       [--quant nf4]

Records the launches of one step of the 1.6B model on tensors without memory, so the configurations are those that the
wrappers launch, compiles each once per architecture, and reads the machine code. Exit status 1 if a kernel spills
registers, if a projection loads its weights by less than 16 bytes, or if a dependent launch touches memory before it
has waited for the kernel before it (prefetches to the L2 cache aside).
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from engine.config import DiaConfig
from engine.kernels.dispatch import Launch, launches_to
from engine.kernels.formats import FORMATS
from engine.model import DiaModel, parameter_shapes
from engine.quant import RECIPES, chosen_formats
from engine.state import DecodeState

ARCHITECTURES = (80, 86, 89, 90, 120)
TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.int8: "*i8",
    torch.uint8: "*u8",
}


@dataclass(frozen=True)
class Build:
    """One kernel as compiled for one architecture."""

    registers: int
    stack: int  # bytes a thread, nonzero if registers spill
    shared: int  # bytes a program
    widest_load: int  # bits, from global memory to registers or to shared memory
    tensor_core: str  # the multiplying instructions, or "-"
    instructions: int
    waits_first: bool  # for the kernel before this one, ahead of all loads and stores

    def faults(self, launch: Launch) -> list[str]:
        """What must not be shipped."""
        faults = ["spills"] if self.stack else []
        if "weight_ptr" in launch.arguments and self.widest_load < 128:
            faults.append("narrow loads")
        if launch.dependent and not self.waits_first:
            faults.append("does not wait")
        return faults


def step_launches(
    config: DiaConfig, slots: int, dtype: torch.dtype, architecture: int, quant: str | None = None
) -> list[Launch]:
    """The launches of one step, on tensors without memory."""
    formats = chosen_formats(RECIPES[quant], config) if quant else {}

    def weight(name, shape):
        if name in formats:
            return FORMATS[formats[name]].empty(*shape, dtype, "meta")
        kind = torch.float32 if name.endswith("norm.weight") else dtype
        return torch.empty(shape, dtype=kind, device="meta")

    model = DiaModel(config, {name: weight(name, shape) for name, shape in parameter_shapes(config).items()})
    rows, text = config.decoder.max_position_embeddings, config.encoder.max_position_embeddings
    state = DecodeState.allocate(config, slots, rows, text, dtype, "meta")
    launches: list[Launch] = []
    with launches_to(launches.append, architecture):
        model.step(state)
    return launches


def source(launch: Launch) -> ASTSource:
    """What Triton's own launcher would compile: types and 16-byte alignment of the arguments, and the constants."""
    signature, constants, attributes = {}, {}, {}
    values = {**launch.arguments, **launch.constants, "DEPENDENT": launch.dependent}
    for index, name in enumerate(launch.kernel.arg_names):
        value = values[name]
        if isinstance(value, torch.Tensor):
            signature[name] = POINTERS[value.dtype]
            aligned = value.storage_offset() * value.element_size() % 16 == 0
        elif name in launch.arguments and value is not None:
            signature[name] = "i32"
            aligned = value % 16 == 0 and not launch.kernel.params[index].do_not_specialize
        else:
            signature[name] = "constexpr"
            constants[name] = value
            aligned = False
        if aligned:
            attributes[(index,)] = [["tt.divisibility", 16]]
    return ASTSource(launch.kernel, signature, constants, attributes)


def compile_launch(launch: Launch, architecture: int) -> Build:
    compiled = triton.compile(source(launch), target=GPUTarget("cuda", architecture, 32), options=launch.options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _run("cuobjdump", "-res-usage", file.name)
        code = _run("nvdisasm", file.name)
    loads = re.findall(r"\b(LDG\S*|LDGSTS\S*|UBLKCP\S*)", code)
    widths = [int(width) for load in loads for width in re.findall(r"\.(64|128)\b", load)] or [32]
    wait, access = code.find("ACQBULK"), re.search(r"\b(LDG|STG|ATOMG|RED|UBLKCP)", code).start()
    cores = sorted(set(re.findall(r"\b([HIQ]G?MMA\.\d+(?:x\d+)*)", code)))
    return Build(
        registers=int(re.search(r"REG:(\d+)", usage)[1]),
        stack=int(re.search(r"STACK:(\d+)", usage)[1]) + int(re.search(r"LOCAL:(\d+)", usage)[1]),
        shared=compiled.metadata.shared,
        widest_load=max(widths),
        tensor_core=" ".join(cores) or "-",
        instructions=len(re.findall(r"^\s+/\*[0-9a-f]+\*/", code, re.MULTILINE)),
        waits_first=0 <= wait < access,
    )


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run([TOOLS / tool, *arguments], check=True, capture_output=True, text=True).stdout


def distinct(launches: list[Launch]) -> Iterator[Launch]:
    """One launch of each kind that compiles to other code."""
    seen = set()
    for launch in launches:
        built = source(launch)
        key = str((built.name, built.signature, built.constants, built.attrs, launch.options))
        if key not in seen:
            seen.add(key)
            yield launch


def title(launch: Launch) -> str:
    """The kernel's name and, of a projection, its matrix."""
    name = launch.kernel.__name__.strip("_").removesuffix("_kernel")
    weight = launch.arguments.get("weight_ptr")
    if weight is None:
        return name
    format = {torch.int8: " int8", torch.uint8: " nf4"}.get(weight.dtype, "")
    return f"{name} {weight.shape[0]}x{launch.constants['K']}{format}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", type=int, nargs="+", default=ARCHITECTURES, help="compute capabilities")
    parser.add_argument("--slots", type=int, nargs="+", default=(1, 4, 16), help="requests in the batch")
    parser.add_argument("--dtype", nargs="+", default=("bfloat16",), help="of the weights")
    parser.add_argument("--quant", choices=RECIPES, help="recipe of quantised weights")
    options = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1 leaves nothing to compile")
    failed = False
    print(f"{'kernel':36} {'arch':>4} {'dtype':9} {'slots':>5} {'regs':>4} {'stack':>5} {'shared':>7} {'load':>4} "
          f"{'instr':>6}  tensor core")  # fmt: skip
    for architecture in options.arch:
        for dtype in options.dtype:
            for slots in options.slots:
                launches = step_launches(DiaConfig(), slots, getattr(torch, dtype), architecture, options.quant)
                for launch in distinct(launches):
                    build = compile_launch(launch, architecture)
                    faults = build.faults(launch)
                    print(
                        f"{title(launch):36} {architecture:4} {dtype:9} {slots:5} {build.registers:4} {build.stack:5} "
                        f"{build.shared:7} {build.widest_load:4} {build.instructions:6}  {build.tensor_core}"
                        f"{'  FAILED: ' + ', '.join(faults) if faults else ''}",
                        flush=True,
                    )
                    failed |= bool(faults)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
