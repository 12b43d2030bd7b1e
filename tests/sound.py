"""Small codecs, and how sound is compared."""

import math
import random

import numpy as np

from dia_engine.codec import Codec, CodecConfig
from dia_engine.codec.receptive_field import ReceptiveField
from dia_engine.runtime.chunking import ChunkSchedule, ChunkSizes

TOLERANCE = 1e-5


def small_codec(seed: int = 0, **sizes) -> Codec:
    config = CodecConfig(**{"encoder_hidden_size": 4, "decoder_hidden_size": 32, "codebook_dim": 4, **sizes})
    return Codec.from_config(config, seed)


def random_codec(chance: random.Random) -> Codec:
    ratios = (99,)
    while math.prod(ratios) > 90:  # quick
        ratios = tuple(chance.choice([1, 2, 3, 4, 5, 7, 8]) for _ in range(chance.randint(1, 4)))
    return small_codec(
        chance.randrange(99),
        downsampling_ratios=ratios[::-1],
        upsampling_ratios=ratios,
        decoder_hidden_size=2 ** len(ratios) * chance.choice([1, 2, 3]),
        hidden_size=chance.choice([4, 7, 16]),
        n_codebooks=chance.randint(1, 9),
        codebook_size=chance.choice([8, 16, 1024]),
    )


def tolerance(codec: Codec) -> float:
    """By how much the sound of windows may differ from that of the whole: not at all in compiled code."""
    return 0.0 if codec.decoder.is_packed else TOLERANCE


def joined(pieces, like: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros((0, *like.shape[1:]), like.dtype), *pieces])


def difference(pieces, whole: np.ndarray) -> float:
    pieces = joined(pieces, whole)
    assert pieces.shape == whole.shape and pieces.dtype == whole.dtype
    return float(np.abs(pieces - whole).max(initial=0.0))


def windows_of(sizes: ChunkSizes, around: ReceptiveField, arrivals: list[int]):
    """The windows of a sound whose complete frames grow as in `arrivals`, the last of which is its end."""
    schedule, found = ChunkSchedule(sizes, around), []
    for index, frames in enumerate(arrivals):
        while window := schedule.next(frames, ended=index == len(arrivals) - 1):
            assert window.stop <= frames
            found.append(window)
    return found
