"""Sound that is written while it is made: 16-bit samples to a WAV file or a pipe."""

from pathlib import Path
from typing import BinaryIO

import numpy as np

from .paths import user_path
from .wav_header import WAV_HEADER, wav_header


def pcm16(waveform: np.ndarray) -> bytes:
    """Samples [n] float32 in [-1, 1] as signed 16-bit integers, little-endian, as `write_audio` rounds them."""
    return np.rint(waveform.clip(-1.0, 1.0) * 32767.0).astype("<i2").tobytes()


class RawSamples:
    """Nothing but samples, to a pipe for instance."""

    def __init__(self, file: BinaryIO):
        self._file = file

    def write(self, waveform: np.ndarray) -> None:
        """Send samples [n] float32 on their way at once.

        Raises:
            BrokenPipeError: whoever read them has gone.
        """
        self._file.write(pcm16(waveform))
        self._file.flush()


class GrowingWav:
    """A mono WAV file that is valid at any moment, also if the process is killed.

    Samples are appended first and counted in the header after that; bytes that the header does not count are ignored.
    """

    def __init__(self, path: str | Path, sample_rate: int):
        """Create the file, or overwrite what is there.

        Raises:
            OSError: it cannot be written.
        """
        self._path, self._sample_rate, self._data_bytes = user_path(path), sample_rate, 0
        self._file = open(self._path, "wb", buffering=0)  # noqa: SIM115 (`close` closes it)
        self._write_header()

    def write(self, waveform: np.ndarray) -> None:
        """Append samples [n] float32.

        Raises:
            OSError: the disk is full or fails; the message names the path, and the file holds what came before.
        """
        data = pcm16(waveform)
        try:
            self._write_all(data)
            self._data_bytes += len(data)
            self._write_header()
        except OSError as error:
            raise OSError(error.errno, f"could not write {self._path}: {error.strerror or error}") from None

    def _write_header(self) -> None:
        self._file.seek(0)
        # One call for all of it, so that its two counts agree.
        self._write_all(wav_header(self._sample_rate, self._data_bytes))
        self._file.seek(WAV_HEADER.size + self._data_bytes)

    def _write_all(self, data: bytes) -> None:
        while data:  # an unbuffered file may take a part only
            data = data[self._file.write(data) :]
