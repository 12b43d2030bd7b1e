"""Audio to bytes, chunk by chunk: resampled without a seam, then encoded, with bytes for every chunk as soon as the
encoding allows."""

import io
import struct
from fractions import Fraction
from typing import Any, Protocol

import av
import numpy as np
import soxr

from ...files.wav_header import WAV_HEADER, wav_header
from ...files.wav_stream import pcm16
from .formats import AudioFormat

FLAC_SAMPLES, FLAC_SAMPLES_AT = struct.Struct(">Q"), 18


class Encoder(Protocol):
    """Of one stream of samples [n] float32 at the format's rate."""

    def encode(self, samples: np.ndarray) -> bytes: ...
    def finish(self) -> bytes: ...


class Pcm:
    """Signed 16-bit samples, little-endian, mono."""

    def encode(self, samples: np.ndarray) -> bytes:
        return pcm16(samples)

    def finish(self) -> bytes:
        return b""


class Wav(Pcm):
    """The same behind a header that leaves the length open."""

    def __init__(self, sample_rate: int):
        self._header = wav_header(sample_rate, None)

    def encode(self, samples: np.ndarray) -> bytes:
        header, self._header = self._header, b""
        return header + pcm16(samples)


class Mulaw(Pcm):
    """8-bit logarithmic samples of telephony, G.711."""

    BIAS, CLIP = 132, 32_635

    def encode(self, samples: np.ndarray) -> bytes:
        values = np.frombuffer(pcm16(samples), "<i2").astype(np.int32)
        sign = np.where(values < 0, 0x80, 0)
        magnitude = np.minimum(np.abs(values), self.CLIP) + self.BIAS
        exponent = np.frexp(magnitude.astype(np.float64))[1] - 8  # of magnitude in [2^(7 + e), 2^(8 + e))
        mantissa = (magnitude >> (exponent + 3)) & 0x0F
        return (~(sign | (exponent << 4) | mantissa) & 0xFF).astype(np.uint8).tobytes()


# name -> container, codec, kind of samples, options of both. Each is set so that no chunk is held back longer than a
# codec's frame.
COMPRESSED: dict[str, tuple[str, str, str, dict[str, str], dict[str, str]]] = {
    "mp3": ("mp3", "libmp3lame", "fltp", {"write_xing": "0", "id3v2_version": "0", "flush_packets": "1"}, {}),
    "opus": ("ogg", "libopus", "flt", {"page_duration": "20000", "flush_packets": "1"}, {"application": "audio"}),
    "aac": ("adts", "aac", "fltp", {"flush_packets": "1"}, {}),
    "flac": ("flac", "flac", "s16", {"flush_packets": "1"}, {"frame_size": "1024"}),
}
BIT_RATES = {"mp3": 96_000, "opus": 64_000, "aac": 96_000}


class _Sink(io.RawIOBase):
    """Keeps what the muxer writes until it is taken. It cannot be sought in: what is sent cannot be changed."""

    def __init__(self) -> None:
        self._written: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._written.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        taken, self._written = b"".join(self._written), []
        return taken


class Compressed:
    """What FFmpeg's encoders make: mp3, opus, aac, flac."""

    def __init__(self, audio_format: AudioFormat):
        container, codec, kind, container_options, options = COMPRESSED[audio_format.name]
        self._sink = _Sink()

        self._container: Any = av.open(self._sink, "w", format=container, container_options=container_options)
        self._stream = self._container.add_stream(codec, rate=audio_format.sample_rate, options=options, layout="mono")
        bit_rate = audio_format.bit_rate or BIT_RATES.get(audio_format.name)
        if bit_rate is not None:
            self._stream.bit_rate = bit_rate
        context = self._stream.codec_context
        context.format = kind
        context.open()
        self._size, self._kind = context.frame_size or 1024, kind  # encoders want frames of one size
        self._rest = np.zeros(0, dtype=np.float32)
        self._samples = 0

    def encode(self, samples: np.ndarray) -> bytes:
        waiting = np.concatenate([self._rest, samples])
        whole = len(waiting) // self._size * self._size
        for start in range(0, whole, self._size):
            self._push(waiting[start : start + self._size])
        self._rest = waiting[whole:]
        return self._sink.take()

    def finish(self) -> bytes:
        if len(self._rest):
            self._push(self._rest)
        for packet in self._stream.encode(None):
            self._container.mux(packet)
        self._container.close()
        return self._sink.take()

    def _push(self, samples: np.ndarray) -> None:
        frame = av.AudioFrame.from_ndarray(self._converted(samples), format=self._kind, layout="mono")
        frame.sample_rate = self._stream.rate
        frame.pts, frame.time_base = self._samples, Fraction(1, self._stream.rate)
        self._samples += len(samples)
        for packet in self._stream.encode(frame):
            self._container.mux(packet)

    def _converted(self, samples: np.ndarray) -> np.ndarray:
        if self._kind == "s16":
            return np.frombuffer(pcm16(samples), "<i2")[None]
        return np.ascontiguousarray(samples, dtype=np.float32)[None]


class Output:
    """From the engine's samples to bytes.

    Attributes:
        seconds: of audio that were put in.
        samples: that were encoded, at the format's rate.
    """

    def __init__(self, sample_rate: int, audio_format: AudioFormat):
        self.seconds, self.samples, self._sample_rate = 0.0, 0, sample_rate
        self._resampler = resampler(sample_rate, audio_format.sample_rate)
        self._encoder = make_encoder(audio_format)

    def encode(self, samples: np.ndarray) -> bytes:
        """The bytes that samples [n] float32 complete."""
        self.seconds += len(samples) / self._sample_rate
        if self._resampler is not None:
            samples = self._resampler.resample_chunk(samples)
        return self._encode(samples)

    def finish(self) -> bytes:
        """The rest."""
        rest = b""
        if self._resampler is not None:
            tail = self._resampler.resample_chunk(np.zeros(0, dtype=np.float32), last=True)
            rest = self._encode(tail)
        return rest + self._encoder.finish()

    def _encode(self, samples: np.ndarray) -> bytes:
        self.samples += len(samples)
        return self._encoder.encode(samples) if len(samples) else b""


def make_encoder(audio_format: AudioFormat) -> Encoder:
    """The encoder of a format."""
    if audio_format.name == "pcm":
        return Pcm()
    if audio_format.name == "wav":
        return Wav(audio_format.sample_rate)
    if audio_format.name == "ulaw":
        return Mulaw()
    return Compressed(audio_format)


def resampler(source: int, target: int) -> "soxr.ResampleStream | None":
    """A resampler between two rates in Hz, whose chunks joined are the whole, bit for bit; None if there is nothing to
    do."""
    if source == target:
        return None
    return soxr.ResampleStream(source, target, 1, dtype="float32", quality="HQ")


def with_sizes(audio_format: AudioFormat, data: bytes, samples: int) -> bytes:
    """A whole file, whose header counts its samples: while it was streamed nobody knew how many there would be."""
    if audio_format.name == "wav":
        return wav_header(audio_format.sample_rate, 2 * samples) + data[WAV_HEADER.size :]
    if audio_format.name == "flac":
        # The lower 36 bits of a field of 64 in the first block, STREAMINFO (RFC 9639, section 8.2).
        (field,) = FLAC_SAMPLES.unpack_from(data, FLAC_SAMPLES_AT)
        return data[:FLAC_SAMPLES_AT] + FLAC_SAMPLES.pack(field | samples) + data[FLAC_SAMPLES_AT + FLAC_SAMPLES.size :]
    return data
