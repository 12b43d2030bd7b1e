"""The receptive field, windows that together are the whole, and what they wait for on a GPU, with fakes."""

import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dia_engine.codec import Codec, CodecConfig, windowed
from dia_engine.codec.network import Decoder
from dia_engine.codec.receptive_field import ReceptiveField, receptive_field
from dia_engine.codec.windowed import CodeWindows, HostCopy, SoundWindows, widened
from dia_engine.runtime.chunking import ChunkSizes
from tests.sound import difference, random_codec, small_codec, tolerance, windows_of

GPU = torch.device("cuda", 0)


class FakeStream:
    def __init__(self, device, priority=0):
        self.device, self.priority = device, priority


def test_windows_go_before_the_steps_in_the_queue(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    assert CodeWindows(GPU)._stream.priority < 0


def test_a_copy_to_the_host_is_ready_with_the_event_behind_it(monkeypatch):
    log = []
    event = SimpleNamespace(
        record=lambda: log.append("record"), query=lambda: "wait" in log, synchronize=lambda: log.append("wait")
    )
    pinned = SimpleNamespace(copy_=lambda source, non_blocking: log.append(("copy", source, non_blocking)))
    on_gpu = SimpleNamespace(is_cuda=True, shape=(3,), dtype=torch.float32)
    monkeypatch.setattr(windowed.torch, "empty", lambda shape, dtype, device, pin_memory: pin_memory and pinned)
    monkeypatch.setattr(torch.cuda, "Event", lambda: event)
    copy = HostCopy(on_gpu)
    assert log == [("copy", on_gpu, True), "record"] and not copy.ready()
    assert copy.wait() is pinned and copy.ready()


def test_reach_of_the_published_codec():
    assert receptive_field(Codec.from_config(replace(CodecConfig(), decoder_hidden_size=16)).decoder) == ReceptiveField(
        10, 10
    )


@pytest.mark.parametrize("seed", range(12))
def test_reach_is_what_the_sound_depends_on_and_no_more(seed, monkeypatch):
    monkeypatch.setattr(Decoder, "pack", lambda self: None)  # what is packed has no gradients
    codec = random_codec(random.Random(seed))
    found, hop = receptive_field(codec.decoder), codec.hop_length
    frames = found.before + found.after + 3
    latent = torch.randn(1, codec.config.hidden_size, frames, requires_grad=True)
    with torch.enable_grad():
        sound = codec.decoder(latent)[0, 0]
        middle = found.before + 1
        (gradient,) = torch.autograd.grad(sound[middle * hop : (middle + 1) * hop].square().sum(), latent)
    heard = gradient[0].abs().sum(dim=0).nonzero().flatten()
    assert heard[0] >= middle - found.before and heard[-1] <= middle + found.after, "or a window would be wrong"
    assert heard[0] <= middle - found.before + 1 and heard[-1] >= middle + found.after - 1, "nearly all of it counts"


def test_an_unknown_layer_is_refused():
    with pytest.raises(TypeError, match="how far a LSTM reaches"):
        receptive_field([nn.Conv1d(3, 3, 3), nn.LSTM(3, 3)])


@pytest.mark.parametrize("seed", range(30))
def test_any_windows_of_any_codec_are_the_whole(seed):
    chance = random.Random(seed)
    codec = random_codec(chance)
    windows = SoundWindows(codec)
    steady = chance.choice([1, 2, 5, 16, 40])
    total = chance.choice([len(codec.config.upsampling_ratios) + 1, 17, 50, chance.randint(5, 90)])
    codes = torch.randint(codec.codebook_size, (total, codec.num_codebooks))
    sizes = ChunkSizes(steady, chance.randint(1, steady))
    pieces = decoded(windows, codes, sizes, lambda start: chance.randint(0, start))  # more context is no harm
    assert difference(pieces, codec.decode(codes).numpy()) <= tolerance(codec)


def decoded(windows: SoundWindows, codes: torch.Tensor, sizes: ChunkSizes, earlier=lambda start: start):
    """The sound of codes, window by window as they become complete."""
    pieces = []
    for window in windows_of(sizes, windows.receptive_field, [*range(len(codes)), len(codes)]):
        start = earlier(window.start)
        last = None if window.ends else window.last - start
        pieces.append(windows.decode(codes[start : window.stop], window.first - start, last).wait().cpu().numpy())
    return pieces


@pytest.mark.parametrize("chunk_frames", [1, 3, 8])
def test_windows_of_the_recorded_codec(chunk_frames):
    codec = Codec.load(Path(__file__).parents[1] / "data" / "dac", device="cpu")
    codes = torch.randint(codec.codebook_size, (40, codec.num_codebooks))
    pieces = decoded(SoundWindows(codec), codes, ChunkSizes(chunk_frames))
    assert difference(pieces, codec.decode(codes).numpy()) <= tolerance(codec)


def test_a_last_window_is_widened_to_a_captured_length():
    assert widened(30, 40, {18, 34, 52}) == 22 and widened(30, 40, {10, 34}) == 30
    assert widened(0, 40, {18, 34, 52}) == 0, "none fits: longer than what there is, or shorter than the window"
    assert widened(5, 40, {52, 38}) == 2 and widened(5, 40, ()) == 5


@pytest.mark.parametrize(("dtype", "limit"), [(torch.bfloat16, 0.03), (torch.float16, 0.004)])
def test_half_precision_of_the_codec_is_near_float32(dtype, limit):
    """Error against float32, as a share of the sound's size; README states that of the full-size codec."""
    sizes = {"decoder_hidden_size": 64, "n_codebooks": 3, "codebook_size": 64}
    exact, half = small_codec(**sizes), Codec.from_config(small_codec(**sizes).config, dtype=dtype)
    codes = torch.randint(64, (40, 3))
    whole = exact.decode(codes)
    assert (half.decode(codes) - whole).std() < limit * whole.std()
