"""Waveforms: checked, resampled. A waveform is float32, mono, one dimension, in [-1, 1]."""

import logging
import numbers

import numpy as np
import soxr
import torch

from ..messages import shown

logger = logging.getLogger(__name__)

# libsndfile lets some encoders run into undefined behavior above this rate (Vorbis: a crash of the process).
MAX_SAMPLE_RATE = 192_000
MAX_PEAK = 4.0  # 12 dB over full scale: what resampling and floating-point mixes reach, integers as floats do not
CANCELLED = 0.1  # 20 dB


def as_waveform(waveform: np.ndarray | torch.Tensor) -> np.ndarray:
    """Check a waveform and return it as float32 numpy on the host, shape [samples].

    Raises:
        TypeError: not a dense array or tensor of floating point numbers (integers have no agreed full scale).
        ValueError: not one-dimensional, empty, or with NaN or infinite samples.
    """
    array = as_array(waveform, "waveform")
    if not np.issubdtype(array.dtype, np.floating):
        raise TypeError(f"waveform must be floating point in [-1, 1], got {array.dtype}")
    if array.ndim != 1:
        raise ValueError(f"waveform must be mono of shape [samples], got shape {list(array.shape)}")
    if not array.size:
        raise ValueError("waveform is empty")
    with np.errstate(over="ignore"):  # a value beyond float32 becomes inf and is reported as such
        array = np.ascontiguousarray(array, dtype=np.float32)
    finite = np.isfinite(array)
    if not finite.all():
        first = int(finite.argmin())
        raise ValueError(f"waveform must be finite, sample {first} is {array[first]}")
    return array


def as_array(values: np.ndarray | torch.Tensor, name: str) -> np.ndarray:
    """An array, or a tensor of any device and floating or integer dtype, as numpy; `name` is what an error calls it.

    Raises:
        TypeError: anything else, tensors without dense storage included (meta, sparse, quantized, nested).
    """
    if isinstance(values, np.ma.MaskedArray):
        raise TypeError(f"{name} must be a plain array, got a masked one")
    if isinstance(values, np.ndarray):
        return values
    if not isinstance(values, torch.Tensor):
        raise TypeError(f"{name} must be a numpy array or torch tensor, got {type(values).__name__}")
    kinds = {
        "nested": values.is_nested,
        "meta": values.is_meta,
        "quantized": values.is_quantized,
        "sparse": values.layout is not torch.strided,
    }
    for kind, holds in kinds.items():
        if holds:
            raise TypeError(f"{name} must be a dense tensor, got a {kind} one")
    values = values.detach().cpu().resolve_conj().resolve_neg()
    if values.is_floating_point() and values.dtype not in (torch.float16, torch.float32, torch.float64):
        values = values.float()  # bfloat16, or one of 8 bits, which numpy lacks
    try:
        return values.numpy()
    except TypeError:
        raise TypeError(f"{name} must be numbers, got {values.dtype}") from None


def check_peak(waveform: np.ndarray) -> None:
    """Check that a waveform [samples] is in [-1, 1], give or take what resampling and mixing add.

    Raises:
        ValueError: a peak that only integers converted to floats have.
    """
    peak = float(np.abs(waveform).max())
    if peak > MAX_PEAK:
        raise ValueError(
            f"waveform must be in [-1, 1], its peak is {peak:g}; divide integer samples by their full scale"
        )


def check_sample_rate(sample_rate: int, name: str = "sample_rate") -> None:
    """Check a sample rate in Hz.

    Raises:
        TypeError: not an integer.
        ValueError: not in 1..192000.
    """
    if isinstance(sample_rate, bool) or not isinstance(sample_rate, numbers.Integral):
        raise TypeError(f"{name} must be an integer in Hz, got {shown(sample_rate)}")
    if not 0 < sample_rate <= MAX_SAMPLE_RATE:
        rate = sample_rate if abs(sample_rate) < 10**20 else "one of over 20 digits"  # Python prints no more than 4300
        raise ValueError(f"{name} must be in 1..{MAX_SAMPLE_RATE} Hz, got {rate}")


def warn_if_cancelled(mean: np.ndarray, energy: float, name: str) -> None:
    """Warn where the mean of the channels is much quieter than they are.

    Args:
        mean: [samples], of the channels.
        energy: sum over the samples of the channels' mean square.
        name: of the sound.
    """
    if float(np.square(mean, dtype=np.float64).sum()) < CANCELLED**2 * energy:
        logger.warning("%s: its channels cancel each other, their mean is almost silent; pass one channel", name)


def resample(waveform: np.ndarray | torch.Tensor, from_rate: int, to_rate: int) -> np.ndarray:
    """Change the sample rate (soxr, high quality).

    Args:
        waveform: [samples] floating point.
        from_rate, to_rate: Hz.

    Returns:
        waveform [samples x to_rate / from_rate, rounded] float32.

    Raises:
        TypeError, ValueError: not a waveform, not a sample rate, or too short to leave one sample.
    """
    check_sample_rate(from_rate, "from_rate")
    check_sample_rate(to_rate, "to_rate")
    waveform = as_waveform(waveform)
    if from_rate == to_rate:
        return waveform
    resampled = soxr.resample(waveform, from_rate, to_rate)
    if not len(resampled):
        raise ValueError(f"waveform of {len(waveform)} samples is too short to go from {from_rate} to {to_rate} Hz")
    return resampled
