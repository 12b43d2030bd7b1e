"""Speech at another speed: length, pitch, and the same samples for any chunks."""

import random

import numpy as np
import pytest

from dia_engine.audio.stretch import TimeStretch

RATE = 16000


def voice(seconds: float, pitch: float = 120.0) -> np.ndarray:
    """A buzz with formants that comes and goes."""
    time = np.arange(int(seconds * RATE)) / RATE
    sound = sum(np.sin(2 * np.pi * pitch * harmonic * time) / harmonic for harmonic in range(1, 12))
    return (0.2 * sound * (0.6 + 0.4 * np.sin(2 * np.pi * 3 * time))).astype(np.float32)


def stretched(sound: np.ndarray, speed: float, sizes) -> np.ndarray:
    stretch, parts, at = TimeStretch(speed, RATE), [], 0
    while at < len(sound):
        size = next(sizes)
        parts.append(stretch.push(sound[at : at + size]))
        at += size
    return np.concatenate([*parts, stretch.finish()])


def pitch_of(sound: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound)), 1 << 18))
    return float(np.argmax(spectrum) * RATE / (1 << 18))


@pytest.mark.parametrize("speed", [0.25, 0.75, 0.8, 1.25, 1.5, 4.0])
def test_length_and_pitch(speed):
    sound = voice(3.0)
    output = stretched(sound, speed, iter(lambda: 4096, None))
    assert len(output) == round(len(sound) / speed) and output.dtype == np.float32
    assert abs(pitch_of(output) / pitch_of(sound) - 1) < 0.02
    assert 0.7 < np.sqrt(np.mean(output**2)) / np.sqrt(np.mean(sound**2)) < 1.2


@pytest.mark.parametrize("speed", [0.25, 1.5, 2.5, 2.6, 3.0, 4.0])
def test_the_length_is_right_for_any_length(speed):
    sound = voice(2.0)
    for length in range(0, 16000, 331):
        output = stretched(sound[:length], speed, iter(lambda: 1000, None))
        assert len(output) == round(length / speed)


@pytest.mark.parametrize("speed", [0.5, 0.8, 1.3, 3.5])
def test_any_chunks_give_the_same_samples(speed):
    sound, chance = (
        voice(1.5) + 0.01 * np.random.default_rng(1).standard_normal(24000).astype(np.float32),
        random.Random(1),
    )
    whole = stretched(sound, speed, iter(lambda: len(sound), None))
    for sizes in (iter(lambda: 37, None), iter(lambda: chance.choice([1, 100, 5000]), None)):
        assert np.array_equal(stretched(sound, speed, sizes), whole)


def test_latency_is_at_most_60_ms_of_input():
    sound = voice(2.0)
    for speed in (0.25, 1.5, 4.0):
        stretch, given = TimeStretch(speed, RATE), 0
        for start in range(0, 32000, 160):
            given += len(stretch.push(sound[start : start + 160]))
            assert (start + 160) / RATE - given * speed / RATE < 0.060 + 0.020 * speed


@pytest.mark.parametrize("samples", [0, 1, 100, 700])
def test_short_sounds(samples):
    output = stretched(voice(1.0)[:samples], 0.5, iter(lambda: 50, None))
    assert len(output) == 2 * samples and np.isfinite(output).all()
