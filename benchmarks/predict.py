"""What a decode step should take on GPUs that are not here: a prediction, not a measurement.

    python -m benchmarks.predict [--position N] [--text N]

    time = max(bytes / (0.9 x memory bandwidth), decoding) + launches x gap

Bytes are those that the 1.6B model's step must read (`roofline.step_bytes`), launches those that it makes. Bandwidth,
multiprocessors and clock are the data sheets'; 0.9 of the bandwidth is what large copies reach. The gap between two
launches of a CUDA graph is about 2 us on Ampere and Ada, and 0.9 us where a launch may start before its predecessor
ends (Hopper), after what others published for small language models. Decoding counts the machine instructions that turn
packed weights into tensor-core operands, at 60 % of the slots in which a multiprocessor can issue one.
"""

import argparse
from dataclasses import dataclass

import torch

from dia_engine.info import weight_bytes
from dia_engine.model.config import DiaConfig
from dia_engine.model.dia import parameter_shapes
from dia_engine.weights.recipes import RECIPES, chosen_formats

from .command import run
from .kernel_report import step_launches
from .roofline import is_read_in_step, step_bytes

FRAMES_PER_SECOND = 44100 / 512
REACHED = 0.9  # of the bandwidth
ISSUED = 0.6  # of the issue slots
LANES = 128  # instructions of single threads that a multiprocessor issues in a clock: four warps of 32
# Machine instructions for each weight in the compiled kernels, loads and tensor-core operations included.
INSTRUCTIONS = {None: 2.8, "int8": 4.2, "nf4": 5.3}


@dataclass(frozen=True)
class Card:
    name: str
    architecture: int
    bandwidth: float  # bytes a second
    multiprocessors: int
    clock: float  # of the multiprocessors, a second
    gap: float  # seconds between launches of a graph


CARDS = (
    Card("RTX A4000", 86, 448e9, 48, 1.56e9, 2.0e-6),
    Card("RTX 4090", 89, 1008e9, 128, 2.52e9, 2.0e-6),
    Card("H100 SXM", 90, 3350e9, 132, 1.755e9, 0.9e-6),
)


def predicted_seconds(card: Card, quant: str | None, position: int, text: int) -> tuple[float, float]:
    """One step of one request at a decoder row, over `text` bytes: (the roofline's seconds, the predicted seconds)."""
    config, dtype = DiaConfig(), torch.bfloat16
    formats = chosen_formats(RECIPES[quant], config) if quant else {}
    shapes = {name: shape for name, shape in parameter_shapes(config).items() if is_read_in_step(name)}
    sizes = {name: weight_bytes(name, shape, dtype, formats.get(name)) for name, shape in shapes.items()}
    read = step_bytes(config, sizes, dtype.itemsize, 1, position, text)
    work = sum(INSTRUCTIONS[formats.get(name)] * torch.Size(shape).numel() for name, shape in shapes.items())
    decoding = work / (ISSUED * LANES * card.multiprocessors * card.clock)
    launches = len(step_launches(config, 1, dtype, card.architecture, quant))
    return read / card.bandwidth, max(read / (REACHED * card.bandwidth), decoding) + launches * card.gap


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--position", type=int, default=512, help="decoder row (%(default)s)")
    parser.add_argument("--text", type=int, default=200, help="bytes of text (%(default)s)")
    options = parser.parse_args(arguments)
    print("predicted, not measured: one request, bfloat16 activations\n")
    heads = {"weights": 10, "ms/step": 10, "steps/s": 10, "x real time": 13, "% of roofline": 15, "x bf16": 8}
    print(f"{'card':12}" + "".join(f"{head:>{width}}" for head, width in heads.items()))
    for card in CARDS:
        plain = predicted_seconds(card, None, options.position, options.text)[1]
        for quant in (None, *RECIPES):
            floor, seconds = predicted_seconds(card, quant, options.position, options.text)
            print(
                f"{card.name:12}{quant or 'bf16':>10}{seconds * 1e3:>10.2f}{1 / seconds:>10.0f}"
                f"{1 / seconds / FRAMES_PER_SECOND:>13.1f}{floor / seconds:>15.0%}{plain / seconds:>8.2f}"
            )
    return 0


if __name__ == "__main__":
    run(main)
