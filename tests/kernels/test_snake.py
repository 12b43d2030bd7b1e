"""The codec's activation, compiled and as a kernel, against its reference."""

import os

import pytest
import torch
from torch import nn

from dia_engine.kernels.cpu import convolution
from dia_engine.kernels.cpu.build import library_of
from dia_engine.kernels.cpu.convolution import Activation, Role, Section, SectionLayer, packed
from dia_engine.kernels.snake import snake, snake_ref
from tests.kernels.builds import HERE, needs_compiled_code
from tests.kernels.helpers import DEVICE, kernels

SHAPES = [(1, 1), (1, 700), (3, 5), (16, 4144), (96, 513), (700, 3), (1536, 40)]  # channels, samples


def signal(channels, samples, scale=1.0):
    generator = torch.Generator().manual_seed(channels + samples)
    x = scale * torch.randn(1, channels, samples, generator=generator)
    alpha = 0.05 + 3 * torch.rand(1, channels, 1, generator=generator)
    return x, alpha, (alpha + 1e-9).reciprocal()


def compiled(x, alpha, inverse_alpha):
    """By compiled code, where the activation comes with a convolution: one that does nothing."""
    channels = x.shape[1]
    identity = nn.Conv1d(channels, channels, 1, bias=False)
    identity.weight.data = torch.eye(channels)[..., None]
    return Section([SectionLayer(Activation(alpha, inverse_alpha), packed(identity), Role.PLAIN)])(x)


def exact(x, alpha, inverse_alpha):
    """In float64, of the angles as float32 has them."""
    return torch.sin((alpha * x).double()).square() * inverse_alpha.double() + x.double()


@needs_compiled_code
@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0, 1e4, 1e6])
@pytest.mark.parametrize("channels, samples", SHAPES)
@torch.no_grad()
def test_compiled_it_is_as_close_as_the_reference(channels, samples, scale):
    x, *alphas = signal(channels, samples, scale)
    found = compiled(x, *alphas)
    expected, bound = exact(x, *alphas), 2e-7 * (1 + x.abs() + alphas[1])
    assert ((found - expected).abs() <= bound).all()


@needs_compiled_code
@torch.no_grad()
def test_all_variants_and_any_threads_give_the_same_bits(monkeypatch):
    x, *alphas = signal(24, 5000)
    found = []
    for variant in HERE:
        if (functions := library_of(variant)) is None:
            pytest.skip("no compiler")
        monkeypatch.setattr(convolution, "library", lambda functions=functions: functions)
        for threads in (1, 3):
            monkeypatch.setattr(convolution, "thread_count", lambda threads=threads: threads)
            found.append(compiled(x, *alphas))
    assert all(torch.equal(each, found[0]) for each in found)


@needs_compiled_code
@torch.no_grad()
def test_a_part_of_a_signal_has_the_bits_that_it_has_in_the_whole():
    x, *alphas = signal(6, 900)
    x[0, 2, 300] = 3e6  # whose angle is computed in another way
    whole = compiled(x, *alphas)
    for first, last in ((0, 1), (3, 500), (899, 900)):
        assert torch.equal(compiled(x[..., first:last], *alphas), whole[..., first:last])


@needs_compiled_code
@torch.no_grad()
def test_what_is_no_number_stays_in_its_sample():
    x, *alphas = signal(5, 60)
    x[0, 1, 7], x[0, 2, 9] = float("nan"), float("inf")
    found = compiled(x, *alphas).isnan().any(dim=1)[0]
    assert found.nonzero().flatten().tolist() == [7, 9]


@pytest.mark.skipif("EMULATED_ARCHITECTURE" in os.environ, reason="a sine calls a function, which the emulator lacks")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)])
@pytest.mark.parametrize("channels, samples", SHAPES)
def test_the_kernel_is_the_reference(channels, samples, dtype):
    pytest.importorskip("triton")
    x, *alphas = (tensor.to(DEVICE, dtype) for tensor in signal(channels, samples))
    with kernels():
        found = snake(x, *alphas)
        apart = snake(x[..., samples // 2 :], *alphas)  # a part, whose channels are further apart
    expected = snake_ref(*(tensor.float() for tensor in (x, *alphas)))
    assert found.dtype == dtype and found.is_contiguous()
    torch.testing.assert_close(found.float(), expected, rtol=torch.finfo(dtype).eps, atol=1e-6)
    assert torch.equal(apart, found[..., samples // 2 :])
