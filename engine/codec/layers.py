"""The convolution stacks of the codec. Signals have the shape [1, channels, time].

Both stacks are flat `nn.Sequential`s: every convolution is an `nn.Conv1d` or `nn.ConvTranspose1d` that states its
kernel, stride, padding and dilation, in the order in which the signal meets it. Weights are plain (no weight norm).
On a CPU those of the decoder are packed, see `compiled.py`.
"""

import math

import torch
from torch import nn

from ..kernels.cpu.convolution import PackedConvolution
from ..kernels.snake import snake
from .config import CodecConfig

DILATIONS = (1, 3, 9)


class Snake(nn.Module):
    """x + sin(alpha x)^2 / alpha, with one alpha per channel."""

    inverse_alpha: torch.Tensor  # [1, channels, 1], made by `prepare`

    def __init__(self, channels: int):
        super().__init__()
        self.alpha = nn.Parameter(torch.empty(1, channels, 1))

    def prepare(self) -> None:
        """Compute 1 / alpha, once and in the dtype of the loaded weights."""
        self.register_buffer("inverse_alpha", (self.alpha.detach() + 1e-9).reciprocal(), persistent=False)

    def forward(self, signal: torch.Tensor) -> torch.Tensor:
        return snake(signal, self.alpha, self.inverse_alpha)


class Conv1d(nn.Conv1d):
    """A convolution, and maybe its compiled form, see `compiled.py`."""

    packed: PackedConvolution | None = None


class ConvTranspose1d(nn.ConvTranspose1d):
    """A transposed convolution, and maybe its compiled form."""

    packed: PackedConvolution | None = None


class ResidualUnit(nn.Sequential):
    """signal + (snake, dilated convolution, snake, pointwise convolution)(signal); the length stays."""

    def __init__(self, channels: int, dilation: int):
        super().__init__(
            Snake(channels),
            Conv1d(channels, channels, kernel_size=7, dilation=dilation, padding=3 * dilation),
            Snake(channels),
            Conv1d(channels, channels, kernel_size=1),
        )

    def forward(self, signal: torch.Tensor) -> torch.Tensor:
        return super().forward(signal).add_(signal)


def build_encoder(config: CodecConfig) -> nn.Sequential:
    """Waveform [1, 1, samples] to latent [1, hidden_size, frames]."""
    channels = config.encoder_hidden_size
    layers: list[nn.Module] = [Conv1d(1, channels, kernel_size=7, padding=3)]
    for stride in config.downsampling_ratios:
        layers += [ResidualUnit(channels, dilation) for dilation in DILATIONS]
        layers += [Snake(channels), _resampling(Conv1d, channels, 2 * channels, stride)]
        channels *= 2
    layers += [Snake(channels), Conv1d(channels, config.hidden_size, kernel_size=3, padding=1)]
    return nn.Sequential(*layers)


def decoder_layers(config: CodecConfig) -> list[nn.Module]:
    """Latent [1, hidden_size, frames] to waveform [1, 1, samples].

    An even stride s makes s times as many samples of its input; an odd one makes one less, as the reference does.
    """
    channels = config.decoder_hidden_size
    layers: list[nn.Module] = [Conv1d(config.hidden_size, channels, kernel_size=7, padding=3)]
    for stride in config.upsampling_ratios:
        layers += [Snake(channels), _resampling(ConvTranspose1d, channels, channels // 2, stride)]
        channels //= 2
        layers += [ResidualUnit(channels, dilation) for dilation in DILATIONS]
    return [*layers, Snake(channels), Conv1d(channels, 1, kernel_size=7, padding=3), nn.Tanh()]


def _resampling(
    kind: type[Conv1d] | type[ConvTranspose1d], inputs: int, outputs: int, stride: int
) -> Conv1d | ConvTranspose1d:
    return kind(inputs, outputs, kernel_size=2 * stride, stride=stride, padding=math.ceil(stride / 2))
