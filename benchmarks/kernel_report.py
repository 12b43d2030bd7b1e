"""What the compiler makes of every kernel launch of a decode step, without a GPU.

    python -m benchmarks.kernel_report [--arch 80 86 89 90 120 gfx942 gfx1100] [--slots 1 16] [--quant none int8 nf4]
                                       [--dtype bfloat16 float16 float32]

Records the launches of one step of the 1.6B model on tensors without memory, so the configurations are those that the
wrappers launch, compiles each once per architecture, and reads the machine code. Exit status 1 if a kernel does not
compile or needs more shared memory than the architecture has; on NVIDIA GPUs also if it spills a register (float32 with
quantized weights: more than 16 bytes of them, or any in a loop), if a projection loads its weights by less than 16
bytes, or if a dependent launch touches memory before it has waited for the kernel before it (prefetches to the L2 cache
aside, and what the launch names as `early`).
"""

import argparse
import os
from collections.abc import Iterator

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dia_engine.devices.device import DTYPES
from dia_engine.kernels.architectures import SHARED_MEMORY_LIMIT
from dia_engine.kernels.dispatch import Architecture, Launch, intercept_launches
from dia_engine.kernels.quantized import FORMATS
from dia_engine.model.config import DiaConfig
from dia_engine.model.dia import DiaModel
from dia_engine.model.shapes import parameter_shapes
from dia_engine.model.state import DecodeState
from dia_engine.weights.recipes import RECIPES, chosen_formats

from .command import at_least, run
from .machine_code import Build, read_build

ARCHITECTURES = (80, 86, 89, 90, 120)
POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.int8: "*i8",
    torch.uint8: "*u8",
}


def step_launches(
    config: DiaConfig, slots: int, dtype: torch.dtype, architecture: Architecture, quant: str | None = None
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
    with intercept_launches(launches.append, architecture):
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


def target(architecture: Architecture) -> GPUTarget:
    if isinstance(architecture, int):
        return GPUTarget("cuda", architecture, 32)
    return GPUTarget("hip", architecture, 64 if architecture.startswith("gfx9") else 32)


def compile_launch(launch: Launch, architecture: Architecture) -> Build:
    compiled = triton.compile(source(launch), target=target(architecture), options=launch.options)
    return read_build(compiled, architecture)


def kind(launch: Launch) -> str:
    """What is the same for launches that compile to the same code."""
    built = source(launch)
    return str((built.name, built.signature, built.constants, built.attrs, launch.options))


def distinct(launches: list[Launch]) -> Iterator[Launch]:
    """One launch of each kind."""
    seen = set()
    for launch in launches:
        if (key := kind(launch)) not in seen:
            seen.add(key)
            yield launch


def instructions_per_weight(build: Build, launch: Launch) -> float | None:
    """Instructions of a single thread that a projection executes for each weight that it reads."""
    executed = build.executed(launch)
    if executed is None:
        return None
    constants = launch.constants
    return executed * launch.warps * 32 / (constants["TILE"] * constants["K"])


def title(launch: Launch) -> str:
    """The kernel's name and, of a projection, its matrix."""
    name = launch.kernel.__name__.strip("_").removesuffix("_kernel")
    weight = launch.arguments.get("weight_ptr")
    if weight is None:
        return name
    format = {torch.int8: " int8", torch.uint8: " nf4"}.get(weight.dtype, "")
    return f"{name} {weight.shape[0]}x{launch.constants['K']}{format}"


def _architecture(text: str) -> Architecture:
    """Of a command line."""
    name = int(text) if text.isdigit() else text
    if name not in SHARED_MEMORY_LIMIT:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(map(str, SHARED_MEMORY_LIMIT))}")
    return name


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", type=_architecture, nargs="+", default=ARCHITECTURES, help="compute capabilities")
    parser.add_argument("--slots", type=at_least(1), nargs="+", default=(1, 16), help="requests in the batch")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=("bfloat16",), help="of the weights")
    parser.add_argument("--quant", nargs="+", choices=("none", *RECIPES), default=("none",), help="of the weights")
    options = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1 leaves nothing to compile")
    print(f"Triton {triton.__version__}")
    print(f"{'kernel':36} {'arch':>7} {'dtype':8} {'slots':>5} {'grid':>10} {'regs':>4} {'stack':>5} {'shared':>6} "
          f"{'per SM':>6} {'load':>4} {'instr':>5} {'/weight':>7}  tensor core")  # fmt: skip
    failed = False
    for architecture in options.arch:
        for dtype in options.dtype:
            for slots in options.slots:
                launches = [
                    launch
                    for quant in options.quant
                    for launch in step_launches(
                        DiaConfig(), slots, DTYPES[dtype], architecture, None if quant == "none" else quant
                    )
                ]
                for launch in distinct(launches):
                    described, faults = _described(launch, architecture)
                    grid = "x".join(map(str, launch.grid))
                    print(f"{title(launch):36} {architecture:>7} {dtype:8} {slots:5} {grid:>10} {described}"
                          f"{'  FAILED: ' + ', '.join(faults) if faults else ''}", flush=True)  # fmt: skip
                    failed |= bool(faults)
    return int(failed)


def _described(launch: Launch, architecture: Architecture) -> tuple[str, list[str]]:
    """The columns that only a compiled kernel has, and its faults."""
    try:
        build = compile_launch(launch, architecture)
    except Exception as error:  # whatever the compiler dislikes; the other kernels are still worth a line
        return "", [f"does not compile: {_root_cause(error)!r}"]
    per_weight = instructions_per_weight(build, launch)
    described = (
        f"{build.registers:4} {build.stack:5} {build.shared:6} {build.resident(launch) or '-':>6} "
        f"{build.widest_load:4} {build.instructions:5} {f'{per_weight:.2f}' if per_weight else '-':>7}  "
        f"{build.tensor_core}"
    )
    return described, build.faults(launch)


def _root_cause(error: BaseException) -> BaseException:
    """Triton wraps an error once for each function that it was in."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


if __name__ == "__main__":
    run(main)
