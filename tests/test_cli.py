"""The command line as a user meets it: a process, its output, its files, its errors."""

import io
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from dia_engine import Engine, __version__
from dia_engine.cli import main
from dia_engine.cli.script import _script_text
from dia_engine.kernels.cpu.build import library
from dia_engine.weights.save import save_weights
from dia_engine.weights.synthetic import random_weights, synthetic_config
from tests.helpers import wav_fields

TEXT = "[S1] Hello. [S2] Hi!"
QUICK = ["--model", "synthetic:tiny", "--max-tokens", "40"]


def run(*arguments) -> subprocess.CompletedProcess:
    """The command in a fresh process. Those of `warm_python` save two seconds."""
    command = [sys.executable, "-m", "dia_engine", *map(str, arguments)]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=300)


def test_say_writes_a_file_and_says_what_it_did(tmp_path):
    done = run("say", TEXT, *QUICK, "--seed", 7, "-o", tmp_path / "out.wav")
    assert done.returncode == 0, done.stderr
    shown = done.stdout.decode()
    assert "out.wav: 0.28 s of sound in" in shown and "x real time" in shown
    assert "seed 7" in shown and "noise, not speech" in shown
    assert soundfile.info(tmp_path / "out.wav").frames == 24 * 512
    assert [path.name for path in tmp_path.iterdir()] == ["out.wav"]


def test_the_three_ways_to_give_a_script_and_the_seed_that_holds(warm_python, tmp_path):
    script = tmp_path / "script.txt"
    script.write_text(TEXT)
    ways = [([TEXT], b""), (["-"], TEXT.encode()), (["--file", script], b"")]
    sounds = []
    for number, (way, stdin) in enumerate(ways):
        path = tmp_path / f"{number}.flac"
        done = warm_python.command("say", *way, *QUICK, "--seed", 3, "-q", "-o", path, stdin=stdin)
        assert done.returncode == 0 and not done.stdout and not done.stderr
        sounds.append(soundfile.read(path)[0])
    assert np.array_equal(sounds[0], sounds[1]) and np.array_equal(sounds[0], sounds[2])


def test_what_an_editor_does_not_show_is_not_spoken():
    for content in (b"\xef\xbb\xbfone\r\n two\r\n\r\n", b"one\n two\n", b"one\r two", b"one\n two"):
        assert _script_text(content, "x") == "one\n two"
    assert _script_text(b" one \t", "x") == " one \t", "spaces are the user's"


def test_a_script_that_begins_with_a_dash(warm_python, tmp_path):
    for number, way in enumerate((["--", "-Hello"], ["-", "--"], ["- Hello"])):
        say = ["say", *QUICK, "--seed", 1, "-q", "-o", tmp_path / f"{number}.wav"]
        done = warm_python.command(*say, *way, stdin=b"-Hello")
        assert done.returncode == 0 and not done.stderr, done.stderr


def test_a_file_that_is_replaced_is_named(tmp_path, capsys, monkeypatch):
    library()  # before there is another home, to which it would be compiled anew
    monkeypatch.setenv("HOME", str(tmp_path))
    say = ["say", TEXT, *QUICK, "--seed", "1", "-o", "~/out.wav", "--spectrogram", "~/out.png"]
    assert main(say) == 0 and "exists" not in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.png", "out.wav"]
    assert main(say) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["~/out.wav exists and will be replaced", "~/out.png exists and will be replaced"]
    assert main([*say, "-q"]) == 0 and not capsys.readouterr().out


@pytest.mark.parametrize(
    ("closed", "arguments", "status"),
    [
        ("<&- 1>&- 2>&-", [TEXT, "-o", "a.wav"], 0),
        ("<&-", ["-", "-o", "a.wav"], 2),
        ("1>&-", [TEXT, "--stream", "-o", "-"], 2),
    ],
)
def test_closed_standard_streams(tmp_path, closed, arguments, status):
    line = shlex.join([sys.executable, "-m", "dia_engine", "say", *QUICK, "--seed", "1", *arguments])
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        ["sh", "-c", f"{line} {closed}"], cwd=tmp_path, env=environment, capture_output=True, timeout=300
    )
    assert done.returncode == status, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == (["a.wav"] if status == 0 else [])
    if status:
        assert len(done.stderr.splitlines()) == 1 and b"is closed" in done.stderr
    else:
        assert soundfile.info(tmp_path / "a.wav").frames == 24 * 512, "nothing was printed into the file"


def test_info_without_standard_output(capsys, monkeypatch):
    with open("/dev/full", "w") as full:
        for stream, message in ((None, "standard output is closed"), (full, "No space left")):
            monkeypatch.setattr(sys, "stdout", stream)
            assert main(["info", "synthetic:tiny"]) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert message in line


def test_an_error_that_standard_error_has_no_room_for_keeps_its_status():
    line = shlex.join([sys.executable, "-m", "dia_engine", "say", "--top-p", "2", TEXT])
    assert subprocess.run(["sh", "-c", f"{line} 2>/dev/full"], timeout=300).returncode == 2


@pytest.mark.parametrize("name", ["\u65e5.wav", os.fsdecode(b"\xe9.wav")], ids=["another script", "not UTF-8"])
def test_a_name_that_the_console_cannot_show(tmp_path, monkeypatch, name):
    console = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(console, encoding="cp1252"))
    assert main(["say", TEXT, *QUICK, "--seed", "1", "-o", str(tmp_path / name)]) == 0 and (tmp_path / name).exists()
    assert ascii(name)[1:-1].encode() in console.getvalue()


def test_every_parameter_arrives(tmp_path, capsys):
    tone = (0.3 * np.sin(np.arange(9000) * 0.05)).astype(np.float32)
    soundfile.write(tmp_path / "voice.ogg", tone, 44100)
    say = [
        "say", TEXT, *QUICK, "--seed", 1, "--cfg-scale", 2, "--temperature", 0.8, "--top-p", 0.9, "--top-k", "all",
        "--prompt", tmp_path / "voice.ogg", "--prompt-text", "[S1] Before.", "--dtype", "float32", "--device", "cpu",
        "-o", tmp_path / "out.wav", "--max-tokens", "60",
    ]  # fmt: skip
    assert main(list(map(str, say))) == 0
    assert "float32 on cpu" in capsys.readouterr().out


def test_a_prompt_of_each_speaker(tmp_path, capsys):
    soundfile.write(tmp_path / "a.wav", 0.3 * np.sin(np.arange(4000) * 0.05), 44100)
    sample = str(tmp_path / "a.wav")
    samples = ["--prompt", f"S1={sample}", "--prompt", f"S2={sample}"]
    said = ["--prompt-text", "S1=Before.", "--prompt-text", "S2=[S2] After."]
    assert main(["say", TEXT, *QUICK, "--seed", "1", *samples, *said, "-o", str(tmp_path / "out.wav")]) == 0
    made = soundfile.read(tmp_path / "out.wav", dtype="float32")[0]
    engine = Engine.load("synthetic:tiny", device="cpu")
    wanted = engine.generate(
        TEXT, max_tokens=int(QUICK[-1]), seed=1, audio_prompt={"S1": sample, "S2": sample},
        audio_prompt_text={"S1": "Before.", "S2": "After."},
    )  # fmt: skip
    engine.close()
    np.testing.assert_allclose(made, wanted, atol=1e-4)


def test_info(tmp_path, capsys):
    shown = run("info", "synthetic:full").stdout.decode()
    assert "1,611,160,576" in shown and "decoder MLP" in shown and "3072 rows" in shown
    assert f"dia-engine {__version__}, Python 3." in shown and f"torch {torch.__version__}" in shown
    assert (
        re.search(r"^CPU         .+, cores for this process: \d+,", shown, re.MULTILINE) and "\nGPU         " in shown
    )
    config = synthetic_config("synthetic:tiny")
    save_weights(random_weights(config, dtype=torch.float16, device="cpu"), config, tmp_path / "model")
    assert main(["info", str(tmp_path / "model"), "--dtype", "float32"]) == 0
    shown = capsys.readouterr().out
    assert "transformers layout" in shown and "float16" in shown and "MB   in" in shown


def test_help_needs_no_torch():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "dia_engine", "say", "--help"], capture_output=True, timeout=300
    )
    assert done.returncode == 0 and b"--temperature" in done.stdout
    assert b" torch\n" not in done.stderr


def test_version_needs_no_torch():
    command = [sys.executable, "-X", "importtime", "-m", "dia_engine", "--version"]
    done = subprocess.run(command, capture_output=True, timeout=300, text=True)
    assert done.returncode == 0 and done.stdout == f"dia-engine {__version__}\n"
    assert " torch\n" not in done.stderr


@pytest.fixture(scope="module")
def broken(tmp_path_factory) -> Path:
    """A folder of things that go wrong."""
    folder = tmp_path_factory.mktemp("broken")
    config = synthetic_config("synthetic:tiny")
    weights = random_weights(config, dtype=torch.float32, device="cpu")
    save_weights(weights, config, folder / "truncated")
    file = folder / "truncated" / "model.safetensors"
    os.truncate(file, file.stat().st_size // 2)
    shutil.copytree(folder / "truncated", folder / "no_decoder")
    (folder / "no_decoder" / "config.json").write_text('{"encoder_config": {}}')
    (folder / "text.wav").write_text("not a sound")
    (folder / "latin.txt").write_bytes(b"caf\xe9")
    soundfile.write(folder / "empty.wav", np.zeros(0, np.float32), 44100)
    soundfile.write(folder / "long.wav", np.zeros(44100 * 60, np.float32), 44100)
    soundfile.write(folder / "half.wav", np.zeros(44100, np.float32), 44100)
    os.truncate(folder / "half.wav", 44100)
    soundfile.write(folder / "fast.wav", np.zeros(44100, np.float32), 384_000)
    (folder / "utf16.txt").write_text(TEXT, encoding="utf-16")
    (folder / "bom.txt").write_bytes(b"\xef\xbb\xbf\r\n")
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([""], "text must not be empty"),
        (["x" * 1025, "--no-split"], "text has 1025 bytes"),
        ([], "give the script once"),
        ([TEXT, "--file", "a.txt"], "give the script once"),
        (["--file", "absent.txt"], "absent.txt"),
        (["--file", "latin.txt"], "latin.txt is not UTF-8 text"),
        ([TEXT, "--dtype", "int3"], "dtype must be one of float32, float16, bfloat16, got 'int3'"),
        ([TEXT, "--device", "gpu"], "device 'gpu' cannot be used here"),
        ([TEXT, "--temperature", "-1"], "temperature must be in [0, 1e+06], got -1.0"),
        ([TEXT, "--temperature", "nan"], "temperature must be finite, got nan"),
        ([TEXT, "--temperature", "hot"], "argument --temperature: invalid float value: 'hot'"),
        ([TEXT, "--top-p", "1.5"], "top_p must be in (0, 1], got 1.5"),
        ([TEXT, "--top-k", "0"], "argument --top-k: must be at least 1, or all, got 0"),
        ([TEXT, "--top-k", "some"], "invalid integer or 'all' value: 'some'"),
        ([TEXT, "--max-tokens", "10"], "max_tokens must be at least 17"),
        ([TEXT, "--max-tokens", "5000"], "max_tokens must be at most 3072"),
        ([TEXT, "--seed", "-1"], "seed must be in [0, 2^63), got -1"),
        ([TEXT, "--prompt", "absent.wav"], "no sound file at absent.wav"),
        ([TEXT, "--prompt", "S1=absent.wav", "--prompt-text", "S1=x"], "no sound file at absent.wav"),
        ([TEXT, "--prompt", "S1=a.wav"], "must both be given by speaker"),
        (
            [TEXT, "--prompt", "S1=a.wav", "--prompt", "b.wav"],
            "--prompt is given once, or for each speaker as S1=... and",
        ),
        ([TEXT, "--prompt", "S1=a.wav", "--prompt", "S1=b.wav"], "--prompt of S1 is given twice"),
        ([TEXT, "--prompt", "text.wav"], "text.wav cannot be read as sound"),
        ([TEXT, "--prompt", "empty.wav"], "empty.wav: waveform is empty"),
        ([TEXT, "--prompt", ""], "the name of the sound file is empty"),
        ([TEXT, "-o", ""], "the name of the file to write is empty"),
        ([TEXT, "--codec-dtype", "x"], "--codec-dtype must be one of"),
        ([TEXT, "--device", "hpu"], "device 'hpu' cannot be used here"),
        ([TEXT, "--prompt", "long.wav"], "audio prompt has 5168 frames, max_tokens leaves room for"),
        ([TEXT, "--prompt-text", "[S1] Hm."], "there is no audio_prompt"),
        ([TEXT, "--model", "synthetic:huge"], "no synthetic model 'huge'"),
        ([TEXT, "--model", "./absent"], "no model at ./absent"),
        ([TEXT, "--model", "truncated"], "model.safetensors: truncated"),
        ([TEXT, "--model", "no_decoder"], "decoder_config missing"),
        ([TEXT, "--codec", "./absent"], "no codec at"),
        ([TEXT, "-o", "absent/out.wav"], "absent does not exist; create it first"),
        ([TEXT, "-o", "out.xyz"], "cannot tell the sound format from extension '.xyz'"),
        ([TEXT, "-o", "truncated.wav/out.wav"], "truncated.wav"),
        ([TEXT, "-o", "-"], "-o - need --stream"),
        ([TEXT, "--chunk-frames", "9"], "need --stream"),
        ([TEXT, "--stream", "-o", "out.flac"], "--stream writes wav files"),
        ([TEXT, "--stream", "-o", "absent/out.wav"], "absent does not exist; create it first"),
        ([TEXT, "--stream", "--chunk-frames", "0"], "chunk_frames must be at least 1, got 0"),
        ([TEXT, "--codec-dtype", "int3"], "dtype must be one of float32, float16, bfloat16, got 'int3'"),
        (["-xyz"], "unrecognized arguments: -xyz; a script that begins with - goes behind --"),
        (["-hello"], "a script that begins with - goes behind --"),  # -h, and what cannot follow it
        (["-for you"], "no script file at or you; a script that begins with - goes behind --"),
        (["--file", "utf16.txt"], "utf16.txt is not UTF-8 text but UTF-16"),
        (["--file", "bom.txt"], "text must not be empty"),
        (["\u200b"], "text must not be empty"),
        ([TEXT, "--temperature", "1e400"], "temperature must be finite, got inf"),
        ([TEXT, "--seed", "9" * 400], "seed must be in [0, 2^63), got 9999"),
        ([TEXT, "--max-tokens", "9" * 4000], "max_tokens must be at most 3072, the decoder's positions, got 9999"),
        ([TEXT, "--prompt", "https://example.com/v.wav"], "https://example.com/v.wav is an address"),
        ([TEXT, "--prompt", "half.wav"], "half.wav: damaged: its header counts 88200 bytes of sound, only"),
        ([TEXT, "--prompt", "fast.wav"], "fast.wav: the sample rate must be in 1..192000 Hz, got 384000"),
        (["--file", ""], "the name of the script file is empty"),
        (["--file", "/proc/self/mem"], "/proc/self/mem: Input/output error"),
        ([TEXT, "--subtitles", ""], "the name of the file to write is empty"),
        ([TEXT, "--subtitles", "a\0.srt"], "holds a null character"),
        ([TEXT, "--spectrogram", ""], "the name of the file to write is empty"),
        ([TEXT, "--plan", "--prompt-text", "[S1] Hm."], "there is no audio_prompt"),
        (["[S1] [S2]", "--plan"], "text holds nothing but speaker tags"),
        (["[S1] [S2]"], "text holds nothing but speaker tags"),
        ([TEXT, "--prompt", "fast.wav", "--prompt-text", "x" * 2000], "audio_prompt_text has 2000 bytes"),
        ([TEXT, "--speakers", "Ann=S1,Ann=S2"], "speaker Ann is given twice"),
        ([TEXT, "--spectrogram", "absent/a.png"], "absent does not exist; create it first"),
        ([TEXT, "-o", "~nobody-of-this-name/out.wav"], "~nobody-of-this-name does not exist"),
        ([TEXT, "--no-such-option"], "unrecognized arguments: --no-such-option"),
    ],
)
def test_a_mistake_is_one_line_and_no_file(broken, arguments, message, capsys, monkeypatch):
    monkeypatch.chdir(broken)
    model = [] if "--model" in arguments else QUICK[:2]
    before = sorted(path.name for path in broken.iterdir())
    try:
        status = main(["say", *arguments, *model])
    except SystemExit as exit:  # argparse's own way out
        status = exit.code
    shown = capsys.readouterr()
    lines = shown.err.splitlines()
    assert status == 2 and len(lines) == 1 and message in lines[0], lines
    assert not shown.out
    assert sorted(path.name for path in broken.iterdir()) == before


@pytest.mark.parametrize("arguments", [[], ["sing"], ["say", TEXT, "--top-p", "2"], ["info", "./absent"]])
def test_a_mistake_is_one_line_of_the_process(warm_python, arguments):
    done = warm_python.command(*arguments)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and not done.stdout


def test_a_full_disk_leaves_the_old_file(warm_python, tmp_path):
    target = tmp_path / "out.wav"
    target.write_bytes(b"the old file")
    # A limit on the size of files is what a full disk looks like to a writer.
    limited = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192));"
        "from dia_engine.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    done = warm_python.run(limited, "say", TEXT, *QUICK, "-q", "--seed", "1", "-o", target)
    lines = done.stderr.decode().splitlines()
    assert done.returncode == 2 and len(lines) == 1 and f"could not write {target}" in lines[0], lines
    assert target.read_bytes() == b"the old file" and list(tmp_path.iterdir()) == [target]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc to see how far a process is")
@pytest.mark.parametrize("moment", ["while torch is loaded", "while it speaks"])
def test_ctrl_c_leaves_nothing_and_no_traceback(tmp_path, moment):
    target = tmp_path / "out.wav"
    if moment == "while it speaks":
        process = speak_for_long("-o", target, program=["-c", TELLS_STEPS], stdout=subprocess.PIPE)
        assert process.stdout.read(5) == b"step\n"
    else:
        process = speak_for_long("-o", target)
        while "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text():
            time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130, errors
    assert b"Traceback" not in errors and b"interrupted" in errors
    assert list(tmp_path.iterdir()) == []


def samples(path) -> np.ndarray:
    return soundfile.read(path, dtype="int16")[0].astype(int)


def test_streams_to_a_file_and_to_a_pipe_are_what_say_writes(tmp_path, capsys):
    say = ["say", TEXT, *QUICK, "--seed", "7"]
    assert main([*say, "-q", "-o", str(tmp_path / "whole.wav")]) == 0
    whole = samples(tmp_path / "whole.wav")
    assert main([*say, "--stream", "--chunk-frames", "5", "-o", str(tmp_path / "out.wav")]) == 0
    shown = capsys.readouterr()
    done = run(*say, "--stream", "-o", "-")
    piped = np.frombuffer(done.stdout, dtype="<i2").astype(int)
    for found in (samples(tmp_path / "out.wav"), piped):
        assert found.shape == whole.shape and np.abs(found - whole).max() <= 1, "a sample may round the other way"
    data = (tmp_path / "out.wav").read_bytes()
    assert wav_fields(data) == (
        b"RIFF", len(data) - 8, b"WAVE", b"fmt ", 16, 1, 1, 44_100, 88_200, 2, 16, b"data", len(data) - 44
    )  # fmt: skip
    assert not shown.out
    for summary, name in ((shown.err, "out.wav"), (done.stderr.decode(), "standard output")):
        assert f"{name}: 0.28 s of sound in" in summary
        assert re.search(r"the first of it after \d+\.\d{3} s$", summary, re.MULTILINE)
    assert main([*say, "-q", "--stream", "-o", str(tmp_path / "out.wav")]) == 0
    assert not "".join(capsys.readouterr())


TELLS_STEPS = """
import os, sys
from dia_engine.cli import main
from dia_engine.runtime.runner import ModelRunner

make_steps = ModelRunner._steps

def told(*args):
    make_steps(*args)
    os.write(1, b"step\\n")

ModelRunner._steps = told
sys.exit(main(sys.argv[1:]))
"""


def speak_for_long(*arguments, program=("-m", "dia_engine"), **kwargs) -> subprocess.Popen:
    params = ["--model", "synthetic:tiny", "--seed", "2"]  # this seed does not end by itself, but after 3072 steps
    return subprocess.Popen(
        [sys.executable, *program, "say", TEXT, *params, *map(str, arguments)],
        stderr=subprocess.PIPE,
        # A test run in the background may be told to ignore Ctrl-C, and so would this process.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        **kwargs,
    )


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_streamed_file_is_valid_at_any_moment(tmp_path, how):
    target = tmp_path / "out.wav"
    process = speak_for_long("--stream", "-o", target)
    while not target.exists() or target.stat().st_size < 50_000:
        time.sleep(0.005)
        if target.exists() and target.stat().st_size >= 44:
            soundfile.read(target)
    process.send_signal(how)
    _, errors = process.communicate(timeout=300)
    seconds = len(samples(target)) / 44100
    assert seconds > 0.2
    if how == signal.SIGINT:
        assert process.returncode == 130 and f"interrupted, {seconds:.2f} s of sound are in {target}" in errors.decode()


def test_a_player_that_goes_away_ends_it_quietly(tmp_path):
    process = speak_for_long("--stream", "-o", "-", stdout=subprocess.PIPE)
    assert len(process.stdout.read(5000)) == 5000
    process.stdout.close()
    errors = process.stderr.read()
    assert process.wait(timeout=300) == 0 and not errors


def test_a_command_leaves_torch_the_threads_that_it_has():
    """A small model's steps take one by themselves, and workers the others."""
    count = "import torch; print(torch.get_num_threads())"
    command = "from dia_engine.cli import main; assert main(['info', 'talker']) == 0; "
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    counts = []
    for script in (count, command + count):
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        counts.append(done.stdout.splitlines()[-1])
    assert counts[0] == counts[1]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nSee the docs"), "CUDA out of memory."),
        (MemoryError(), "out of memory"),
        (RuntimeError("the model's numbers are NaN"), "the model's numbers are NaN"),
        (OSError(28, "No space left on device", "a.wav"), "a.wav: No space left on device"),
    ],
)
@pytest.mark.parametrize("streams", [[], ["--stream"]])
def test_what_fails_on_the_way_is_one_line(tmp_path, monkeypatch, capsys, error, message, streams):
    def fail(*arguments):
        raise error

    monkeypatch.setattr("dia_engine.model.dia.DiaModel.step", fail)
    monkeypatch.chdir(tmp_path)
    assert main(["say", TEXT, *map(str, QUICK), *streams]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"dia-engine: error: {message}")
    assert not list(tmp_path.iterdir())
