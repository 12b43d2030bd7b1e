"""Sound at a loudness that is asked for, by one gain: measured in LUFS (ITU-R BS.1770-4) by pyloudnorm.

The gain is lowered where peaks would rise over MOST_PEAK, which 16-bit samples would clip, or a player between them.
Peaks are true peaks: those of the sound at four times its rate.
"""

import logging
import math

import numpy as np
import soxr

from ..packages import require

logger = logging.getLogger(__name__)

LEAST_SECONDS = 0.4  # a block of BS.1770
MOST_PEAK = -1.0  # dBTP, as EBU R 128 has it
OVERSAMPLING = 4
BLOCK_SAMPLES = 2**18


def require_meter() -> None:
    """Raises RuntimeError: pyloudnorm is not installed."""
    require("loudness", "loudness", "pyloudnorm")


def at_loudness(sound: np.ndarray, target: float, sample_rate: int, name: str = "") -> np.ndarray:
    """A sound [samples] float32 at `target` LUFS.

    Where the target cannot be had, a warning says what is given instead: a quieter sound, whose peaks are at MOST_PEAK;
    or one that is too short or too quiet to be measured, as it was.

    Args:
        name: of the sound, which begins a warning.
    """
    if not len(sound):
        return sound
    measured = loudness(sound, sample_rate)
    if not math.isfinite(measured):
        logger.warning(
            "%sthe sound is too short or too quiet for its loudness to be measured; it is left as it is", name
        )
        return sound
    gain = target - measured
    most = MOST_PEAK - 20 * math.log10(true_peak(sound, sample_rate))
    if gain > most:
        gain = most
        logger.warning(
            "%sthe sound is at %.1f LUFS instead of %.1f: louder, its peaks would be over %g dBTP",
            name, measured + gain, target, MOST_PEAK,
        )  # fmt: skip
    return sound * np.float32(10 ** (gain / 20))


def loudness(sound: np.ndarray, sample_rate: int) -> float:
    """Integrated loudness of a sound [samples] in LUFS; -inf if it is shorter than a block, or silent."""
    import pyloudnorm

    if len(sound) < LEAST_SECONDS * sample_rate:
        return -math.inf
    with np.errstate(divide="ignore", invalid="ignore"):  # of silence
        measured = float(pyloudnorm.Meter(sample_rate).integrated_loudness(sound))
    return measured if math.isfinite(measured) else -math.inf


def true_peak(sound: np.ndarray, sample_rate: int) -> float:
    """The largest magnitude of a sound [samples], also between its samples."""
    oversampled = soxr.ResampleStream(sample_rate, OVERSAMPLING * sample_rate, 1)
    peak = float(np.abs(sound).max())
    for start in range(0, len(sound), BLOCK_SAMPLES):
        block = sound[start : start + BLOCK_SAMPLES]
        more = oversampled.resample_chunk(block, last=start + BLOCK_SAMPLES >= len(sound))
        peak = max(peak, float(np.abs(more).max(initial=0.0)))
    return peak
