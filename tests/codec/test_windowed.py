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


@pytest.fixture
def captured(monkeypatch) -> list[int]:
    """The lengths of windows for which `SoundWindows.prepare` has captured a graph."""
    lengths = []
    monkeypatch.setattr(windowed, "_Graph", lambda codec, length, pool: lengths.append(length))
    monkeypatch.setattr(windowed, "GraphPool", lambda device, **settings: settings)
    return lengths


def windows_on_gpu() -> SoundWindows:
    windows = SoundWindows(small_codec())
    windows._stream = FakeStream(GPU)
    return windows


def test_graphs_are_for_windows_of_few_lengths_that_are_not_long(captured):
    windows = windows_on_gpu()
    windows.prepare([18, 34, 68, windowed.LONGEST_GRAPH, windowed.LONGEST_GRAPH + 1, 10**9])
    assert captured == [windowed.LONGEST_GRAPH, 68, 34, 18]
    windows.prepare([18, 34, 35])
    assert captured[4:] == [35]
    for length in range(1, 200):
        windows.prepare([length])
    assert len(captured) == windowed.MOST_GRAPHS and {18, 34, 35, 68} <= set(windows._graphs), "the first are kept"


def test_without_memory_for_a_graph_windows_go_without(captured, monkeypatch, caplog):
    windows, capture = windows_on_gpu(), windowed._Graph

    tried = []

    def refuse(codec, length, pool):
        if length > 20:
            tried.append(length)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return capture(codec, length, pool)

    monkeypatch.setattr(windowed, "_Graph", refuse)
    windows.prepare([18, 34])
    assert captured == [18] and "no memory for a graph of windows of 34 frames" in caplog.text
    for _ in range(3):  # the next streams: it is not tried for each, and told once
        windows.prepare([18, 34])
    monkeypatch.setattr("dia_engine.devices.refusal.SECONDS_TO_RETRY", 0.0)
    windows._refusal._retry_at = 1e-9
    windows.prepare([18, 34])
    assert tried == [34, 34] and len(caplog.records) == 1

    def fail(codec, length, pool):
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    monkeypatch.setattr(windowed, "_Graph", fail)
    with pytest.raises(RuntimeError, match="not permitted"):
        windows.prepare([34])


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
    with pytest.raises(TypeError, match="receptive field of a LSTM layer is not known"):
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
