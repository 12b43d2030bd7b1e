"""Sections of the decoder in compiled code against its layers as torch computes them."""

import copy
import pickle
import random
from dataclasses import replace

import pytest
import torch

from dia_engine.codec import Codec
from dia_engine.codec.compiled import fused
from dia_engine.codec.network import Decoder
from dia_engine.kernels.cpu.convolution import Section
from tests.kernels.builds import needs_compiled_code
from tests.sound import TOLERANCE, random_codec


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


@needs_compiled_code
@torch.no_grad()
def test_a_latent_that_the_code_cannot_read_is_refused():
    codec = random_codec(random.Random(3))
    size = codec.config.hidden_size
    for latent in (
        torch.zeros(1, size + 1, 20),
        torch.zeros(1, size, 20, dtype=torch.float16),
        torch.zeros(1, size, 20, dtype=torch.float64),
        torch.zeros(1, size, 20, device="meta"),
    ):
        with pytest.raises(ValueError, match=rf"float32 signals \[1, {size}, samples\].* got {latent.dtype}"):
            codec.decoder(latent)


@needs_compiled_code
@torch.no_grad()
def test_a_copy_is_one_of_its_own_and_a_codec_keeps_its_numbers():
    codec = random_codec(random.Random(4))
    latent = torch.randn(1, codec.config.hidden_size, 20)
    expected = codec.decoder(latent)
    copies = copy.deepcopy(codec), pickle.loads(pickle.dumps(codec))
    codec.decoder.double()  # its activations in other memory
    assert torch.equal(codec.decoder(latent), expected)
    del codec
    assert all(torch.equal(each.decoder(latent), expected) for each in copies)


@needs_compiled_code
@pytest.mark.parametrize("ratios, frames, samples", [((1, 1), 1, 0), ((1, 3), 1, 0), ((1, 1), 3, 1), ((1, 3), 2, 2)])
def test_strides_that_drop_samples_may_leave_none(ratios, frames, samples):
    config = replace(random_codec(random.Random(0)).config, upsampling_ratios=ratios, downsampling_ratios=ratios[::-1])
    codes = torch.zeros(frames, config.n_codebooks, dtype=torch.int64)
    assert Codec.from_config(config).decode(codes).shape == (samples,)


@needs_compiled_code
@pytest.mark.parametrize("threads", [1, 2])
def test_a_frame_has_the_same_latent_in_any_window(threads):
    codec = random_codec(random.Random(5))
    codes = torch.randint(0, codec.codebook_size, (40, codec.num_codebooks))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        whole = codec.quantizer.decode(codes)
        for length in range(1, 40):
            assert torch.equal(codec.quantizer.decode(codes[:length]), whole[..., :length])
    finally:
        torch.set_num_threads(before)
