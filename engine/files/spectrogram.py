"""A picture of sound: which frequencies are loud when, as a PNG made with numpy alone."""

import struct
import zlib
from pathlib import Path

import numpy as np

from .output import check_file_name, check_replaceable, write_whole
from .paths import user_path

HEIGHT, COLUMN_SECONDS = 256, 0.005
COLUMNS = 1000  # that are computed at a time
DECIBELS = 70.0  # from the loudest down to black
TOP = 8000.0  # Hz, or half the sample rate where that is less
# From silent to loud: black, violet, red, yellow, white.
COLORS = np.array([(0, 0, 4), (81, 18, 124), (183, 55, 121), (252, 137, 97), (252, 253, 191)], dtype=np.float64)


def check_spectrogram_path(path: str | Path | None) -> None:
    """Raises:
    ValueError: not the name of a PNG.
    OSError, ValueError: as `output.check_replaceable`.
    """
    if path is None:
        return
    check_file_name(path)
    if Path(path).suffix.lower() != ".png":
        raise ValueError(f"a spectrogram is a .png file, got {str(path)!r}")
    check_replaceable(user_path(path))


def draw_spectrogram(path: str | Path, sound: np.ndarray, sample_rate: int) -> None:
    """Write the spectrogram of a sound as a PNG: 5 ms a column, low frequencies below, 0 to 8 kHz, 70 dB.

    Args:
        path: the file to write, whole or not at all; a leading `~` is the home folder.
        sound: [samples] floating point.
        sample_rate: in Hz.

    Raises:
        ValueError: the sound is empty or has more than one channel.
        OSError: the disk is full or fails; the message names the path.
    """
    sound = np.asarray(sound, dtype=np.float64)
    if sound.ndim != 1 or not len(sound):
        raise ValueError(f"sound must be [samples] and not empty, got shape {list(sound.shape)}")
    write_whole(user_path(path), _png(_colored(_decibels(sound, sample_rate))))


def _decibels(sound: np.ndarray, sample_rate: int) -> np.ndarray:
    """Power in decibels [HEIGHT, columns] float32, the highest frequency first."""
    size, hop = int(0.025 * sample_rate), max(1, int(COLUMN_SECONDS * sample_rate))
    padded = np.pad(sound, size // 2)
    frames, transform = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop], max(2048, size)
    rows = np.linspace(0, min(TOP, sample_rate / 2) * transform / sample_rate, HEIGHT).astype(int)[::-1]
    rows, window = np.minimum(rows, transform // 2), np.hanning(size)
    # Some columns at a time: all frequencies of all of them take 7 MB for each second.
    power = np.empty((HEIGHT, len(frames)), np.float32)
    for start in range(0, len(frames), COLUMNS):
        spectrum = np.fft.rfft(frames[start : start + COLUMNS] * window, transform)
        power[:, start : start + COLUMNS] = np.abs(spectrum[:, rows].T) ** 2
    power += 1e-12
    np.log10(power, out=power)
    power *= 10
    return power


def _colored(decibels: np.ndarray) -> np.ndarray:
    """The picture [HEIGHT, columns, 3] uint8."""
    stops, loudest = np.linspace(0, 1, len(COLORS)), decibels.max()
    pixels = np.empty((*decibels.shape, 3), np.uint8)
    for start in range(0, decibels.shape[1], COLUMNS):
        levels = np.clip(1 + (decibels[:, start : start + COLUMNS] - loudest) / DECIBELS, 0, 1)
        for index, channel in enumerate(COLORS.T):
            pixels[:, start : start + COLUMNS, index] = np.interp(levels, stops, channel)
    return pixels


def _png(pixels: np.ndarray) -> bytes:
    """An image [height, width, 3] uint8 in the PNG format: each row after a zero, which says: not filtered."""
    height, width, _ = pixels.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits a channel, red, green and blue
    body = zlib.compress(rows.tobytes(), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
