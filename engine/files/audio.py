"""Audio files: read and write. A waveform is float32, mono, one dimension, in [-1, 1]."""

import io
import logging
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import soundfile
import torch

from ..messages import shown
from .output import check_file_name, check_replaceable, write_whole
from .paths import user_path
from .wav_stream import pcm16
from .waveform import as_waveform, check_peak, check_sample_rate, warn_if_cancelled

logger = logging.getLogger(__name__)

# extension -> soundfile's (format, subtype)
FORMATS = {
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
}
BLOCK_VALUES = 2**20  # read at once, over all channels
LARGEST_HEADER = 512  # bytes of a file without samples
# libsndfile's log on a header's bytes of sound: in WAV, AIFF, 8SVX, AU, W64 and RF64.
TRUNCATED = re.compile(r"^ *(?:data|SSND|BODY|Data Size|riff|Riff size) *: (\d+) \(should be (\d+)\)", re.MULTILINE)
# And on the samples that AVR, MPC2K and MAT files count; libsndfile itself then goes by the file's length.
COUNTED = re.compile(r"\b(?:Frames|Cols) *: (\d+)$", re.MULTILINE)
NIST_COUNT, NIST_HEADER_BYTES = re.compile(rb"^sample_count -i (\d+)", re.MULTILINE), 1024
SEEMS_TRUNCATED = {"VOC": "Seems to be a truncated file", "WVE": "should be"}
UNKNOWN_BYTES = 0x7FFF0000  # what is written to a pipe counts this many or more
UNKNOWN_SAMPLES, SEEK_FAILED = 2**63 - 1, 39  # libsndfile's
MAX_OGG_PAGE, OGG_LAST_PAGE = 65_307, 4
# Vorbis keeps one written block on the C stack: a minute and a half at once ends the process.
BLOCK_SAMPLES = 65_536


def read_audio(path: str | Path, check_length: Callable[[int, int], None] | None = None) -> tuple[np.ndarray, int]:
    """Read an audio file (wav, flac, mp3, ogg and whatever else libsndfile knows) as mono.

    Memory is used for the samples that the file holds, whatever its header claims.

    Args:
        path: the file; a leading `~` is the home folder.
        check_length: called with the number of samples and the sample rate, before any is read if the header counts
            them, else as they are read; may raise ValueError.

    Returns:
        waveform [samples] float32, the mean of the channels, and its sample rate in Hz.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a folder, not an audio file, truncated or otherwise damaged, without samples, with NaN or infinite
            samples, not in [-1, 1], or of a sample rate outside 1..192000 Hz. The message names the file.
        OSError: the file cannot be opened or read.
    """
    name = str(path)
    if not name:
        raise ValueError("the name of the sound file is empty")
    if "://" in name:
        raise ValueError(f"{name} is an address, not a sound file; download it first")
    path = user_path(path)
    if not path.exists():
        raise FileNotFoundError(f"no sound file at {path}")
    if not path.is_file():
        raise ValueError(f"{path} is not a sound file but {'a folder' if path.is_dir() else 'something special'}")
    # By descriptor, or soundfile goes by the file's extension: `.raw` is then a file without a header.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        with soundfile.SoundFile(descriptor) as file:
            waveform, sample_rate = _read_mono(file, str(path), check_length), file.samplerate
        _check_ogg_end(path)
        return waveform, sample_rate
    except soundfile.SoundFileError as error:
        raise ValueError(f"{path} cannot be read as sound: {_reason(error)}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _read_mono(file: soundfile.SoundFile, name: str, check_length: Callable[[int, int], None] | None) -> np.ndarray:
    check_sample_rate(file.samplerate, "the sample rate")
    if not file.frames and os.path.getsize(name) > LARGEST_HEADER:
        raise ValueError(
            f"the file counts no samples, though it has {os.path.getsize(name)} bytes: a recording that was cut off, "
            f"or whose header was never finished"
        )
    if check_length is not None and _counts_samples(file):
        check_length(file.frames, file.samplerate)
    means, energy, samples = [], 0.0, 0
    for channels in _blocks(file):
        means.append(channels.mean(axis=1))
        samples += len(channels)
        if check_length is not None and not _counts_samples(file):
            check_length(samples, file.samplerate)
        energy += float(np.square(channels, dtype=np.float64).mean(axis=1).sum())
    waveform = np.concatenate(means) if means else np.zeros(0, dtype=np.float32)
    _check_whole(file, name, samples)
    waveform = as_waveform(waveform)
    check_peak(waveform)
    warn_if_cancelled(waveform, energy, name)
    return waveform


def _counts_samples(file: soundfile.SoundFile) -> bool:
    """Whether the header does: that of a FLAC that was streamed need not."""
    return file.frames < UNKNOWN_SAMPLES


def _blocks(file: soundfile.SoundFile) -> Iterator[np.ndarray]:
    """The samples [n, channels] float32 of a file, in parts; each is overwritten by the next."""
    block = np.empty((max(1, BLOCK_VALUES // file.channels), file.channels), np.float32)
    while True:
        block.fill(np.nan)
        try:
            read = file.read(out=block)
        except soundfile.LibsndfileError as error:
            # The last block is read, and soundfile then fails to go behind it.
            if _counts_samples(file) or error.code != SEEK_FAILED:
                raise
            yield block[: np.count_nonzero(~np.isnan(block[:, 0]))]
            return
        if not len(read):
            return
        yield read


def _check_whole(file: soundfile.SoundFile, name: str, samples: int) -> None:
    """Raise ValueError for a file that ends before its header says or has a hole. Some formats (IRCAM, PAF, PVF, XI)
    count nothing, so that nothing can be told."""
    for promised, present in TRUNCATED.findall(file.extra_info):
        if int(present) < int(promised) < UNKNOWN_BYTES:
            raise ValueError(f"damaged: its header counts {promised} bytes of sound, only {present} are there")
    if "reports a hole" in file.extra_info:
        raise ValueError("damaged: a part is missing in the middle")
    # The count of an mp3 can be an estimate, right to a few of its frames of 1152 samples.
    tolerance = 4 * 1152 if file.format == "MP3" else 0
    promised_samples = max(file.frames if _counts_samples(file) else 0, _counted_samples(file, name))
    if samples + tolerance < promised_samples:
        raise ValueError(f"damaged: its header counts {promised_samples} samples, only {samples} can be read")
    if file.format in SEEMS_TRUNCATED and SEEMS_TRUNCATED[file.format] in file.extra_info:
        raise ValueError(f"damaged: it ends before its header says, after {samples} samples")


def _counted_samples(file: soundfile.SoundFile, name: str) -> int:
    """The samples of each channel that a header counts where libsndfile goes by the file's length; 0 if it is none of
    these formats."""
    if file.format == "NIST":
        with open(name, "rb") as header:
            counts = NIST_COUNT.findall(header.read(NIST_HEADER_BYTES))
    elif file.format in ("AVR", "MPC2K", "MAT4", "MAT5"):
        counts = COUNTED.findall(file.extra_info)
    else:
        counts = []
    return max((int(count) for count in counts if len(count) < 20), default=0)


def _check_ogg_end(path: Path) -> None:
    """Warn of an Ogg file whose last page is not marked as the last; nothing else says how long it should be."""
    with open(path, "rb") as file:
        if file.read(4) != b"OggS":
            return
        file.seek(-min(MAX_OGG_PAGE, path.stat().st_size), os.SEEK_END)
        tail = file.read()
    page = tail.rfind(b"OggS")
    if page < 0 or not tail[page + 5 : page + 6] or not tail[page + 5] & OGG_LAST_PAGE:
        logger.warning("%s has no last page: it may have been cut off", path)


def _reason(error: soundfile.SoundFileError) -> str:
    """libsndfile's words, but for those that are about a file's place: it has been opened."""
    reason = str(getattr(error, "error_string", error)).strip()
    return "damaged, or of an unknown format" if not reason or "does not exist" in reason else reason


def write_audio(path: str | Path, waveform: np.ndarray | torch.Tensor, sample_rate: int) -> None:
    """Write a sound file; the extension (wav, flac, ogg, mp3) says which. wav and flac hold 16-bit integers.

    The file is complete or not there: it is made under another name in the same folder and then moved, so a failure
    or an interruption leaves an older file of this name as it was. Samples beyond [-1, 1] are clipped with a warning.

    Args:
        path: where to, a leading `~` is the home folder; the file's folder must exist.
        waveform: [samples] floating point, mono.
        sample_rate: Hz.

    Raises:
        FileNotFoundError, PermissionError, ValueError: see `check_writable`.
        TypeError, ValueError: not a waveform, or the format cannot hold it (mp3 knows nine sample rates).
        OSError: the disk is full or fails; the message names the path.
    """
    path = check_writable(path)
    write_whole(path, encode_audio(path, waveform, sample_rate))


def encode_audio(path: Path, waveform: np.ndarray | torch.Tensor, sample_rate: int) -> bytes:
    """The content of the file that `write_audio` would write, for another process to write.

    Raises:
        TypeError, ValueError: not a waveform, or the format cannot hold it; the message names the path.
    """
    check_sample_rate(sample_rate, "sample_rate")
    waveform = as_waveform(waveform)
    peak = float(np.abs(waveform).max())
    if peak > 1.0:
        logger.warning("%s: samples beyond [-1, 1] (peak %.3f) are clipped", path, peak)
        waveform = waveform.clip(-1.0, 1.0)
    try:
        # In memory first, because libsndfile reports a full disk late or not at all.
        return _encode(waveform, sample_rate, *FORMATS[path.suffix.lower()])
    except soundfile.SoundFileError as error:
        reason = _reason(error)
        raise ValueError(f"{path}: cannot write {len(waveform)} samples at {sample_rate} Hz: {reason}") from None


def check_writable(path: str | Path) -> Path:
    """Check, before any work is done, that `write_audio` can put a file at `path`.

    Returns:
        the path, with a leading `~` replaced.

    Raises:
        ValueError: unknown extension.
        OSError, ValueError: as `check_replaceable`.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"the file to write must be named by a string or a path, got {shown(path)}")
    check_file_name(path)
    path = user_path(path)
    if path.suffix.lower() not in FORMATS:
        known = ", ".join(FORMATS)
        raise ValueError(f"{path}: cannot tell the sound format from extension {path.suffix!r}; known are {known}")
    check_replaceable(path)
    return path


def _encode(waveform: np.ndarray, sample_rate: int, file_format: str, subtype: str) -> bytes:
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", int(sample_rate), 1, subtype=subtype, format=file_format) as file:
        for start in range(0, len(waveform), BLOCK_SAMPLES):
            block = waveform[start : start + BLOCK_SAMPLES]
            # Of floats libsndfile makes the integers below, half a step too low on average.
            file.write(np.frombuffer(pcm16(block), "<i2") if subtype == "PCM_16" else block)
    buffer.seek(0)
    written = soundfile.info(buffer).frames
    if written != len(waveform):  # an exception in one of libsndfile's callbacks is lost, and the samples with it
        raise soundfile.SoundFileError(f"the encoder wrote {written} samples only")
    return buffer.getvalue()
