"""Has a request the same bits alone and in a batch? Runs projections and attention as compiled, in the PTX emulator.

    python -m tools.ptx_emulator.row_bits --arch 86 90 [--slots 2 5 9 20] [--weights bfloat16 float16 float32
                                          bfloat16:int8 bfloat16:nf4 float32:int8 float32:nf4]

Prints what differs: kernel and output, weights, slots, how many elements; or that a kernel needs more shared
memory than there is. Exit status 1 in both cases.
"""

import argparse
import os
import sys
import time

import torch
from triton.runtime.errors import OutOfResources

from dia_engine.kernels import attention, gated_linear, norm_linear, qkv, residual_linear
from dia_engine.kernels.dispatch import launches_to
from dia_engine.kernels.norm import TILE, Residual
from dia_engine.kernels.quantized import FORMATS
from dia_engine.kernels.rope import rope_table

from .driver import activate, emulate

WIDTH = 1024  # below 2048, where the norm's scale sums fewer than 128 partial sums
WEIGHTS = ("bfloat16", "float16", "float32", "bfloat16:int8", "bfloat16:nf4", "float32:int8", "float32:nf4")
EPS = 1e-5


class Requests:
    """Inputs of every projection and of attention for up to `slots` requests, the same whichever of them run together."""

    def __init__(self, slots: int, weights: str) -> None:
        torch.manual_seed(0)
        name, _, quant = weights.partition(":")
        self.dtype, self.format = getattr(torch, name), FORMATS.get(quant)
        self.qkv, self.gate, self.out, self.head = (self._weight(outputs) for outputs in (192, 64, 64, 48))
        rows = 2 * slots
        self.residual = Residual.allocate(rows, WIDTH, self.dtype, "cpu")
        self.residual.write(torch.randn(rows, WIDTH) * 3, 1 + 0.1 * torch.randn(WIDTH))
        self.residual.squares.copy_(self.residual.x.view(rows, -1, TILE).square().sum(-1))
        self.inputs = torch.randn(rows, WIDTH).to(self.dtype)
        self.narrow = torch.randn(rows, 64)
        self.constant = torch.randn(64)
        self.rope = rope_table(16, 64, 10000.0, "cpu")
        self.query = torch.randn(rows, 4, 16).to(self.dtype)
        self.keys, self.values = (torch.randn(rows, 2, 70, 16).to(self.dtype) for _ in range(2))
        self.last = torch.arange(slots) * 13 % 70  # other lengths than the first request's, 70
        self.last[0] = 69

    def _weight(self, outputs: int):
        matrix = torch.randn(outputs, WIDTH) * WIDTH**-0.5
        return self.format.quantize(matrix, self.dtype) if self.format else matrix.to(self.dtype)

    def run(self, slots: int) -> dict[str, torch.Tensor]:
        """Every output for the first so many requests, [2 slots, ...]."""
        rows = 2 * slots
        residual = self.residual.rows(slice(0, rows))
        query = torch.zeros(rows, 1, 64, dtype=self.dtype)
        keys, values = (torch.zeros(rows, 1, 16, 64, dtype=self.dtype) for _ in range(2))
        qkv.project_qkv(residual, self.qkv, EPS, self.rope, torch.full((slots,), 7), query, keys, values)
        hidden = torch.zeros(rows, 32, dtype=self.dtype)
        gated_linear.gated_linear(residual, self.gate, EPS, hidden)
        logits = torch.zeros(rows, 48)
        norm_linear.norm_linear(residual, self.head, EPS, logits)
        found = {"qkv query": query, "qkv keys": keys, "qkv values": values, "gated": hidden, "norm": logits}
        for title, inputs, constant in (
            ("residual", self.inputs[:rows], None), ("residual with text", self.inputs[:slots], self.constant),
        ):  # fmt: skip
            result = Residual.allocate(rows, 64, self.dtype, "cpu")
            result.write(self.narrow[:rows], torch.ones(64))
            residual_linear.residual_linear(inputs, self.out, result, torch.ones(64), constant)
            found |= {f"{title} {name}": getattr(result, name) for name in ("x", "z", "squares")}
        return found | {"self-attention": self._attend(slots, 2), "cross-attention": self._attend(slots, 1)}

    def _attend(self, slots: int, rows_per_slot: int) -> torch.Tensor:
        rows = slots * rows_per_slot
        out = torch.zeros(rows, 64, dtype=self.dtype)
        scratch = attention.AttentionScratch.allocate(rows, 2, 4, 16, "cpu")
        caches = self.keys[:rows], self.values[:rows]
        attention.decode_attention(self.query[:rows], *caches, self.last[:slots], scratch, out)
        return out


def differences(architecture: int, weights: str, batches: list[int]) -> list[str]:
    """A line per batch and output in which the first request's rows are not those it has alone."""
    requests, lines = Requests(max(batches), weights), []
    activate(architecture)
    with launches_to(emulate, architecture):
        alone = requests.run(1)
        for slots in batches:
            for name, together in requests.run(slots).items():
                count = int((together[: len(alone[name])] != alone[name]).sum())
                if count:
                    lines.append(
                        f"sm_{architecture} {weights} {slots} slots: {name}: {count} of {alone[name].numel()} differ"
                    )
    return lines


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", type=int, nargs="+", default=[86, 90], help="compute capabilities")
    parser.add_argument("--slots", type=int, nargs="+", default=[2, 5, 9, 20], help="requests in a batch")
    parser.add_argument("--weights", nargs="+", choices=WEIGHTS, default=WEIGHTS, help="dtype, or dtype:format")
    options = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1 leaves nothing to compile")
    failed = False
    for architecture in options.arch:
        for weights in options.weights:
            start = time.perf_counter()
            try:
                lines = differences(architecture, weights, options.slots)
            except OutOfResources as error:
                lines = [f"sm_{architecture} {weights}: a kernel does not fit: {error}"]
            failed |= bool(lines)
            print(*lines, sep="\n", end="\n" if lines else "")
            verdict = f"{len(lines)} faults" if lines else "equal"
            print(f"sm_{architecture} {weights}: {verdict}, {time.perf_counter() - start:.0f} s", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
