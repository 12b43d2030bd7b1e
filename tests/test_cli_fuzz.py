"""Odd arguments of the command in many combinations: status 0 or 2, one line of error, never a traceback."""

import os
import random
import shutil
import time

import numpy as np
import pytest
import soundfile

from dia_engine.cli import main
from dia_engine.weights.source import TALKER_FOLDER

SAY = ["say", "--model", "talker", "--seed", "1", "-q", "--max-tokens", "8", "-o", "out.wav"]
SCRIPT = "[S1] Hello."
NUMBERS = ["", "0", "-1", "nan", "-inf", "1e400", "1e39", "abc", "0x10", "9" * 5000, "1.5", "1e-400", "\u0663", "--"]
PARAMS = ["--seed", "--max-tokens", "--cfg-scale", "--temperature", "--top-p", "--top-k", "--chunk-frames"]
PARAMS += ["--min-tokens", "--speed", "--pause", "--tail-silence"]
PLACES = [
    "", "-", ".", "..", "/", "folder", "folder/", "loop", "loop/a.wav", "pipe", "/dev/null", "x" * 300, "a\0b",
    "\udcff", "~nobody-of-this-name/a", "\x1b[31mred", "absent/a.wav", "http://x/y", "a/b/c", "empty",
]  # fmt: skip
TEXTS = ["", " ", "\0", "-x", "--", "\ud800", "\udcff" * 3000, "\0" * 3000, "\u200b", "x" * 2000, "\x1b[31m"]
COMMANDS = [
    [], [""], ["sing"], ["say"], ["info"], ["quantize"], ["quantize", "talker"], ["quantize", "talker", "q"],
    ["say", "--model"], ["say", SCRIPT, SCRIPT],
    [*SAY, SCRIPT, "--stream", "-o", "a.mp3"],
    [*SAY, SCRIPT, "--stream", "--chunk-frames", "2", "--first-chunk-frames", "3"],
    [*SAY, SCRIPT, "--first-chunk-frames=9"],
    [*SAY, SCRIPT, "--prompt-text", "[S1] Yes."],
    [*SAY, SCRIPT, "--prompt", "out.flac", "--prompt-text", "x" * 2000],
    [*SAY, SCRIPT, "--revision", "main"],
    [*SAY, SCRIPT, "--codec-dtype", "int8"],
    [*SAY, SCRIPT, "--model", "half"],
    [*SAY, SCRIPT, "--codec", "half"],
    [*SAY, "--file", "/dev/zero"],
    [*SAY, "--file", "out.flac"],
    ["info", "talker", "--quant", "fp4"], ["info", "talker", "--dtype", "float64"], ["info", "half"],
    ["quantize", "talker", "q", "--quant", "int9"],
    ["quantize", "talker", "folder", "--quant", "int8"],
    ["quantize", "half", "q", "--quant", "nf4"],
    ["quantize", "talker", "q", "--quant", "int8", "--dtype", "float64"],
]  # fmt: skip


def combinations():
    """About two hundred: every place and number once per option that takes one, thinned out by a fixed choice."""
    chance = random.Random(0)
    params = [[*SAY, SCRIPT, f"{param}={value}"] for param in PARAMS for value in NUMBERS]
    places = [
        *([*SAY, SCRIPT, f"{option}={place}"] for option in ("--prompt", "--codec", "--model") for place in PLACES),
        *([*SAY, SCRIPT, "-o", f"{place}.png"] for place in PLACES),
        *([*SAY, SCRIPT, "--stream", f"-o{place}"] for place in PLACES if place != "-"),
        *([*SAY, SCRIPT, "--spectrogram", place] for place in PLACES),
        *([*SAY, SCRIPT, "--subtitles", f"{place}{end}"] for place in PLACES for end in ("", ".srt")),
        *([*SAY, f"--file={place}"] for place in PLACES if place != "pipe"),
        *(["info", place] for place in PLACES),
        *(["quantize", place, "q", "--quant", "int8"] for place in PLACES),
    ]
    texts = [
        *([*SAY, "--", text] for text in TEXTS),
        *([*SAY, "--plan", "--", text] for text in TEXTS),
        *([*SAY, SCRIPT, f"--speakers={text}"] for text in (*TEXTS, "Ann", "=S1", "Ann=S3", "Ann=S1,Ann=S2")),
        *([*SAY, SCRIPT, "--prompt", "out.flac", f"--prompt-text={text}"] for text in TEXTS),
        *([*SAY, SCRIPT, f"{option}={text}"] for option in ("--device", "--dtype", "--quant") for text in TEXTS),
    ]
    return [*COMMANDS, *chance.sample(params, 80), *chance.sample(places, 110), *chance.sample(texts, 60)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    os.mkdir("folder")
    (tmp_path / "folder" / "config.json").mkdir()
    os.symlink("loop", "loop")
    os.mkfifo("pipe")
    (tmp_path / "empty").write_bytes(b"")
    soundfile.write("out.flac", 0.1 * np.sin(np.arange(4000) * 0.1), 16_000)
    shutil.copytree(TALKER_FOLDER, "half")
    os.truncate("half/model.safetensors", 10_000)
    return tmp_path


def test_no_arguments_end_in_a_traceback(folder, capfd):
    cases = combinations()
    assert len(cases) > 200
    for arguments in cases:
        started = time.process_time()
        try:
            status = main(arguments)
        except SystemExit as exit:  # argparse's own way out
            status = exit.code
        captured = capfd.readouterr()
        lines = captured.err.splitlines()
        assert status in (0, 2), (arguments, status)
        if status == 2:
            assert len(lines) == 1 and lines[0].startswith("dia-engine") and lines[0].isprintable(), (arguments, lines)
            assert len(lines[0]) < 6000, (arguments, lines)
        assert time.process_time() - started < 5, arguments
