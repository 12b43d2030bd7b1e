"""What a decode step should take on GPUs that are not here: a prediction, not a measurement.

    python -m benchmarks.predict [--batch N] [--position N] [--text N] [--kernels]
    python -m benchmarks.predict --cpus [--text N] [--measure]     # CPUs, see predict_cpu.py

Compiles every kernel of the 1.6B model's step for each GPU's architecture and adds up, launch by launch,

    projections      max(bytes / (0.9 x memory bandwidth), bytes from L2 / L2 bandwidth, instructions) + gap
    attention        the same of its bytes, but at least the time of its chain of dependent reads
    sampling         a fixed time: a chain as well
    results          one copy to the host for each graph of several steps

Read from the compiled code: launches, grids, tiles, and the machine instructions that a warp executes, of which 0.6 of
the issue slots are taken to be filled. From the data sheets: bandwidth, multiprocessors, clock; 0.9 of the bandwidth is
what large copies reach. Fitted to steps of one request on an H100 and an H200 and taken for all: a launch of a CUDA
graph takes 3.6 us beyond its bytes, 3.1 us where it may start before its predecessor ends (Hopper), attention 6.0 and
5.0 us at least, sampling 24 us. Steps of 16 requests took an H100 1.2 to 1.6 times what this says.
Assumed: bandwidth of the L2 cache.
"""

import argparse
import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain

import torch

from dia_engine.info import weight_bytes
from dia_engine.kernels.dispatch import Launch
from dia_engine.model.config import DiaConfig
from dia_engine.model.shapes import parameter_shapes
from dia_engine.runtime.runner import STEPS_PER_LAUNCH
from dia_engine.weights.recipes import RECIPES, chosen_formats

from . import predict_cpu
from .command import run
from .kernel_report import compile_launch, kind, step_launches, title
from .roofline import step_bytes
from .setting import STEPS_PER_SECOND_OF_SOUND

CONFIG, DTYPE = DiaConfig(), torch.bfloat16
REACHED = 0.9  # of the bandwidth
ISSUED = 0.6  # of the issue slots
WARPS_PER_CLOCK = 4  # instructions of warps that a multiprocessor issues in a clock
HOST_COPY = 4e-6 / STEPS_PER_LAUNCH[0]  # seconds of a step


@dataclass(frozen=True)
class Card:
    name: str
    architecture: int
    bandwidth: float  # bytes per second
    l2_bandwidth: float  # bytes per second
    multiprocessors: int
    clock: float  # of the multiprocessors, a second
    gap: float  # seconds between launches of a graph
    attention: float  # seconds of an attention launch at least
    sampling: float  # seconds of the sampling launch

    @property
    def issue_rate(self) -> float:
        """Instructions of warps a second."""
        return WARPS_PER_CLOCK * self.multiprocessors * self.clock


# On Hopper attention's chain is shorter by the read of its span, which is on its way before the predecessor ends.
CARDS = (
    Card("RTX A4000", 86, 448e9, 1.8e12, 48, 1.56e9, 3.6e-6, 6.0e-6, 24e-6),
    Card("RTX 4090", 89, 1008e9, 5.0e12, 128, 2.52e9, 3.6e-6, 6.0e-6, 24e-6),
    Card("H100 SXM", 90, 3350e9, 5.5e12, 132, 1.755e9, 3.1e-6, 5.0e-6, 24e-6),
    Card("H200", 90, 4800e9, 5.5e12, 132, 1.755e9, 3.1e-6, 5.0e-6, 24e-6),
)


@dataclass(frozen=True)
class Work:
    """What one launch does, and how long a card takes for it."""

    launch: Launch
    bytes_read: int  # from memory
    bytes_from_l2: int  # by all programs together
    instructions: float  # of warps; 0 where they are not counted

    def issue_share(self, card: Card) -> float:
        """Of the issue slots there are while the bytes arrive at the data sheet's bandwidth; over 1: more than all."""
        return self.instructions / card.issue_rate / (self.bytes_read / card.bandwidth)

    def seconds(self, card: Card) -> float:
        if "weight_ptr" in self.launch.arguments:
            issuing = self.instructions / (ISSUED * card.issue_rate)
            reading = max(self.bytes_read / (REACHED * card.bandwidth), self.bytes_from_l2 / card.l2_bandwidth)
            return max(reading, issuing) + card.gap
        if "stats_ptr" in self.launch.arguments:
            return max(self.bytes_read / (REACHED * card.bandwidth) + card.gap, card.attention)
        return card.sampling


Counted = Callable[[Launch, int], float]


_counts: dict[tuple[str, int], float] = {}


def executed(launch: Launch, architecture: int) -> float:
    """Machine instructions of each warp, from the compiled kernel; 0 where they are not counted."""
    key = kind(launch), architecture
    if key not in _counts:
        _counts[key] = compile_launch(launch, architecture).executed(launch) or 0.0
    return _counts[key]


@functools.cache
def step_work(
    architecture: int, quant: str | None, batch: int, position: int, text: int, counted: Counted = executed
) -> tuple[Work, ...]:
    """Every launch of a step of `batch` requests at a decoder row, over `text` bytes each.

    Args:
        counted: instructions that a warp of a launch executes on an architecture.
    """
    launches = step_launches(CONFIG, batch, DTYPE, architecture, quant)
    return tuple(_work(launch, architecture, position, text, counted) for launch in launches)


def _work(launch: Launch, architecture: int, position: int, text: int, counted: Counted) -> Work:
    arguments, constants = launch.arguments, launch.constants
    programs = launch.grid[0] * launch.grid[1]
    if "weight_ptr" in arguments:
        scales = arguments["scale_ptr"]
        weights = arguments["weight_ptr"].nbytes + (0 if scales is None else scales.nbytes)
        # Each program reads its weight rows, and its input rows, of which those that are padding are not read.
        inputs = -(-constants["K"] * DTYPE.itemsize * arguments["rows"] // launch.grid[0])
        from_l2 = launch.grid[0] * weights + programs * inputs
        return Work(launch, weights, from_l2, programs * launch.warps * counted(launch, architecture))
    if "stats_ptr" in arguments:  # attention
        keys = arguments["keys_ptr"]
        length = position if keys.shape[2] == CONFIG.decoder.max_position_embeddings else text
        read = 2 * keys[:, :, :length].numel() * keys.element_size()
        return Work(launch, read, read, 0.0)
    return Work(launch, arguments["logits_ptr"].nbytes, 0, 0.0)


def roofline_seconds(card: Card, quant: str | None, batch: int, position: int, text: int) -> float:
    """What reading takes at the data sheet's bandwidth."""
    formats = chosen_formats(RECIPES[quant], CONFIG) if quant else {}
    shapes = parameter_shapes(CONFIG)
    sizes = {name: weight_bytes(name, shape, DTYPE, formats.get(name)) for name, shape in shapes.items()}
    return step_bytes(CONFIG, sizes, DTYPE.itemsize, batch, position, text) / card.bandwidth


def predicted_seconds(
    card: Card, quant: str | None, batch: int, position: int, text: int, counted: Counted = executed
) -> float:
    """One step."""
    return HOST_COPY + sum(
        work.seconds(card) for work in step_work(card.architecture, quant, batch, position, text, counted)
    )


def main(arguments: list[str] | None = None, counted: Counted = executed) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1, help="requests at once (%(default)s)")
    parser.add_argument("--position", type=int, default=512, help="decoder row (%(default)s)")
    parser.add_argument("--text", type=int, default=200, help="bytes of text (%(default)s)")
    parser.add_argument("--kernels", action="store_true", help="each kernel as well")
    parser.add_argument("--cpus", action="store_true", help="CPUs instead, one request at some rows")
    parser.add_argument("--measure", action="store_true", help="with --cpus: also time this machine, at full size")
    options = parser.parse_args(arguments)
    for name, most in (("position", CONFIG.decoder.max_position_embeddings), ("text", 1024), ("batch", 1024)):
        if not 1 <= getattr(options, name) <= most:
            parser.error(f"--{name} must be from 1 to {most}, got {getattr(options, name)}")
    if options.measure and not options.cpus:
        parser.error("--measure needs --cpus")
    if options.cpus:
        for line in chain(predict_cpu.table(options.text), predict_cpu.comparison() if options.measure else ()):
            print(line, flush=True)
        return 0
    if counted is executed and os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1 leaves nothing to compile")
    sizes = options.batch, options.position, options.text
    print(
        f"predicted, not measured: {options.batch} at once, row {options.position}, {options.text} bytes of text, "
        "bfloat16 activations\n"
    )
    heads = {"weights": 10, "ms/step": 10, "steps/s": 10, "x real time": 13, "% of roofline": 15, "x bf16": 8}
    print(f"{'GPU':12}" + "".join(f"{head:>{width}}" for head, width in heads.items()))
    for card in CARDS:
        plain = predicted_seconds(card, None, *sizes, counted)
        for quant in (None, *RECIPES):
            floor, seconds = roofline_seconds(card, quant, *sizes), predicted_seconds(card, quant, *sizes, counted)
            print(
                f"{card.name:12}{quant or 'bf16':>10}{seconds * 1e3:>10.2f}{1 / seconds:>10.0f}"
                f"{options.batch / seconds / STEPS_PER_SECOND_OF_SOUND:>13.1f}{floor / seconds:>15.0%}"
                f"{plain / seconds:>8.2f}"
            )
    if options.kernels:
        for quant in (None, *RECIPES):
            _print_kernels(quant, sizes, counted)
    return 0


def _print_kernels(quant: str | None, sizes: tuple[int, int, int], counted: Counted) -> None:
    """Predicted microseconds of each kernel, and the share of the issue slots that it needs while its bytes arrive."""
    print(f"\n{quant or 'bf16':36}{'a step':>7}{'MB':>7}" + "".join(f"{card.name:>19}" for card in CARDS))
    columns = [_kinds(step_work(card.architecture, quant, *sizes, counted)) for card in CARDS]
    for works in zip(*columns, strict=True):
        work, count = works[0]
        cells = []
        for card, (each, _) in zip(CARDS, works, strict=True):
            share = f"{each.issue_share(card):4.0%}" if each.instructions else ""
            cells.append(f"{1e6 * each.seconds(card):.1f} us {share:>4}")
        print(
            f"{title(work.launch):36}{count:7}{work.bytes_read / 1e6:7.1f}" + "".join(f"{cell:>19}" for cell in cells)
        )


def _kinds(step: tuple[Work, ...]) -> list[tuple[Work, int]]:
    """Each kind of launch once, and how often it is in a step."""
    kinds: dict[tuple, list[Work]] = {}
    for work in step:
        kinds.setdefault((title(work.launch), work.launch.grid, str(work.launch.constants)), []).append(work)
    return [(works[0], len(works)) for works in kinds.values()]


if __name__ == "__main__":
    run(main)
