"""Convolutions of a CPU in the compiled code, over weights that are brought into its order once.

Signals have the channels of a sample side by side in memory. A sample has the same bits in any part of a signal. See
docs/cpu.md for what that gains over the convolutions of oneDNN, which torch's own end in.
"""

import ctypes
import enum
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from .build import library
from .matmul import scratch_memory, thread_count
from .pages import empty_weight
from .structures import CodecLayer, Convolution

BLOCK = 16  # outputs whose weights are side by side


class Role(enum.IntEnum):
    """What a layer of a section is."""

    PLAIN = 0  # the first one: what it makes is the signal
    OPENS_UNIT = 1  # the first of a residual unit
    CLOSES_UNIT = 2  # the second, which adds to the signal
    SOUND = 3  # the last one of all, with a tanh behind it


class PackedConvolution:
    """What an `nn.Conv1d` or `nn.ConvTranspose1d` of the codec computes, over a copy of its weight."""

    def __init__(self, layer: nn.Conv1d | nn.ConvTranspose1d):
        """
        Args:
            layer: in float32 on a CPU, of stride 1; or a transposed one whose kernel is twice its stride long.
        """
        weight = layer.weight.detach()
        self.rate, self.cut, self.padding = 1, 0, int(layer.padding[0])
        if isinstance(layer, nn.ConvTranspose1d):
            self.rate, self.cut, self.padding = layer.stride[0], self.padding, 1
            weight = _as_plain(weight, self.rate)
        self.outputs, self.transposed = layer.out_channels, isinstance(layer, nn.ConvTranspose1d)
        self._weight = _packed(weight)
        bias = torch.zeros(self.outputs) if layer.bias is None else layer.bias.detach()
        self._bias = bias.repeat(self.rate)
        self._sizes = weight.shape[1], weight.shape[0], weight.shape[2], layer.dilation[0]
        self.inputs = weight.shape[1]

    def structure(self, activation: "Activation | None", role: Role) -> CodecLayer:
        """The layer as the compiled code reads it; keep this object and the activation alive."""
        alphas = (None, None) if activation is None else activation.addresses
        convolution = Convolution(self._weight.data_ptr(), self._bias.data_ptr(), *self._sizes)
        return CodecLayer(*alphas, convolution, self.padding, self.rate, self.cut, role)


@dataclass(frozen=True)
class Activation:
    """Alpha and its inverse of a `snake`, each [1, channels, 1] float32."""

    alpha: torch.Tensor
    inverse_alpha: torch.Tensor

    @property
    def addresses(self) -> tuple[int, int]:
        return self.alpha.data_ptr(), self.inverse_alpha.data_ptr()


@dataclass(frozen=True)
class SectionLayer:
    """A convolution, with the activation before it."""

    activation: Activation | None
    convolution: PackedConvolution
    role: Role


def packed(layer: nn.Conv1d | nn.ConvTranspose1d) -> PackedConvolution | None:
    """What a layer computes, over a copy of its weight; None where the compiled code does not compute it."""
    weight, padding, transposed = layer.weight, layer.padding[0], isinstance(layer, nn.ConvTranspose1d)
    if weight.device.type != "cpu" or weight.dtype != torch.float32 or layer.groups != 1 or library() is None:
        return None
    span = (layer.kernel_size[0] - 1) * layer.dilation[0]
    if transposed:
        known = layer.kernel_size[0] == 2 * layer.stride[0] and layer.dilation[0] == 1 and layer.output_padding[0] == 0
    else:
        known = layer.stride[0] == 1 and not isinstance(padding, str) and 2 * padding == span
    return PackedConvolution(layer) if known else None


def _as_plain(weight: torch.Tensor, rate: int) -> torch.Tensor:
    """The weight [inputs, outputs, 2 R] of a transposed convolution -> [R x outputs, inputs, 2] of a plain one that
    makes R samples of each pair of neighbors: the later one meets the first R taps."""
    inputs, outputs, _ = weight.shape
    earlier, later = weight[..., rate:], weight[..., :rate]
    return torch.stack((earlier, later), dim=-1).permute(2, 1, 0, 3).reshape(rate * outputs, inputs, 2)


def _packed(weight: torch.Tensor) -> torch.Tensor:
    """[outputs, inputs, taps] -> [blocks, taps, inputs, BLOCK], with zeros behind the last output."""
    outputs, inputs, taps = weight.shape
    blocks = -(-outputs // BLOCK)
    to = empty_weight((blocks, taps, inputs, BLOCK), torch.float32, "cpu")
    to[-1] = 0
    for block in range(blocks):
        part = weight[block * BLOCK : (block + 1) * BLOCK]
        to[block, ..., : len(part)] = part.permute(2, 1, 0)
    return to


class Section:
    """Layers of one rate in one call of the compiled code: a plain one, residual units, and maybe the sound's."""

    def __init__(self, layers: Sequence[SectionLayer]):
        self._layers = layers  # kept alive
        self._functions = _library()
        self._structures = (CodecLayer * len(layers))(
            *(layer.convolution.structure(layer.activation, layer.role) for layer in layers)
        )
        self._makes_sound = layers[-1].role is Role.SOUND

    def __reduce__(self) -> tuple[type["Section"], tuple[Sequence[SectionLayer]]]:
        """Copies have structures of their own, with the addresses of their own weights."""
        return Section, (self._layers,)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [1, inputs, samples] float32 -> [1, outputs, samples of the output], with its channels side by side.

        Raises:
            ValueError: another shape, dtype or device, or no sample in it or the output.
        """
        first, count, samples = self._layers[0].convolution, len(self._layers), x.shape[-1]
        rows = samples + first.transposed
        is_known = x.dtype == torch.float32 and x.device.type == "cpu" and x.shape == (1, first.inputs, samples)
        if not is_known or samples < 1 or rows * first.rate <= 2 * first.cut:
            raise ValueError(
                f"the codec's decoder takes float32 signals [1, {first.inputs}, samples] on the CPU here, long enough "
                f"to leave a sample; got {x.dtype} {list(x.shape)} on {x.device}"
            )
        x = x.transpose(1, 2).contiguous()
        signal = torch.empty((1, rows * first.rate, first.outputs), dtype=torch.float32, device="cpu")
        made = signal[:, first.cut : rows * first.rate - first.cut]
        last = made
        if self._makes_sound:
            last = made.new_empty((1, made.shape[1], self._layers[-1].convolution.outputs))
        scratch = scratch_memory(self._functions.section_bytes(self._structures, count, samples))
        addresses = (tensor.data_ptr() for tensor in (signal, last, scratch))
        self._functions.decode_section(self._structures, count, x.data_ptr(), samples, *addresses, thread_count())
        return last.transpose(1, 2)


def _library() -> ctypes.CDLL:
    functions = library()
    if functions is None:
        raise RuntimeError("convolutions are not compiled here, see `packed`")
    return functions
