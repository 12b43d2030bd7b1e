"""Chunk sizes, windows of frames and their order, and which frames are complete."""

import random
from itertools import islice

import pytest

from dia_engine.codec.receptive_field import ReceptiveField
from dia_engine.kernels.advance import RUNNING
from dia_engine.runtime.chunking import ChunkSizes, complete_frames, full_windows, window_lengths
from tests.sound import windows_of


def test_chunks_double_up_to_the_steady_size():
    around = ReceptiveField(10, 10)
    found = list(islice(full_windows(ChunkSizes(48, 8), around), 6))
    assert [window.last - window.first for window in found] == [8, 16, 32, 48, 48, 48]
    assert [(window.start, window.stop) for window in found[:4]] == [(0, 18), (0, 34), (14, 66), (46, 114)]
    assert window_lengths(ChunkSizes(48, 8), around) == {18, 34, 52, 68}
    assert window_lengths(ChunkSizes(5, 5), ReceptiveField(0, 0)) == {5}
    assert window_lengths(ChunkSizes(1), ReceptiveField(2, 1)) == {2, 3, 4}


def test_windows_cover_every_frame_once():
    chance = random.Random(0)
    for _ in range(300):
        steady, around = chance.randint(1, 60), ReceptiveField(chance.randint(0, 12), chance.randint(0, 12))
        sizes = ChunkSizes(steady, chance.randint(1, steady))
        total = chance.randint(0, 150)
        arrivals = [*sorted(chance.randint(0, total) for _ in range(chance.randint(0, 30))), total]
        found, given = windows_of(sizes, around, arrivals), 0
        for window in found:
            assert window.first == given < window.last and window.last - window.first <= steady
            assert window.start == max(0, window.first - around.before)
            assert window.stop == min(total, window.last + around.after)
            assert window.ends == (window.last == total)
            given = window.last
        assert given == total


def test_complete_frames():
    params = {"prompt": 5, "max_delay": 15}
    assert complete_frames(5, RUNNING, 0, **params) == (0, False)
    assert complete_frames(5 + 15, RUNNING, 0, **params) == (0, False)
    assert complete_frames(5 + 16, RUNNING, 0, **params) == (1, False), "frame 0 stands in row P + 1 + max delay"
    assert complete_frames(60, RUNNING, 0, **params) == (40, False)
    assert complete_frames(48, 14, 47, **params) == (28, False), "the end has come, of what is left 13 are open"
    assert complete_frames(61, 1, 47, **params) == (41, False)
    assert complete_frames(61, 0, 47, **params) == (41, True)
    assert complete_frames(6, 0, 6, **params) == (0, True), "it ended at once"
    assert complete_frames(9, 0, 10, prompt=0, max_delay=0) == (9, True)


@pytest.mark.parametrize("values", [(0,), (4, 5), (48, 0), (None, -1)])
def test_chunk_sizes_out_of_range(values):
    with pytest.raises(ValueError, match="chunk_frames must be at (least 1|most chunk_frames, 4), got"):
        ChunkSizes(*values)


def test_default_chunk_sizes_follow_the_reach():
    assert ChunkSizes().with_defaults(ReceptiveField(10, 10)) == ChunkSizes(48, 8)
    assert ChunkSizes().with_defaults(ReceptiveField(15, 15)) == ChunkSizes(60, 8), "a window of 90 frames for 60"
    assert ChunkSizes(4).with_defaults(ReceptiveField(10, 10)) == ChunkSizes(4, 4)
    assert ChunkSizes(None, 70).with_defaults(ReceptiveField(1, 1)) == ChunkSizes(70, 70)


@pytest.mark.parametrize("frames", [0, 3, 10, 15, 40])
def test_steady_windows_decode_less_than_1_6_times_the_whole(frames):
    window = next(islice(full_windows(ChunkSizes(), ReceptiveField(frames, frames)), 9, None))
    assert (window.stop - window.start) / (window.last - window.first) < 1.6
