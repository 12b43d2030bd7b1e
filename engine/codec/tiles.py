"""The sound of a window, tile by tile, without the samples that only its context would make.

The frames of context around a chunk are there for what the first layers need; the last layers, whose rate is hundreds
of times higher, need a few samples of them. So each section of the decoder computes what the next one needs and no
more: less than half of a stream's first window, 2/3 of a later one. It does so in tiles of a fixed number of samples,
which stay in a CPU's cache, where whole signals are written to fresh memory and read from it again for every layer.

Tiles follow from the window alone. The samples are those of the whole decoder; where torch computes them, but for the
rounding of a few, as which instructions compute a sample can depend on how many there are.
"""

from collections.abc import Generator, Iterable
from dataclasses import dataclass

import torch
from torch import nn

from .compiled import fused
from .receptive_field import input_range

# A sound in the making: computes a piece of it between two yields, and returns it.
Pieces = Generator[None, None, torch.Tensor]

TILE_SAMPLES = 8192  # of a section's output; the context of a tile, under 100 samples, is little beside it


def finished(pieces: Pieces) -> torch.Tensor:
    """What pieces return when all of them are done."""
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            result: torch.Tensor = end.value
            return result


class TiledDecoder:
    """A codec's decoder, for windows of which a part is wanted."""

    def __init__(self, decoder: Iterable[nn.Module]):
        self._sections = [_Section(layers) for layers in _split(decoder)]

    def pieces(self, latent: torch.Tensor, first: int, last: int | None = None) -> Pieces:
        """Compute a part of what the decoder makes of a window, a piece of a few milliseconds between two yields.

        Args:
            latent: [1, hidden_size, W].
            first, last: samples [first, last) of the window's sound, or to its end if last is None.

        Returns:
            samples [1, 1, last - first] in the dtype of the latent.
        """
        lengths = [latent.shape[-1]]
        for section in self._sections:
            lengths.append(section.output_length(lengths[-1]))
        if not lengths[-1]:  # an odd stride drops samples, of a short window all of them
            return latent.new_zeros((1, 1, 0))
        ranges = [(first, lengths[-1] if last is None else min(last, lengths[-1]))]
        for section, length in zip(reversed(self._sections), reversed(lengths[:-1]), strict=True):
            ranges.insert(0, section.inputs(*ranges[0], length))
        signal = _Signal(latent, 0, lengths[0])
        for section, length, wanted in zip(self._sections, lengths[1:], ranges[1:], strict=True):
            signal = _Signal((yield from section.pieces(signal, *wanted)), wanted[0], length)
        return signal.samples


@dataclass(frozen=True)
class _Signal:
    """Samples [1, channels, n] of a signal of `length` samples, from number `first` on."""

    samples: torch.Tensor
    first: int
    length: int

    def part(self, first: int, last: int) -> torch.Tensor:
        return self.samples[..., first - self.first : last - self.first]


class _Section:
    """Layers of one rate, and the resampling before them."""

    def __init__(self, layers: list[nn.Module]):
        self._layers, self._steps = layers, fused(layers)
        self._resampling = [layer for layer in layers if isinstance(layer, nn.ConvTranspose1d)]

    def output_length(self, length: int) -> int:
        for layer in self._resampling:
            length = (length - 1) * layer.stride[0] - 2 * int(layer.padding[0]) + layer.kernel_size[0]
        return max(0, length)

    def inputs(self, first: int, last: int, length: int) -> tuple[int, int]:
        """The inputs [first, last) that these outputs depend on, of a signal of so many samples."""
        if first >= last:
            return 0, min(1, length)
        begin, end = input_range(self._layers, first, last - 1)
        return max(0, begin), min(length, end + 1)

    def pieces(self, signal: _Signal, first: int, last: int) -> Pieces:
        """The outputs [first, last), a tile between two yields."""
        tiles = []
        for start in range(first, max(last, first + 1), TILE_SAMPLES):
            stop = min(start + TILE_SAMPLES, last)
            tiles.append(self._tile(signal, start, stop))
            yield
        return tiles[0] if len(tiles) == 1 else _joined(tiles)

    def _tile(self, signal: _Signal, first: int, last: int) -> torch.Tensor:
        begin, end = self.inputs(first, last, signal.length)
        # The convolutions pad the cut ends with zeros: what that spoils is outside [first, last).
        samples = signal.part(begin, end)
        for step in self._steps:
            samples = step(samples)
        for layer in self._resampling:
            begin *= layer.stride[0]
        return samples[..., first - begin : last - begin]


def _joined(tiles: list[torch.Tensor]) -> torch.Tensor:
    """Tiles [1, channels, n] one after the other, in memory as they are: `cat` alone would bring a channel's samples
    together."""
    if tiles[0].stride(1) != 1:
        return torch.cat(tiles, dim=-1)
    return torch.cat([tile.transpose(1, 2) for tile in tiles], dim=1).transpose(1, 2)


def _split(decoder: Iterable[nn.Module]) -> list[list[nn.Module]]:
    """Layers in groups that begin at each resampling, or at the activation right before it."""
    layers = list(decoder)
    groups: list[list[nn.Module]] = [[]]
    for layer, following in zip(layers, [*layers[1:], None], strict=True):
        if isinstance(following, nn.ConvTranspose1d):
            groups.append([])
        groups[-1].append(layer)
    return groups
