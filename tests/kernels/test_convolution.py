"""Convolutions in compiled code against torch's own."""

import pytest
import torch
from torch import nn

from dia_engine.kernels.cpu import convolution
from dia_engine.kernels.cpu.build import library_of
from dia_engine.kernels.cpu.convolution import Role, Section, SectionLayer, packed
from tests.kernels.builds import HERE, needs_compiled_code

LAYERS = [
    nn.Conv1d(7, 5, kernel_size=7, padding=3),
    nn.Conv1d(16, 16, kernel_size=7, padding=27, dilation=9),
    nn.Conv1d(16, 1, kernel_size=7, padding=3),
    nn.Conv1d(9, 1, kernel_size=7, padding=3),
    nn.Conv1d(33, 33, kernel_size=1),
    nn.Conv1d(300, 70, kernel_size=9, padding=4),
    nn.Conv1d(12, 48, kernel_size=3, padding=1, bias=False),
    nn.ConvTranspose1d(12, 6, kernel_size=8, stride=4, padding=2),
    nn.ConvTranspose1d(5, 3, kernel_size=6, stride=3, padding=2),
    nn.ConvTranspose1d(8, 20, kernel_size=2, stride=1, padding=1),
]
OTHERS = [
    nn.Conv1d(4, 4, 3, padding=1, dtype=torch.bfloat16),
    nn.Conv1d(4, 4, 3, padding=1, stride=2),
    nn.Conv1d(4, 4, 3),
    nn.Conv1d(4, 4, 4, padding="same"),
    nn.Conv1d(4, 4, 3, padding=1, groups=2),
    nn.ConvTranspose1d(4, 4, 5, stride=2, padding=1),
    nn.ConvTranspose1d(4, 4, 4, stride=2, padding=1, output_padding=1),
]


def signal_for(layer: nn.Module, samples: int) -> torch.Tensor:
    return torch.randn(1, layer.in_channels, samples, generator=torch.Generator().manual_seed(samples))


def compiled(layer: nn.Module) -> Section:
    return Section([SectionLayer(None, packed(layer), Role.PLAIN)])


@needs_compiled_code
@pytest.mark.parametrize("samples", [2, 3, 61, 3000])
@pytest.mark.parametrize("layer", LAYERS, ids=str)
@torch.no_grad()
def test_gives_what_the_layer_gives_whatever_the_order_in_memory(layer, samples):
    x = signal_for(layer, samples)
    convolve, expected = compiled(layer), layer(x)
    for signal in (x, x.transpose(1, 2).contiguous().transpose(1, 2), torch.cat((x, x), dim=-1)[..., :samples]):
        torch.testing.assert_close(convolve(signal), expected, rtol=1e-5, atol=1e-5)


@needs_compiled_code
@pytest.mark.parametrize("layer", LAYERS, ids=str)
@torch.no_grad()
def test_all_variants_and_any_threads_give_the_same_bits(layer, monkeypatch):
    x, found = signal_for(layer, 1700), []
    for variant in HERE:
        if (functions := library_of(variant)) is None:
            pytest.skip("no compiler")
        monkeypatch.setattr(convolution, "library", lambda functions=functions: functions)
        for threads in (1, 3):
            monkeypatch.setattr(convolution, "thread_count", lambda threads=threads: threads)
            found.append(compiled(layer)(x))
    assert all(torch.equal(each, found[0]) for each in found)


@needs_compiled_code
@pytest.mark.parametrize("layer", LAYERS[:7], ids=str)
@torch.no_grad()
def test_a_sample_has_the_same_bits_in_any_part_of_a_signal(layer):
    convolve, x = compiled(layer), signal_for(layer, 900)
    reach = int(layer.padding[0])
    whole, part = convolve(x), convolve(x[..., 101:777])
    inside = slice(reach, part.shape[-1] - reach)
    assert torch.equal(part[..., inside], whole[..., 101:777][..., inside])


@pytest.mark.parametrize("layer", OTHERS, ids=str)
def test_other_layers_are_left_to_torch(layer):
    assert packed(layer) is None


def test_without_compiled_code_torch_computes(monkeypatch):
    monkeypatch.setattr(convolution, "library", lambda: None)
    assert all(packed(layer) is None for layer in LAYERS)
