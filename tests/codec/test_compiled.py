"""Sections of the decoder in compiled code against its layers as torch computes them."""

import random

import pytest
import torch

from dia_engine.codec.compiled import fused
from dia_engine.codec.network import Decoder
from dia_engine.kernels.cpu.build import library
from dia_engine.kernels.cpu.convolution import Section
from tests.sound import TOLERANCE, random_codec

needs_compiled_code = pytest.mark.skipif(library() is None, reason="there is no compiled code")


def codecs(seed: int, monkeypatch):
    """A random codec, and the same one without compiled code."""
    packed = random_codec(random.Random(seed))
    monkeypatch.setattr(Decoder, "pack", lambda self: None)
    return packed, random_codec(random.Random(seed))


@needs_compiled_code
@pytest.mark.parametrize("seed", range(20))
@torch.no_grad()
def test_sections_are_the_layers(seed, monkeypatch):
    packed, plain = codecs(seed, monkeypatch)
    signal = torch.randn(1, plain.config.hidden_size, 11)
    expected = plain.decoder(signal)
    assert torch.allclose(packed.decoder(signal), expected, rtol=0, atol=TOLERANCE)
    for section in packed.decoder.tiled._sections:
        (step,) = section._steps
        assert isinstance(step, Section)
        signal = step(signal)
    assert signal.shape == expected.shape
    assert torch.allclose(signal, expected, rtol=0, atol=TOLERANCE)


def test_layers_that_are_not_packed_stay_as_they_are(monkeypatch):
    _, plain = codecs(0, monkeypatch)
    layers = list(plain.decoder)
    assert fused(layers) == layers


@needs_compiled_code
@torch.no_grad()
def test_what_is_no_number_comes_out_as_none(monkeypatch):
    """It must not be lost among the zeros of a tile's padding: `check_samples` looks for it."""
    packed, _ = codecs(3, monkeypatch)
    latent = torch.randn(1, packed.config.hidden_size, 40)
    latent[0, 0, 20] = torch.nan
    assert packed.decoder(latent).isnan().any()
