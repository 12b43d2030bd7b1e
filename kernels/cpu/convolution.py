"""Convolutions of a CPU by oneDNN, over weights that are brought into its order once.

torch's own convolutions of one dimension bring weights and signals into that order at every call, and small ones go to
loops of its own: on two cores of a Zen 5 these take 35.8 ms for a layer of the published codec's (1536 to 768 channels,
80 frames) that takes 6.5 ms so, and two to four times as long for the layers of a small codec's first window. The
signals that go from one to the next have the channels of a sample side by side in memory.
"""

from collections.abc import Callable

import torch
from torch import nn

Convolution = Callable[[torch.Tensor], torch.Tensor]  # [1, C, N] float32 -> [1, C', N']


def packed(layer: nn.Conv1d | nn.ConvTranspose1d) -> Convolution | None:
    """What a layer computes, over a copy of its weight; None where oneDNN cannot."""
    weight = layer.weight
    if weight.device.type != "cpu" or weight.dtype != torch.float32 or not torch.backends.mkldnn.is_available():
        return None
    try:
        return _packed_transposed(layer) if isinstance(layer, nn.ConvTranspose1d) else _packed(layer)
    except (RuntimeError, AttributeError):  # a torch without these operators, or a CPU that they do not know
        return None


def _packed(layer: nn.Conv1d) -> Convolution:
    pack, convolve = torch.ops.mkldnn._reorder_convolution_weight, torch.ops.mkldnn._convolution_pointwise
    sizes = [0, *layer.padding], [1, *layer.stride], [1, *layer.dilation]
    weight, bias = pack(layer.weight[:, :, None], *sizes, 1), layer.bias
    return lambda x: convolve(_by_sample(x), weight, bias, *sizes, 1, "none", [], "").squeeze(2)


def _packed_transposed(layer: nn.ConvTranspose1d) -> Convolution:
    pack = torch.ops.mkldnn._reorder_convolution_transpose_weight
    convolve = torch.ops.mkldnn._convolution_transpose_pointwise
    sizes = [0, *layer.padding], [0, 0], [1, *layer.stride], [1, 1]
    weight, bias = pack(layer.weight[:, :, None], *sizes, 1), layer.bias
    return lambda x: convolve(_by_sample(x), weight, bias, *sizes, 1, "none", [], "").squeeze(2)


def _by_sample(x: torch.Tensor) -> torch.Tensor:
    """[1, C, N] -> [1, C, 1, N] with the channels of a sample side by side."""
    return x[:, :, None].contiguous(memory_format=torch.channels_last)
