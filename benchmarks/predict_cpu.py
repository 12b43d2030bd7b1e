"""What a decode step should take on CPUs that are not here: a prediction, not a measurement.

    python -m benchmarks.predict --cpus [--measure]

A step reads its weights, and the keys and values of the rows so far and of the text. Both take

    max(bytes / (0.93 x read bandwidth), bytes / (cores x bytes that one core gets through per second))

and what is neither 0.5 ms, with the 150 jobs that the threads share. Measured on two cores of an AMD EPYC (Zen 5) and
taken for all: what one core gets through, in each variant of the compiled code. Measured on two cores of Zen 4, which
read slower than they multiply: 0.93. `--measure` times the steps of the machine that it runs on beside its prediction:
on the two cores of Zen 5 it predicted 8 to 22 % less than was measured.
"""

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from dia_engine import Engine
from dia_engine.devices.environment import cores, processor
from dia_engine.info import weight_bytes
from dia_engine.kernels.advance import RUNNING
from dia_engine.kernels.cpu.matmul import thread_count
from dia_engine.kernels.cpu.variants import chosen_variant
from dia_engine.model.config import DiaConfig
from dia_engine.model.dia import DiaModel
from dia_engine.model.shapes import parameter_shapes
from dia_engine.runtime.request import Request
from dia_engine.sampling_params import ResolvedSamplingParams
from dia_engine.text.tokenizer import encode_text
from dia_engine.weights.recipes import RECIPES, chosen_formats

from .batch import start_batch
from .roofline import is_read_in_step, read_bandwidth, step_bytes
from .setting import SCRIPT, STEPS_PER_SECOND_OF_SOUND

CONFIG, DTYPE = DiaConfig(), torch.bfloat16
ROWS = (30, 1500, 3000)
REACHED = 0.93  # of the read bandwidth
REST = 0.5e-3  # seconds of a step
STEPS = 8  # timed by `measured_seconds`

# Bytes a second that one core gets through, by variant: weights in each format with two rows of x, keys and values.
PER_CORE = {
    "avx512bf16": {"bfloat16": 29.5e9, "int8": 30e9, "nf4": 28e9, "caches": 14.5e9},
    "avx2vnni": {"bfloat16": 21e9, "int8": 21e9, "nf4": 8e9, "caches": 9.4e9},
}
PER_CORE["amx"] = PER_CORE["avx512bf16"]  # two rows go the same way there


@dataclass(frozen=True)
class Machine:
    name: str
    bandwidth: float  # bytes per second that its threads read
    cores: int
    variant: str


MACHINES = (
    Machine("laptop", 60e9, 6, "avx2vnni"),
    Machine("desktop", 80e9, 8, "avx512bf16"),
    Machine("server", 250e9, 32, "avx512bf16"),
)


def bytes_by_format(quant: str | None, row: int, text: int, config: DiaConfig = CONFIG) -> dict[str, int]:
    """Bytes that a step of one request reads at a decoder row, over `text` bytes: weights by format, and "caches"."""
    formats = chosen_formats(RECIPES[quant], config) if quant else {}
    found = {"bfloat16": 0}
    for name, shape in parameter_shapes(config).items():
        if is_read_in_step(name):
            format = formats.get(name, "bfloat16")
            found[format] = found.get(format, 0) + weight_bytes(name, shape, DTYPE, formats.get(name))
    return {**found, "caches": step_bytes(config, {}, DTYPE.itemsize, 1, row, text)}


def predicted_seconds(machine: Machine, quant: str | None, row: int, text: int, config: DiaConfig = CONFIG) -> float:
    """One step of one request."""
    speeds = PER_CORE[machine.variant]
    return REST + sum(
        count / min(REACHED * machine.bandwidth, machine.cores * speeds[kind])
        for kind, count in bytes_by_format(quant, row, text, config).items()
    )


def table(text: int) -> Iterator[str]:
    """Milliseconds of a step on each of MACHINES, and times real time."""
    yield f"predicted, not measured: one request, {text} bytes of text; ms per step (x real time)\n"
    yield f"{'CPU':36}{'weights':>10}" + "".join(f"{f'row {row}':>16}" for row in ROWS)
    for machine in MACHINES:
        title = f"{machine.name}, {machine.bandwidth / 1e9:.0f} GB/s, {machine.cores} cores, {machine.variant}"
        for quant in (None, *RECIPES):
            times = [predicted_seconds(machine, quant, row, text) for row in ROWS]
            cells = (f"{f'{1e3 * each:.1f} ({1 / each / STEPS_PER_SECOND_OF_SOUND:.2f})':>16}" for each in times)
            yield f"{title:36}{quant or 'bf16':>10}" + "".join(cells)


def script(config: DiaConfig) -> torch.Tensor:
    """Ids [S] of the text that is measured with."""
    return encode_text(SCRIPT, config.encoder.max_position_embeddings)


@torch.no_grad()
def measured_seconds(model: DiaModel, row: int, steps: int = STEPS) -> float:
    """Median of some steps of one request from a decoder row on; what lies in the caches before it is random."""
    no_prompt = torch.zeros((0, model.config.decoder.num_channels), dtype=torch.int64)
    params = ResolvedSamplingParams(max_tokens=model.config.decoder.max_position_embeddings)
    state = start_batch(model, [Request(script(model.config), no_prompt, params, seed=1)])
    for cache in (state.self_cache.keys, state.self_cache.values):
        cache.normal_()
    state.grid[:, : row + 1] = 0
    state.position.fill_(row)
    model.embed_current_tokens(state)
    spans = []
    for _ in range(steps + 1):
        state.countdown.fill_(RUNNING)  # whatever was drawn
        started = time.perf_counter()
        model.step(state)
        spans.append(time.perf_counter() - started)
    return statistics.median(spans[1:])


def comparison(model: str = "synthetic:full") -> Iterator[str]:
    """Steps of this machine beside what is predicted for it.

    Raises:
        ValueError: there is no compiled step here, or none whose speed per core is known.
    """
    variant = chosen_variant()
    if variant is None or variant.name not in PER_CORE:
        raise ValueError(f"only for the variants {', '.join(PER_CORE)}, see DIA_CPU; this machine has {variant}")
    yield f"\n{processor()}, {cores()} cores, {thread_count()} threads, {variant.name}; ms per step"
    for quant in (None, *RECIPES):
        engine = Engine.load(model, quant=quant, dtype="bfloat16", device="cpu", load_dac=False)
        for row in ROWS:
            bandwidth = read_bandwidth()
            found = measured_seconds(engine.model, row)
            here = Machine("this machine", max(bandwidth, read_bandwidth()), thread_count(), variant.name)
            expected = predicted_seconds(here, quant, row, len(script(engine.config)), engine.config)
            yield (
                f"{quant or 'bf16':8} row {row:<5} measured {1e3 * found:.1f}, predicted {1e3 * expected:.1f} "
                f"({expected / found - 1:+.0%}) at {here.bandwidth / 1e9:.1f} GB/s read"
            )
