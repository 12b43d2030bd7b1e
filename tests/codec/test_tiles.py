"""A part of a window's sound, computed in tiles, against the whole decoder."""

import random

import pytest
import torch
from torch import nn

from dia_engine.codec import tiles
from dia_engine.codec.network import Decoder
from dia_engine.codec.receptive_field import receptive_field
from dia_engine.codec.tiles import TiledDecoder, finished
from tests.sound import random_codec, small_codec, tolerance


def part_of(decoder, latent: torch.Tensor, first: int, last: int | None) -> torch.Tensor:
    return finished(TiledDecoder(decoder).pieces(latent, first, last))


@pytest.mark.parametrize("tile", [7, 64, 8192])
@pytest.mark.parametrize("seed", range(20))
def test_any_part_in_tiles_is_that_part_of_the_whole(monkeypatch, seed, tile):
    """Frames far from the cut ends of the window: what is inside is that of the whole, ends of the sound included."""
    monkeypatch.setattr(tiles, "TILE_SAMPLES", tile)
    chance = random.Random(seed)
    codec = random_codec(chance)
    latent = torch.randn(1, codec.config.hidden_size, chance.choice([len(codec.config.upsampling_ratios) + 1, 9, 40]))
    whole = codec.decoder(latent)[0, 0]
    first = chance.randrange(len(whole))
    for last in (chance.randint(first, len(whole)), None):
        found = part_of(codec.decoder, latent, first, last)[0, 0]
        assert found.shape == whole[first:last].shape
        assert torch.allclose(found, whole[first:last], rtol=0, atol=tolerance(codec))


@pytest.fixture
def watched(monkeypatch):
    """Samples that the last layer has made, a number for each tile; computed by torch, whose layers can be watched."""
    monkeypatch.setattr(Decoder, "pack", lambda self: None)
    codec, numbers = small_codec(), []
    last = [layer for layer in codec.decoder if isinstance(layer, nn.Conv1d)][-1]
    last.register_forward_hook(lambda module, arguments, output: numbers.append(output.shape[-1]))
    return codec, numbers


def test_layers_compute_little_more_than_what_is_wanted(watched):
    """Otherwise the first window of a stream would cost as much as all of its frames."""
    codec, made = watched
    after = receptive_field(codec.decoder).after
    latent = torch.randn(1, codec.config.hidden_size, 8 + after)
    wanted = 8 * codec.hop_length
    assert part_of(codec.decoder, latent, 0, wanted).shape[-1] == wanted
    assert wanted <= sum(made) < wanted + 100, f"of {(8 + after) * codec.hop_length}"


def test_no_tile_is_longer_than_it_may_be(watched):
    codec, made = watched
    part_of(codec.decoder, torch.randn(1, codec.config.hidden_size, 100), 0, None)
    assert sum(made) >= 100 * codec.hop_length and max(made) < tiles.TILE_SAMPLES + 100


def test_samples_behind_the_end_are_none():
    codec = small_codec()
    latent = torch.randn(1, codec.config.hidden_size, 5)
    end = 5 * codec.hop_length
    assert part_of(codec.decoder, latent, end, end + 10).shape == (1, 1, 0)
    assert part_of(codec.decoder, latent, end + 5, None).shape == (1, 1, 0)
