"""Encoders: the same audio in any chunks, at any rate, and bytes as soon as an encoding allows."""

import io
import struct
import zlib

import av
import numpy as np
import pytest
import soundfile
import soxr

from dia_engine.files.wav_stream import pcm16
from dia_engine.server.audio.decode import decode_audio
from dia_engine.server.audio.encoders import Output, with_sizes
from dia_engine.server.audio.formats import ELEVENLABS_FORMATS, AudioFormat, elevenlabs_format, openai_format
from dia_engine.server.errors import ApiError

RATE = 16_000
SECONDS = 2.0


def voice_like(rate=RATE, seconds=SECONDS):
    """Two seconds that are neither silent nor noise."""
    time = np.arange(int(seconds * rate)) / rate
    return (0.4 * np.sin(2 * np.pi * (180 + 60 * time) * time) * (0.6 + 0.4 * np.sin(9 * time))).astype(np.float32)


def encoded(audio, audio_format, sizes=(1500,), rate=RATE):
    output, parts, start = Output(rate, audio_format), [], 0
    while start < len(audio):
        size = sizes[len(parts) % len(sizes)]
        parts.append(output.encode(audio[start : start + size]))
        start += size
    return [*parts, output.finish()]


@pytest.mark.parametrize("name", ["mp3", "opus", "aac", "flac", "wav", "pcm", "ulaw"])
def test_bytes_do_not_depend_on_the_chunks(name):
    audio_format = AudioFormat(name, 48_000 if name == "opus" else 8000 if name == "ulaw" else 24_000)
    audio = voice_like()
    whole = b"".join(encoded(audio, audio_format, [len(audio)]))
    chunked = b"".join(encoded(audio, audio_format, [1, 700, 512, 3000]))
    if name == "opus":  # the serial number of an Ogg stream is drawn
        whole, chunked = (decode_audio(data)[0].tobytes() for data in (whole, chunked))
    assert chunked == whole


@pytest.mark.parametrize("rate", [8000, 16_000, 22_050, 24_000, 44_100, 48_000])
def test_pcm_and_wav_are_the_resampled_audio_sample_for_sample(rate):
    audio = voice_like()
    expected = pcm16(audio if rate == RATE else soxr.resample(audio, RATE, rate, quality="HQ"))
    assert b"".join(encoded(audio, AudioFormat("pcm", rate))) == expected
    wav = b"".join(encoded(audio, AudioFormat("wav", rate)))
    assert wav[44:] == expected and len(wav) == 44 + len(expected)
    assert int.from_bytes(wav[40:44], "little") == 0xFFFFFFFF
    sized = with_sizes(AudioFormat("wav", rate), wav, len(expected) // 2)
    assert int.from_bytes(sized[40:44], "little") == len(expected) and sized[44:] == expected


@pytest.mark.parametrize("name", ["wav", "flac"])
@pytest.mark.parametrize("seconds", [0.01, 1.0])
def test_a_whole_file_counts_its_samples(name, seconds):
    audio_format, audio = AudioFormat(name, 24_000), voice_like(seconds=seconds)
    output = Output(RATE, audio_format)
    data = output.encode(audio) + output.finish()
    expected = soxr.resample(audio, RATE, 24_000, quality="HQ")
    found, rate = soundfile.read(io.BytesIO(with_sizes(audio_format, data, output.samples)))
    assert rate == 24_000 and len(found) == len(expected) and np.abs(found - expected).max() < 1e-4


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_an_upload_is_the_mean_of_its_channels(channels):
    audio = voice_like()
    levels = np.linspace(0.2, 1.0, channels)
    found, _ = decode_audio(wav(audio[:, None] * levels))
    assert np.abs(found - audio * levels.mean()).max() < 1e-4


@pytest.mark.parametrize("name", ["mp3", "opus", "aac", "flac"])
def test_compressed_audio_is_the_audio(name):
    rate = 48_000 if name == "opus" else 24_000
    parts = encoded(voice_like(), AudioFormat(name, rate))
    found, found_rate = decode_audio(b"".join(parts))
    expected = soxr.resample(voice_like(), RATE, rate, quality="HQ")
    assert found_rate == rate and abs(len(found) - len(expected)) / rate < 0.1
    # An encoder may shift the audio: the best of all shifts is almost the audio itself.
    size = 2 ** int(np.ceil(np.log2(len(found) + len(expected))))
    products = np.fft.irfft(np.fft.rfft(found, size) * np.conj(np.fft.rfft(expected, size)))
    assert products.max() > 0.97 * np.linalg.norm(found) * np.linalg.norm(expected)
    # Every chunk of 93 ms but the first, which an encoder or resampler may hold, brings bytes.
    assert all(parts[2:-1]) and sum(len(part) for part in parts[:3])


def test_mulaw_is_that_of_telephony():
    audio = np.linspace(-1, 1, 65_536).astype(np.float32)
    ours = b"".join(encoded(audio, AudioFormat("ulaw", 8000), rate=8000))
    sink = io.BytesIO()
    with av.open(sink, "w", format="mulaw") as container:
        stream = container.add_stream("pcm_mulaw", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.frombuffer(pcm16(audio), "<i2")[None], format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux([*stream.encode(frame), *stream.encode(None)])
    theirs = np.frombuffer(sink.getvalue(), np.uint8)
    found = np.frombuffer(ours, np.uint8)
    # FFmpeg's table rounds to the nearest level where the standard's shifts cut: at most one level apart.
    assert (np.abs(levels(found) - levels(theirs)) <= 1).all()
    with av.open(io.BytesIO(ours), format="mulaw", options={"sample_rate": "8000"}) as container:
        back = np.concatenate([frame.to_ndarray().ravel() for frame in container.decode(audio=0)]) / 32_768
    assert np.square(back - audio).mean() < 1e-3 * np.square(audio).mean()


def levels(codes):
    """Codes as numbers that rise with the sample."""
    inverted = ~codes
    return np.where(inverted & 0x80, -1 - (inverted & 0x7F).astype(int), (inverted & 0x7F).astype(int))


def test_formats_that_cannot_be_are_refused():
    for name, rate in (("opus", 44_100), ("mp3", 44_099), ("pcm", 7999), ("wav", 96_001)):
        with pytest.raises(ApiError, match=str(rate)) as refused:
            AudioFormat(name, rate)
        assert (refused.value.status, refused.value.param) == (400, "sample_rate")
    with pytest.raises(ApiError, match="ape"):
        openai_format("ape", None)
    with pytest.raises(ApiError, match="pcm_1"):
        elevenlabs_format("pcm_1")


@pytest.mark.parametrize("name", ELEVENLABS_FORMATS)
def test_every_format_of_elevenlabs_encodes(name):
    assert len(b"".join(encoded(voice_like(seconds=0.3), elevenlabs_format(name)))) > 300


@pytest.mark.parametrize("playlist", [b"#EXTM3U\n#EXTINF:1,\n{}\n", b"[playlist]\nFile1={}\n"])
def test_a_playlist_is_no_audio(tmp_path, monkeypatch, playlist):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.wav").write_bytes(wav(voice_like()))
    with pytest.raises(ValueError, match="cannot be decoded"):
        decode_audio(playlist.replace(b"{}", b"other.wav"))


@pytest.mark.parametrize("lists", [("format", "protocol"), ("format",), ("protocol",), ()])
def test_an_upload_cannot_name_other_files(tmp_path, monkeypatch, lists):
    """FFmpeg would read a file of the current folder that an upload names; either list alone keeps it from that."""
    playlist, opened = b"ffconcat version 1.0\nfile 'other.wav'\n", av.open

    def with_some(file, *, container_options, **options):
        kept = {f"{name}_whitelist": container_options[f"{name}_whitelist"] for name in lists}
        return opened(file, container_options=kept, **options)

    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.wav").write_bytes(wav(voice_like()))
    with pytest.raises(ValueError, match="cannot be decoded"):
        decode_audio(playlist)
    monkeypatch.setattr(av, "open", with_some)
    if lists:
        with pytest.raises(ValueError, match="cannot be decoded"):
            decode_audio(playlist)
    else:
        assert len(decode_audio(playlist)[0]) == len(voice_like())


def wav(audio, rate=RATE):
    sink = io.BytesIO()
    soundfile.write(sink, audio, rate, "PCM_16", format="WAV")
    return sink.getvalue()


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "cannot be decoded"),
        (b"RIFF\0\0\0\0WAVE", "cannot be decoded"),
        (b"\xff" * 5000, "cannot be decoded"),
        (wav(voice_like(seconds=0.5)), "lasts 0.50"),
        (wav(voice_like(8000, 30.5), 8000), "lasts over 30"),
        (wav(voice_like(8000, 32), 8000), "lasts over 30"),
        (wav(np.zeros(20_000, np.float32)), "silent"),
    ],
)
def test_uploads_that_are_of_no_use_are_refused(data, message):
    with pytest.raises(ValueError, match=message):
        decode_audio(data)


def test_an_upload_is_read_as_it_was_written():
    audio = voice_like()
    found, rate = decode_audio(wav(audio))
    assert rate == RATE and np.abs(found - audio).max() < 2 / 32_768


def png(side):
    """A black square."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head, rows = struct.pack(">IIBBBBB", side, side, 8, 6, 0, 0, 0), zlib.compress(bytes(side * (1 + 4 * side)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def with_cover(mp3, picture):
    """An mp3 with a picture of its cover."""
    content = b"\0image/png\0\3\0" + picture
    frame = b"APIC" + struct.pack(">I", len(content)) + b"\0\0" + content
    size = bytes(len(frame) >> shift & 127 for shift in (21, 14, 7, 0))
    return b"ID3\3\0\0" + size + frame + mp3


def test_pictures_in_an_upload_are_not_decoded(monkeypatch):
    """A cover of 1 MB can have a gigabyte of pixels: FFmpeg knows a picture's size once it has decoded it."""
    mp3, widths, opened = b"".join(encoded(voice_like(), AudioFormat("mp3", 24_000))), [], av.open

    def watched(*arguments, **options):
        container = opened(*arguments, **options)
        widths.append(container.streams.video[0].codec_context.width)
        return container

    monkeypatch.setattr(av, "open", watched)
    found, rate = decode_audio(with_cover(mp3, png(64)))
    assert rate == 24_000 and len(found) > SECONDS * rate and widths == [0]


def in_container(container_format, codec, rate=48_000, **options):
    """The voice in a file of FFmpeg's."""
    sink, samples = io.BytesIO(), voice_like(rate)
    with av.open(sink, "w", format=container_format) as container:
        stream = container.add_stream(
            codec, rate=rate, layout="stereo" if codec == "vorbis" else "mono", options=options
        )
        stream.codec_context.open(strict=False)
        converter = av.AudioResampler(format=stream.format.name, layout=stream.layout.name, rate=rate)
        frames = av.AudioFifo()
        whole = av.AudioFrame.from_ndarray(samples[None], format="flt", layout="mono")
        whole.sample_rate, whole.pts = rate, 0
        for frame in converter.resample(whole):
            frames.write(frame)
        while frame := frames.read(stream.codec_context.frame_size or 1024, partial=True):
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return sink.getvalue()


@pytest.mark.parametrize(
    "kind",
    [
        ("wav", "pcm_s16le"), ("wav", "pcm_s24le"), ("wav", "pcm_f32le"), ("wav", "pcm_mulaw"), ("wav", "adpcm_ms"),
        ("mp3", "libmp3lame"), ("ogg", "vorbis"), ("ogg", "libopus"), ("adts", "aac"), ("flac", "flac"),
        ("webm", "libopus"), ("webm", "vorbis"), ("mp4", "aac"), ("mp4", "alac"), ("mov", "pcm_s16be"),
    ],
    ids="-".join,
)  # fmt: skip
def test_every_usual_format_can_be_uploaded(kind):
    strict = {"strict": "experimental"} if kind[1] == "vorbis" else {}
    found, rate = decode_audio(in_container(*kind, **strict))
    assert rate == 48_000 and abs(len(found) / rate - SECONDS) < 0.1 and np.abs(found).max() > 0.25


def test_a_codec_that_nobody_knows_is_refused():
    unknown = bytearray(wav(voice_like()))
    unknown[20:22] = b"\x34\x12"
    for data in (bytes(unknown), in_container("mov", "pcm_s16le").replace(b"sowt", b"zzzz")):
        with pytest.raises(ValueError, match="cannot be decoded"):
            decode_audio(data)
