"""Sound files: round trips, resampling, and what happens when the path, the samples or the disk are bad."""

import os
import stat
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from dia_engine.files import audio
from dia_engine.files.audio import check_writable, read_audio, write_audio
from dia_engine.files.wav_stream import pcm16
from dia_engine.files.waveform import resample

ROOT = Path(__file__).parents[2]


def tone(samples=8000, rate=16000, frequency=440.0, level=0.5):
    return (level * np.sin(2 * np.pi * frequency * np.arange(samples) / rate)).astype(np.float32)


# Reading


@pytest.mark.parametrize("extension", [".wav", ".flac", ".ogg", ".mp3", ".WAV"])
def test_round_trip(tmp_path, extension):
    path, sound = tmp_path / f"tone{extension}", tone()
    write_audio(path, sound, 16000)
    read, rate = read_audio(str(path))
    assert rate == 16000 and read.dtype == np.float32 and read.shape == sound.shape
    exact = extension.lower() in (".wav", ".flac")
    assert np.abs(read - sound).max() < (2**-15 if exact else 0.05)
    assert list(tmp_path.iterdir()) == [path]


def test_wav_is_16_bit_pcm(tmp_path):
    write_audio(tmp_path / "a.wav", torch.from_numpy(tone()), 16000)
    assert soundfile.info(tmp_path / "a.wav").subtype == "PCM_16"


@pytest.mark.parametrize("extension", [".ogg", ".mp3", ".flac"])
def test_two_minutes_at_once(tmp_path, extension):
    """libsndfile's Vorbis encoder ends the process when it is given this in one block."""
    sound = np.resize(tone(16000), 120 * 16000)
    write_audio(tmp_path / f"long{extension}", sound, 16000)
    assert len(read_audio(tmp_path / f"long{extension}")[0]) == len(sound)


@pytest.mark.parametrize("channels", [2, 3])
def test_channels_are_averaged(tmp_path, channels):
    data = np.stack([tone(level=0.1 * (c + 1)) for c in range(channels)], axis=1)
    soundfile.write(tmp_path / "many.wav", data, 16000, subtype="FLOAT")
    read, _ = read_audio(tmp_path / "many.wav")
    assert read.ndim == 1
    np.testing.assert_allclose(read, data.mean(axis=1), atol=1e-6)


def test_read_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.wav"):
        read_audio(tmp_path / "nothing.wav")
    with pytest.raises(ValueError, match=f"{tmp_path.name}.*folder"):
        read_audio(tmp_path)
    for name, content in (("empty.wav", b""), ("text.wav", b"hello, this is no sound" * 9)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} cannot be read as sound"):
            read_audio(tmp_path / name)
    soundfile.write(tmp_path / "silent.wav", np.zeros(0, np.float32), 16000)
    with pytest.raises(ValueError, match="silent.wav.*empty"):
        read_audio(tmp_path / "silent.wav")
    soundfile.write(tmp_path / "nan.wav", np.array([0, np.nan], np.float32), 16000, subtype="FLOAT")
    with pytest.raises(ValueError, match="nan.wav.*finite"):
        read_audio(tmp_path / "nan.wav")


def truncated(tmp_path, extension, write=soundfile.write, rate=44100, **form) -> Path:
    path = tmp_path / f"half.{extension}"
    write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 44100), rate, **form)
    os.truncate(path, path.stat().st_size // 2)
    return path


@pytest.mark.parametrize(
    "extension, form",
    [
        ("wav", {}),
        ("wav", {"subtype": "FLOAT"}),
        ("wav", {"subtype": "MS_ADPCM"}),
        ("wav", {"format": "WAVEX"}),
        ("w64", {}),
        ("rf64", {}),
        ("aiff", {}),
        ("au", {}),
        ("caf", {}),
        ("flac", {}),
        ("ogg", {}),
        ("mp3", {}),
        ("nist", {}),
        ("voc", {}),
        ("avr", {}),
        ("mat", {"format": "MAT4", "subtype": "DOUBLE"}),
        ("mat", {"format": "MAT5", "subtype": "FLOAT"}),
        ("mpc", {"format": "MPC2K"}),
        ("wve", {"rate": 8000}),
    ],
)
def test_half_a_file_is_damaged(tmp_path, extension, form):
    path = truncated(tmp_path, extension, **form)
    with pytest.raises(ValueError, match=rf"half\.{extension}.*(damaged|cut off|malformed|lost sync)"):
        read_audio(path)


@pytest.mark.parametrize("channels", [1, 2])
def test_whole_files_of_every_format_are_not_damaged(tmp_path, caplog, channels):
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, (5000, channels))
    read = 0
    for form in set(soundfile.available_formats()) - {"RAW", "SD2"}:  # without a header; with a second file
        for subtype in soundfile.available_subtypes(form):
            try:
                soundfile.write(tmp_path / "sound", sound, 16_000, format=form, subtype=subtype)
            except soundfile.LibsndfileError:
                continue  # cannot be written, or not with so many channels
            if "DWVW" not in subtype:  # libsndfile does not read its own
                assert len(read_audio(tmp_path / "sound")[0]) >= 5000, (form, subtype)
                read += 1
    assert read > 40 and not caplog.records


def test_a_hole_is_damage_and_a_missing_end_is_told(tmp_path, caplog):
    path = tmp_path / "a.ogg"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 441_000), 44100)
    whole = path.read_bytes()
    middle, last = whole.index(b"OggS", len(whole) // 2), whole.rindex(b"OggS")
    read_audio(path)
    assert not caplog.records
    path.write_bytes(whole[:last])
    read_audio(path)
    assert "a.ogg has no last page: it may have been cut off" in caplog.text
    path.write_bytes(whole[:middle] + whole[whole.index(b"OggS", middle + 1) :])
    with pytest.raises(ValueError, match="a.ogg: damaged: a part is missing"):
        read_audio(path)


def with_sizes(data: bytes, riff: int, sound: int) -> bytes:
    return data[:4] + riff.to_bytes(4, "little") + data[8:40] + sound.to_bytes(4, "little") + data[44:]


def test_headers_that_were_never_finished(tmp_path):
    path = tmp_path / "a.wav"
    write_audio(path, tone(), 16000)
    data = path.read_bytes()
    path.write_bytes(with_sizes(data, 0, 0))
    with pytest.raises(
        ValueError, match="a.wav: the file counts no samples, though it has 16044 bytes.*never finished"
    ):
        read_audio(path)
    for unknown in (0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, 0x7FFFF000):  # as writers on a pipe leave them
        path.write_bytes(with_sizes(data, 0xFFFFFFFF, unknown))
        assert len(read_audio(path)[0]) == 8000
    path.write_bytes(with_sizes(data, 36 + 8000, 8000))
    assert len(read_audio(path)[0]) == 4000, "as a file that is still being written"


@pytest.mark.parametrize("samples", [100, 8000, 2**20, 2**20 + 5])
def test_a_flac_that_was_streamed_counts_no_samples_and_is_read(tmp_path, samples):
    sound, path = tone(samples), tmp_path / "a.flac"
    write_audio(path, sound, 16_000)
    data = bytearray(path.read_bytes())
    data[21] &= 0xF0  # the lower 36 bits of eight bytes
    data[22:26] = bytes(4)
    path.write_bytes(data)
    seen = []
    found, rate = read_audio(path, lambda samples, rate: seen.append(samples))
    assert rate == 16_000 and np.abs(found - sound).max() < 1e-4 and seen[-1] == samples
    path.write_bytes(data[: len(data) // 2])
    if samples > 4096:  # several frames
        with pytest.raises(ValueError, match="lost sync"):
            read_audio(path)


def test_files_are_known_by_their_content(tmp_path):
    for name, content in (("a.raw", bytes(3200)), ("a.gsm", bytes(3200)), ("a.mp3", b"\xff\xfb\x90\x00" + bytes(200))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} cannot be read as sound: (?!.*does not exist)"):
            read_audio(tmp_path / name)
    write_audio(tmp_path / "a.wav", tone(), 16000)
    (tmp_path / "a.wav").rename(tmp_path / "b.raw")
    assert len(read_audio(tmp_path / "b.raw")[0]) == 8000


def test_rates_and_levels_name_the_file(tmp_path):
    soundfile.write(tmp_path / "fast.wav", tone(), 384_000)
    with pytest.raises(ValueError, match=r"fast.wav: the sample rate must be in 1..192000 Hz, got 384000"):
        read_audio(tmp_path / "fast.wav")
    soundfile.write(tmp_path / "loud.wav", tone() * 32767, 16000, subtype="FLOAT")
    with pytest.raises(ValueError, match=r"loud.wav: waveform must be in \[-1, 1\], its peak is 163"):
        read_audio(tmp_path / "loud.wav")
    soundfile.write(tmp_path / "mix.wav", tone(level=2.0), 16000, subtype="FLOAT")
    assert abs(read_audio(tmp_path / "mix.wav")[0]).max() > 1.9


@pytest.mark.parametrize("extension", [".wav", ".flac"])
def test_samples_are_rounded_as_those_of_a_stream(tmp_path, extension):
    path, sound = tmp_path / f"tone{extension}", tone()
    sound[:3] = -1e-6, 1.0, -1.0
    write_audio(path, sound, 16000)
    assert soundfile.read(path, dtype="int16")[0].tobytes() == pcm16(sound)


def test_channels_that_cancel_are_told(tmp_path, caplog):
    soundfile.write(tmp_path / "wired.wav", np.stack([tone(), -tone()], axis=1), 16000)
    read_audio(tmp_path / "wired.wav")
    assert "wired.wav: its channels cancel each other" in caplog.text


FORGED_SCRIPT = """
import resource, sys
import numpy as np
from dia_engine.files.audio import read_audio
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_audio(sys.argv[1])
except ValueError as error:
    print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_a_forged_length_costs_no_memory(warm_python, tmp_path):
    """A FLAC header counts up to 2**36 samples: a quarter of a terabyte as float32."""
    path = tmp_path / "forged.flac"
    write_audio(path, tone(), 16000)
    data = bytearray(path.read_bytes())
    data[21] |= 0x0F  # the upper 4 of the 36 bits
    data[22:26] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    message, megabytes = warm_python.run(FORGED_SCRIPT, path).stdout.decode().splitlines()
    assert "forged.flac" in message and int(megabytes) < 200
    seen = []

    def refuse(samples, rate):
        seen.append((samples, rate))
        raise ValueError("too long")

    with pytest.raises(ValueError, match="forged.flac: too long"):
        read_audio(path, refuse)
    assert seen == [(2**36 - 1, 16000)]


# Resampling


@pytest.mark.parametrize("from_rate, to_rate", [(16000, 44100), (48000, 44100), (44100, 16000), (22050, 44100)])
def test_resample_keeps_a_tone(from_rate, to_rate):
    changed = resample(tone(from_rate, from_rate), from_rate, to_rate)
    assert changed.dtype == np.float32 and len(changed) == to_rate
    middle = slice(to_rate // 10, -to_rate // 10)
    np.testing.assert_allclose(changed[middle], tone(to_rate, to_rate)[middle], atol=2e-3)


def test_resample_removes_what_the_lower_rate_cannot_hold():
    changed = resample(tone(44100, 44100, frequency=10_000), 44100, 16000)
    assert np.sqrt(np.square(changed[1600:-1600]).mean()) < 1e-3


def test_resample_same_rate_changes_nothing():
    np.testing.assert_array_equal(resample(tone(), 16000, 16000), tone())


def test_resample_errors():
    with pytest.raises(ValueError, match="too short"):
        resample(tone(1), 192000, 8000)
    with pytest.raises(ValueError, match="from_rate.*got 0"):
        resample(tone(), 0, 8000)
    with pytest.raises(TypeError, match="to_rate.*8000.5"):
        resample(tone(), 16000, 8000.5)


@pytest.mark.parametrize(
    "waveform, error, message",
    [
        ([0.0, 0.1], TypeError, "list"),
        (np.zeros(4, np.int16), TypeError, "int16"),
        (torch.zeros(4, dtype=torch.int64), TypeError, "int64"),
        (np.zeros((2, 4), np.float32), ValueError, r"\[2, 4\]"),
        (np.zeros((), np.float32), ValueError, r"shape \[\]"),
        (torch.zeros(0), ValueError, "empty"),
        (np.array([0, np.nan], np.float32), ValueError, "sample 1 is nan"),
        (torch.tensor([0.0, 0.0, float("-inf")]), ValueError, "sample 2 is -inf"),
        (np.array([1e300]), ValueError, "sample 0 is inf"),
    ],
)
def test_bad_waveforms(tmp_path, waveform, error, message):
    with pytest.raises(error, match=message):
        resample(waveform, 16000, 8000)
    with pytest.raises(error, match=message):
        write_audio(tmp_path / "a.wav", waveform, 16000)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_any_floating_dtype_is_a_waveform(dtype):
    tensor = torch.ones(3).to(dtype).requires_grad_(dtype.itemsize > 1)
    assert audio.as_waveform(tensor).tolist() == [1.0, 1.0, 1.0] and audio.as_waveform(tensor).dtype == np.float32


def test_masked_arrays_are_no_waveforms():
    with pytest.raises(TypeError, match="waveform must be a plain array, got a masked one"):
        audio.as_waveform(np.ma.masked_array(np.zeros(3), mask=[0, 1, 0]))


# Writing


def test_clipping_saturates_and_warns(tmp_path, caplog):
    write_audio(tmp_path / "loud.wav", np.array([1.5, -2.0, 0.25], np.float32), 16000)
    np.testing.assert_allclose(read_audio(tmp_path / "loud.wav")[0], [1, -1, 0.25], atol=1e-4)
    assert "loud.wav" in caplog.text and "2.000" in caplog.text


def test_rate_that_the_format_lacks(tmp_path):
    with pytest.raises(ValueError, match=r"a\.mp3.*96000.*sample rates"):
        write_audio(tmp_path / "a.mp3", tone(), 96000)
    with pytest.raises(ValueError, match="sample_rate.*200001"):
        write_audio(tmp_path / "a.ogg", tone(), 200001)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a.txt", "a", "a.wav.bak", ".wav"])
def test_unknown_extension_lists_the_known(tmp_path, name):
    with pytest.raises(ValueError, match=r"\.wav, \.flac, \.ogg, \.mp3"):
        check_writable(tmp_path / name)


@pytest.mark.parametrize("name", [None, 3, b"a.wav", ["a.wav"]])
def test_a_name_that_is_none(name):
    with pytest.raises(TypeError, match="must be named by a string or a path, got"):
        check_writable(name)


def test_a_name_with_a_null_character():
    with pytest.raises(ValueError, match=r"holds a null character: 'a\\x00.wav'"):
        check_writable("a\0.wav")


def test_check_writable_paths(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.wav").mkdir()
    os.mkfifo(tmp_path / "pipe.wav")
    with pytest.raises(FileNotFoundError, match="missing does not exist"):
        check_writable(tmp_path / "missing" / "a.wav")
    with pytest.raises(ValueError, match="file is not a folder"):
        check_writable(tmp_path / "file" / "a.wav")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        check_writable(tmp_path / "file" / "below" / "a.wav")
    with pytest.raises(ValueError, match="folder.wav is a folder"):
        check_writable(tmp_path / "folder.wav")
    with pytest.raises(ValueError, match="pipe.wav is not an ordinary file"):
        check_writable(tmp_path / "pipe.wav")
    with pytest.raises(OSError, match="name too long"):
        check_writable(tmp_path / ("x" * 300 + ".wav"))
    check_writable(tmp_path / "new.wav")
    check_writable("relative.flac")


PERMISSION_SCRIPT = """
import os, sys, tempfile
from dia_engine.files.audio import check_writable
with tempfile.TemporaryDirectory() as top:
    os.chmod(top, 0o777)
    locked = os.path.join(top, "locked")
    os.mkdir(locked)
    taken = os.path.join(top, "taken.wav")
    open(taken, "w").close()
    os.chmod(taken, 0o444)
    os.chmod(locked, 0o555)
    if os.getuid() == 0:
        os.setresuid(65534, 65534, 0)  # root may write anywhere; the saved id lets us clean up
    for path in (os.path.join(locked, "a.wav"), taken):
        try:
            check_writable(path)
        except PermissionError as error:
            print(error)
    if os.getresuid()[2] == 0:
        os.setresuid(0, 0, 0)
"""


def test_check_writable_permissions(warm_python):
    result = warm_python.run(PERMISSION_SCRIPT)
    folder, file = result.stdout.decode().splitlines()
    assert "a.wav: no permission to write in folder" in folder and "locked" in folder
    assert "no permission to overwrite this file" in file and "taken.wav" in file


FULL_DISK_SCRIPT = """
import os, resource, signal, sys
import numpy as np
from dia_engine.files.audio import write_audio
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    write_audio(sys.argv[1], np.random.default_rng(0).uniform(-1, 1, 60000).astype(np.float32), 16000)
except OSError as error:
    print(type(error).__name__, error.errno, error)
"""


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3"])
def test_disk_that_takes_no_more(warm_python, tmp_path, name):
    """A limit on the file's size stands in for a full disk: the same system call fails in the same place."""
    (tmp_path / name).write_bytes(b"old")
    result = warm_python.run(FULL_DISK_SCRIPT, tmp_path / name)
    message = f"OSError 27 [Errno 27] could not write {tmp_path / name}: File too large\n"
    assert result.stdout.decode() == message, result.stderr
    assert (tmp_path / name).read_bytes() == b"old"
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError(28, "No space left on device")])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_interruption_leaves_no_trace(tmp_path, monkeypatch, failure, call):
    def fail(*arguments):
        raise failure

    (tmp_path / "a.wav").write_bytes(b"old")
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(BaseException, match="No space left|^$") as caught:
        write_audio(tmp_path / "a.wav", tone(), 16000)
    assert caught.type is (KeyboardInterrupt if failure is KeyboardInterrupt else OSError)
    if caught.type is OSError:
        assert f"could not write {tmp_path / 'a.wav'}" in str(caught.value) and caught.value.errno == 28
    assert (tmp_path / "a.wav").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.wav"]


def test_encoder_that_loses_samples(tmp_path, monkeypatch):
    whole = soundfile.SoundFile.write
    monkeypatch.setattr(soundfile.SoundFile, "write", lambda self, data: whole(self, data[: len(data) // 2]))
    with pytest.raises(ValueError, match=r"a\.flac: cannot write 8000 samples.*wrote 4000 samples only"):
        write_audio(tmp_path / "a.flac", tone(), 16000)
    assert not list(tmp_path.iterdir())


def test_overwrites_through_a_link_and_respects_umask(tmp_path):
    (tmp_path / "link.wav").symlink_to(tmp_path / "real.wav")
    mask = os.umask(0o027)
    try:
        write_audio(tmp_path / "link.wav", tone(), 16000)
        write_audio(tmp_path / "link.wav", tone(4000), 16000)
    finally:
        os.umask(mask)
    assert (tmp_path / "link.wav").is_symlink()
    assert len(read_audio(tmp_path / "real.wav")[0]) == 4000
    assert stat.S_IMODE((tmp_path / "real.wav").stat().st_mode) == 0o640
