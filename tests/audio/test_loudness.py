"""Loudness against the sounds of which BS.1770 itself says what is measured."""

import logging

import numpy as np
import pytest

pytest.importorskip("pyloudnorm", reason='needs pyloudnorm: pip install -e ".[loudness]"')

from dia_engine.audio.loudness import at_loudness, loudness, true_peak

RATE = 44100


def sine(frequency: float, seconds: float, amplitude: float = 1.0, phase: float = 0.0, rate: int = RATE) -> np.ndarray:
    at = np.arange(round(seconds * rate)) / rate
    return (amplitude * np.sin(2 * np.pi * frequency * at + phase)).astype(np.float32)


@pytest.mark.parametrize("rate", [16000, 44100])
def test_a_full_scale_sine_is_at_minus_3(rate):
    assert loudness(sine(997, 3, rate=rate), rate) == pytest.approx(-3.01, abs=0.1)


def test_silence_is_not_measured_and_not_counted():
    sound = sine(997, 3, 0.1)
    assert loudness(np.concatenate([sound, np.zeros(10 * RATE, np.float32)]), RATE) == pytest.approx(-23.0, abs=0.3)
    assert loudness(np.zeros(RATE, np.float32), RATE) == -np.inf == loudness(sound[: RATE // 3], RATE)


def test_peaks_between_samples():
    between = sine(RATE / 4, 0.5, phase=np.pi / 4)
    assert np.abs(between).max() == pytest.approx(0.7071, abs=1e-3)
    assert true_peak(between, RATE) == pytest.approx(1.0, abs=0.05)
    late = np.zeros(3 * 2**18 + 5, np.float32)
    late[-RATE:] = sine(RATE / 4, 1.0, 0.5, phase=np.pi / 4)
    assert true_peak(late, RATE) == pytest.approx(0.5, abs=0.03)


def test_the_gain_that_is_asked_for(caplog):
    for amplitude, target in ((0.01, -20), (0.5, -31.5)):
        made = at_loudness(sine(997, 2, amplitude), target, RATE)
        assert loudness(made, RATE) == pytest.approx(target, abs=0.01) and made.dtype == np.float32
    assert not caplog.records


def test_peaks_are_never_clipped(caplog):
    quiet = sine(997, 3, 0.05)
    quiet[RATE] = 0.5
    made = at_loudness(quiet, -10, RATE, "item 2: ")
    assert true_peak(made, RATE) == pytest.approx(10 ** (-1 / 20), abs=1e-3) and np.abs(made).max() < 1
    (record,) = caplog.records
    wanted = (
        f"item 2: the sound is at {loudness(made, RATE):.1f} LUFS instead of -10.0: louder, its peaks would be over -1"
    )
    assert record.levelno == logging.WARNING and record.getMessage().startswith(wanted)


@pytest.mark.parametrize("sound", [np.zeros(RATE, np.float32), sine(997, 0.3), sine(997, 1, 1e-6)])
def test_what_cannot_be_measured_stays_as_it_is(sound, caplog):
    assert at_loudness(sound, -16, RATE) is sound
    assert "too short or too quiet for its loudness to be measured" in caplog.text
    assert len(at_loudness(sound[:0], -16, RATE)) == 0 and len(caplog.records) == 1
