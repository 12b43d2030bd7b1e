"""Audio that clients send: any usual file in memory to samples."""

import io

import av
import numpy as np

from ...files.waveform import as_waveform, check_peak

# FFmpeg knows formats that name other files to read, such as playlists: what is not listed is not tried.
DEMUXERS = "wav,mp3,ogg,aac,flac,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,w64,aiff"
MIN_SECONDS, MAX_SECONDS = 1.0, 30.0
SILENCE = 1e-3  # of full scale


def decode_audio(data: bytes, name: str = "the audio") -> tuple[np.ndarray, int]:
    """Decode a file of audio.

    Args:
        data: its bytes: wav, mp3, ogg (vorbis, opus), aac, flac, webm or mp4.
        name: what messages call it.

    Returns:
        samples [n] float32, the mean of the channels, and their rate in Hz.

    Raises:
        ValueError: it cannot be decoded, is shorter than a second or longer than 30, or silent.
    """
    try:
        samples, rate = _decoded(data)
    except (av.error.FFmpegError, ValueError, OverflowError, MemoryError):
        raise ValueError(f"{name} cannot be decoded: send wav, mp3, ogg, aac, flac, webm or mp4") from None
    seconds = len(samples) / rate
    if not MIN_SECONDS <= seconds <= MAX_SECONDS:
        length = f"over {MAX_SECONDS:g}" if seconds > MAX_SECONDS else f"{seconds:.2f}"
        raise ValueError(f"{name} must last {MIN_SECONDS:g} to {MAX_SECONDS:g} seconds, it lasts {length}")
    samples = as_waveform(samples)
    check_peak(samples)
    if float(np.abs(samples - samples.mean()).max()) < SILENCE:
        raise ValueError(f"{name} is silent")
    return samples, rate


def _decoded(data: bytes) -> tuple[np.ndarray, int]:
    """Samples and rate; no more than a little over the longest that is allowed."""
    options = {"format_whitelist": DEMUXERS, "protocol_whitelist": ""}
    with av.open(io.BytesIO(data), metadata_errors="ignore", container_options=options) as container:
        if not container.streams.audio:
            raise ValueError("no audio")
        stream = container.streams.audio[0]
        rate, parts, count = stream.rate, [], 0
        if not rate or not 4000 <= rate <= 192_000:
            raise ValueError("no usual sample rate")
        converter = av.AudioResampler(format="flt", layout="mono", rate=rate)
        for frame in container.decode(stream):
            for converted in converter.resample(frame):
                parts.append(converted.to_ndarray().ravel())
                count += len(parts[-1])
            if count > (MAX_SECONDS + 1) * rate:
                break
        parts += [converted.to_ndarray().ravel() for converted in converter.resample(None)]
    if not count:
        raise ValueError("no samples")
    return np.concatenate(parts), rate
