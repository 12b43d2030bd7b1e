"""Convolutions over packed weights against torch's own."""

import pytest
import torch
from torch import nn

from dia_engine.kernels.cpu import convolution
from dia_engine.kernels.cpu.convolution import packed

LAYERS = [
    nn.Conv1d(7, 5, kernel_size=7, padding=3),
    nn.Conv1d(16, 16, kernel_size=7, padding=27, dilation=9),
    nn.Conv1d(16, 1, kernel_size=7, padding=3),
    nn.Conv1d(33, 33, kernel_size=1),
    nn.ConvTranspose1d(12, 6, kernel_size=8, stride=4, padding=2),
    nn.ConvTranspose1d(5, 3, kernel_size=6, stride=3, padding=2),
]

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


@pytest.mark.parametrize("samples", [1, 2, 61, 3000])
@pytest.mark.parametrize("layer", LAYERS, ids=str)
@torch.no_grad()
def test_gives_what_the_layer_gives_whatever_the_order_in_memory(layer, samples):
    x = torch.randn(1, layer.in_channels, samples)
    convolve, expected = packed(layer), layer(x)
    for signal in (x, x.transpose(1, 2).contiguous().transpose(1, 2), torch.cat((x, x), dim=-1)[..., :samples]):
        torch.testing.assert_close(convolve(signal), expected, rtol=1e-5, atol=1e-5)


def test_half_precision_is_left_to_torch():
    assert packed(nn.Conv1d(4, 4, 3, dtype=torch.bfloat16)) is None


def test_without_the_operators_torch_computes(monkeypatch):
    class Absent:
        def __getattr__(self, name):
            raise AttributeError(name)

    monkeypatch.setattr(convolution.torch.ops, "mkldnn", Absent())
    assert all(packed(layer) is None for layer in LAYERS)
