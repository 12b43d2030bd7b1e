"""How far the sound of a frame depends on the frames around it: the receptive field of a stack of convolutions.

It is found by walking the layers from the end to the start, in whole samples of each layer's own rate. Zero padding at
the edge of a signal is what makes a window differ from the whole; a sample that hears no frame outside a window cannot
hear that window's padding either, in any layer.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from .layers import ResidualUnit, Snake


@dataclass(frozen=True)
class ReceptiveField:
    """Frames before and after frame t that its samples depend on."""

    before: int
    after: int


def receptive_field(decoder: Iterable[nn.Module]) -> ReceptiveField:
    """The receptive field of a frame of `hop` samples, hop being the product of the strides.

    Windows of a transposed convolution agree with the whole sample for sample: input j lands on output j x stride +
    tap - padding, so that moving the window by a frame moves its sound by exactly hop samples, for odd strides too.

    Args:
        decoder: layers in the order in which the signal meets them, frames in, samples out.

    Raises:
        TypeError: a layer whose receptive field is not known here.
    """
    layers = list(decoder)
    hop = math.prod(layer.stride[0] for layer in layers if isinstance(layer, nn.ConvTranspose1d))
    first, last = input_range(layers, 0, hop - 1)
    return ReceptiveField(before=-first, after=last)


def input_range(layers: Iterable[nn.Module], first: int, last: int) -> tuple[int, int]:
    """First and last input that outputs `first` to `last` of these layers depend on, on a signal without ends."""
    for layer in reversed(list(layers)):
        first, last = _layer_range(layer, first, last)
    return first, last


def _layer_range(layer: nn.Module, first: int, last: int) -> tuple[int, int]:
    if isinstance(layer, nn.Conv1d):  # output i = sum over taps of input i x stride - padding + tap x dilation
        stride, padding = layer.stride[0], _padding(layer)
        return first * stride - padding, last * stride - padding + _span(layer)
    if isinstance(layer, nn.ConvTranspose1d):  # input j adds to the outputs j x stride - padding + tap x dilation
        stride, padding = layer.stride[0], _padding(layer)
        return -((_span(layer) - padding - first) // stride), (last + padding) // stride  # rounded up, rounded down
    if isinstance(layer, ResidualUnit):  # the signal itself and what is added to it
        inner_first, inner_last = input_range(layer.children(), first, last)
        return min(first, inner_first), max(last, inner_last)
    if isinstance(layer, (Snake, nn.Tanh)):
        return first, last
    raise TypeError(f"the receptive field of a {type(layer).__name__} layer is not known")


def _padding(layer: nn.Conv1d | nn.ConvTranspose1d) -> int:
    padding = layer.padding[0]
    if not isinstance(padding, int):
        raise TypeError(f"the receptive field of a layer with padding {layer.padding!r} is not known")
    return padding


def _span(layer: nn.Conv1d | nn.ConvTranspose1d) -> int:
    """Samples from the first to the last tap."""
    return (layer.kernel_size[0] - 1) * layer.dilation[0]
