"""Audio that clients send: any usual file in memory to samples."""

import io

import av
import numpy as np

from ...files.waveform import as_waveform, check_peak

# FFmpeg knows formats that name other files to read, such as playlists: what is not listed is not tried.
DEMUXERS = "wav,mp3,ogg,aac,flac,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,w64,aiff"
# And it decodes cover art and video while it opens a file, where a picture of 1 MB can take a gigabyte: the same for
# codecs. Some have a second decoder, which is the one that is tried.
CODECS = (
    "mp3float,mp3,mp2float,mp2,opus,libopus,vorbis,libvorbis,aac,aac_fixed,aac_latm,flac,alac,ac3,eac3,speex,libspeex,"
    "amrnb,amrwb,libopencore_amrnb,libopencore_amrwb,gsm,gsm_ms,adpcm_ms,adpcm_ima_wav,adpcm_ima_qt,pcm_alaw,pcm_mulaw,"
    "pcm_u8,pcm_s8,pcm_s16le,pcm_s16be,pcm_s24le,pcm_s24be,pcm_s32le,pcm_s32be,pcm_f32le,pcm_f32be,pcm_f64le,pcm_f64be"
)
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
    options = {"format_whitelist": DEMUXERS, "codec_whitelist": CODECS, "protocol_whitelist": ""}
    with av.open(io.BytesIO(data), metadata_errors="ignore", container_options=options) as container:
        if not container.streams.audio:
            raise ValueError("no audio")
        stream = container.streams.audio[0]
        # A codec that FFmpeg does not know leaves its stream without one.
        if stream.codec_context is None or stream.codec_context.name not in CODECS.split(","):
            raise ValueError("no usual codec")
        rate, parts, count = stream.rate, [], 0
        if not rate or not 4000 <= rate <= 192_000:
            raise ValueError("no usual sample rate")
        # Samples alone: of channels FFmpeg's way to mono makes 1.4 times the mean of two, and more of more.
        converter = av.AudioResampler(format="fltp", rate=rate)
        for frame in container.decode(stream):
            for converted in converter.resample(frame):
                parts.append(converted.to_ndarray().mean(axis=0))
                count += len(parts[-1])
            if count > (MAX_SECONDS + 1) * rate:
                break
        parts += [converted.to_ndarray().mean(axis=0) for converted in converter.resample(None)]
    if not count:
        raise ValueError("no samples")
    return np.concatenate(parts), rate
