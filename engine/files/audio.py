"""Sound files and sample rates: read, resample, write. A waveform is float32, mono, one dimension, in [-1, 1]."""

import io
import logging
import numbers
import os
import secrets
import stat
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch

logger = logging.getLogger(__name__)

# extension -> soundfile's (format, subtype)
FORMATS = {
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
}
# libsndfile lets some encoders run into undefined behaviour above this rate (Vorbis: a crash of the process).
MAX_SAMPLE_RATE = 192_000
# Vorbis keeps one written block on the C stack: a minute and a half at once ends the process.
BLOCK_SAMPLES = 65_536


def read_audio(path: str | Path) -> tuple[np.ndarray, int]:
    """Read a sound file (wav, flac, mp3, ogg and whatever else libsndfile knows) as mono.

    Returns:
        waveform [samples] float32, the mean of the channels, and its sample rate in Hz.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a folder, not a sound file, damaged, without samples, or with NaN or infinite samples.
        OSError: the file cannot be opened or read.
    """
    if not str(path):
        raise ValueError("the name of the sound file is empty")
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no sound file at {path}")
    if not path.is_file():
        raise ValueError(f"{path} is not a sound file but {'a folder' if path.is_dir() else 'something special'}")
    try:
        with open(path, "rb") as file:
            channels, sample_rate = soundfile.read(file, dtype="float32", always_2d=True)  # [samples, channels]
    except soundfile.SoundFileError as error:
        reason = getattr(error, "error_string", str(error))
        raise ValueError(f"{path} cannot be read as sound: {reason}") from None
    try:
        return as_waveform(channels.mean(axis=1)), sample_rate
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


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


def write_audio(path: str | Path, waveform: np.ndarray | torch.Tensor, sample_rate: int) -> None:
    """Write a sound file; the extension (wav, flac, ogg, mp3) says which. wav and flac hold 16-bit integers.

    The file is complete or not there: it is made under another name in the same folder and then moved, so a failure
    or an interruption leaves an older file of this name as it was. Samples beyond [-1, 1] are clipped with a warning.

    Args:
        path: where to; its folder must exist.
        waveform: [samples] floating point, mono.
        sample_rate: Hz.

    Raises:
        FileNotFoundError, PermissionError, ValueError: see `check_writable`.
        TypeError, ValueError: not a waveform, or the format cannot hold it (mp3 knows nine sample rates).
        OSError: the disk is full or fails; the message names the path.
    """
    check_writable(path)
    check_sample_rate(sample_rate, "sample_rate")
    waveform = as_waveform(waveform)
    peak = float(np.abs(waveform).max())
    if peak > 1.0:
        logger.warning("%s: samples beyond [-1, 1] (peak %.3f) are clipped", path, peak)
        waveform = waveform.clip(-1.0, 1.0)
    try:
        # In memory first, because libsndfile reports a full disk late or not at all.
        encoded = _encode(waveform, sample_rate, *FORMATS[Path(path).suffix.lower()])
    except soundfile.SoundFileError as error:
        reason = getattr(error, "error_string", str(error))
        raise ValueError(f"{path}: cannot write {len(waveform)} samples at {sample_rate} Hz: {reason}") from None
    try:
        _write_whole(Path(os.path.realpath(path)), encoded)
    except OSError as error:
        raise OSError(error.errno, f"could not write {path}: {error.strerror or error}") from None


def check_writable(path: str | Path) -> None:
    """Check, before any work is done, that `write_audio` can put a file at `path`.

    Raises:
        ValueError: unknown extension.
        OSError, ValueError: as `check_replaceable`.
    """
    if not str(path):
        raise ValueError("the name of the file to write is empty")
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        known = ", ".join(FORMATS)
        raise ValueError(f"{path}: cannot tell the sound format from extension {path.suffix!r}; known are {known}")
    check_replaceable(path)


def check_replaceable(path: Path) -> None:
    """Check that a file can be put at `path`.

    Raises:
        FileNotFoundError: the folder does not exist.
        PermissionError: the folder or the file that is there may not be written.
        ValueError: the path is a folder, or its parent is not one.
        OSError: the operating system does not accept the path (too long, for instance).
    """
    target = Path(os.path.realpath(path))  # a link is followed, so that it stays a link
    parent_mode, mode = _mode(target.parent), _mode(target)
    if parent_mode is None:
        raise FileNotFoundError(f"{path}: folder {target.parent} does not exist; create it first")
    if not stat.S_ISDIR(parent_mode):
        raise ValueError(f"{path}: {target.parent} is not a folder")
    if mode is not None and not stat.S_ISREG(mode):
        kind = "is a folder" if stat.S_ISDIR(mode) else "is not an ordinary file"
        raise ValueError(f"{path} {kind}; name a file to write to")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise PermissionError(f"{path}: no permission to write in folder {target.parent}")
    if mode is not None and not os.access(target, os.W_OK):
        raise PermissionError(f"{path}: no permission to overwrite this file")


def as_waveform(waveform: np.ndarray | torch.Tensor) -> np.ndarray:
    """Check a waveform and return it as float32 numpy on the host, shape [samples].

    Raises:
        TypeError: not an array or tensor of floating point numbers (integers have no agreed full scale).
        ValueError: not one-dimensional, empty, or with NaN or infinite samples.
    """
    if isinstance(waveform, torch.Tensor):
        waveform = waveform.detach().cpu()
        waveform = (waveform.float() if waveform.is_floating_point() else waveform).numpy()
    if not isinstance(waveform, np.ndarray):
        raise TypeError(f"waveform must be a numpy array or torch tensor, got {type(waveform).__name__}")
    if not np.issubdtype(waveform.dtype, np.floating):
        raise TypeError(f"waveform must be floating point in [-1, 1], got {waveform.dtype}")
    if waveform.ndim != 1:
        raise ValueError(f"waveform must be mono of shape [samples], got shape {list(waveform.shape)}")
    if not waveform.size:
        raise ValueError("waveform is empty")
    with np.errstate(over="ignore"):  # a value beyond float32 becomes inf and is reported as such
        waveform = np.ascontiguousarray(waveform, dtype=np.float32)
    finite = np.isfinite(waveform)
    if not finite.all():
        first = int(finite.argmin())
        raise ValueError(f"waveform must be finite, sample {first} is {waveform[first]}")
    return waveform


def check_sample_rate(sample_rate: int, name: str = "sample_rate") -> None:
    """Check a sample rate in Hz.

    Raises:
        TypeError: not an integer.
        ValueError: not in 1..192000.
    """
    if isinstance(sample_rate, bool) or not isinstance(sample_rate, numbers.Integral):
        raise TypeError(f"{name} must be an integer in Hz, got {sample_rate!r}")
    if not 0 < sample_rate <= MAX_SAMPLE_RATE:
        raise ValueError(f"{name} must be in 1..{MAX_SAMPLE_RATE} Hz, got {sample_rate}")


def _mode(path: Path) -> int | None:
    """The stat mode of a path, None when there is nothing."""
    try:
        return os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise OSError(error.errno, f"cannot use path {path}: {error.strerror}") from None


def _encode(waveform: np.ndarray, sample_rate: int, file_format: str, subtype: str) -> memoryview:
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", int(sample_rate), 1, subtype=subtype, format=file_format) as file:
        for start in range(0, len(waveform), BLOCK_SAMPLES):
            file.write(waveform[start : start + BLOCK_SAMPLES])
    buffer.seek(0)
    written = soundfile.info(buffer).frames
    if written != len(waveform):  # an exception in one of libsndfile's callbacks is lost, and the samples with it
        raise soundfile.SoundFileError(f"the encoder wrote {written} samples only")
    return buffer.getbuffer()


def _write_whole(target: Path, content: memoryview) -> None:
    """Put `content` at `target` whole, or leave everything as it was."""
    temporary = target.with_name(f".{secrets.token_hex(8)}.partial")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            temporary.chmod(stat.S_IMODE(target.stat().st_mode))
        os.replace(temporary, target)
    except BaseException:  # an interruption too must not leave a half-written file behind
        temporary.unlink(missing_ok=True)
        raise
