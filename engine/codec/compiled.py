"""The codec's decoder in compiled code: its weights packed, the layers of one rate in one call."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from ..kernels.cpu.convolution import Activation, Role, Section, SectionLayer, packed
from .layers import Conv1d, ConvTranspose1d, ResidualUnit, Snake

Step = Callable[[torch.Tensor], torch.Tensor]  # [1, channels, samples] to the same


def pack(layers: nn.Module) -> bool:
    """Bring the weights of all convolutions into the order of the compiled code, where they stay, `weight` being None;
    whether there is compiled code for them."""
    convolutions = _convolutions([layers])
    forms = [packed(layer) for layer in convolutions]
    if None in forms:
        return False
    for layer, form in zip(convolutions, forms, strict=True):
        layer.packed = form
        layer.register_parameter("weight", None)
    return True


def fused(layers: Sequence[nn.Module]) -> list[Step]:
    """The layers of one rate as one step; the layers themselves if they are not packed."""
    if any(layer.packed is None for layer in _convolutions(layers)):
        return list(layers)
    section: list[SectionLayer] = []
    activation = None
    for layer in layers:
        if isinstance(layer, Snake):
            activation = _activation(layer)
        elif isinstance(layer, ResidualUnit):
            section += _unit(*layer)
        elif isinstance(layer, (Conv1d, ConvTranspose1d)):
            section.append(_layer(activation, layer, Role.SOUND if section else Role.PLAIN))
    return [Section(section)]


def _convolutions(layers: Sequence[nn.Module]) -> list[Conv1d | ConvTranspose1d]:
    return [part for layer in layers for part in layer.modules() if isinstance(part, (Conv1d, ConvTranspose1d))]


def _unit(first_snake: Snake, first: Conv1d, second_snake: Snake, second: Conv1d) -> list[SectionLayer]:
    opens = _layer(_activation(first_snake), first, Role.OPENS_UNIT)
    return [opens, _layer(_activation(second_snake), second, Role.CLOSES_UNIT)]


def _layer(activation: Activation | None, convolution: Conv1d | ConvTranspose1d, role: Role) -> SectionLayer:
    if convolution.packed is None:
        raise TypeError("this convolution is not packed")
    return SectionLayer(activation, convolution.packed, role)


def _activation(snake: Snake) -> Activation:
    return Activation(snake.alpha.detach().contiguous(), snake.inverse_alpha.contiguous())
