"""The header of a mono WAV file of 16-bit samples."""

import struct

WAV_HEADER = struct.Struct("<4sI4s4sIHHIIHH4sI")
SAMPLE_BYTES = 2
LARGEST_COUNT = 2**32 - 1  # of bytes; of a longer file, 13 hours at 44.1 kHz, readers go by its length


def wav_header(sample_rate: int, data_bytes: int | None) -> bytes:
    """The 44 bytes before the samples; `data_bytes`, the samples' size, is None while it is not known."""
    size, total = LARGEST_COUNT, LARGEST_COUNT
    if data_bytes is not None:
        size, total = min(data_bytes, LARGEST_COUNT), min(WAV_HEADER.size - 8 + data_bytes, LARGEST_COUNT)
    return WAV_HEADER.pack(
        b"RIFF", total, b"WAVE",
        b"fmt ", 16, 1, 1, sample_rate, SAMPLE_BYTES * sample_rate, SAMPLE_BYTES, 8 * SAMPLE_BYTES,
        b"data", size,
    )  # fmt: skip
