"""`loudness` as callers of `generate`, `stream`, `say` and `batch` ask for it."""

import json
import sys

import numpy as np
import pytest
import soundfile

from dia_engine import Engine
from dia_engine.cli import main

SHORT = "[S1] Can you count? [S2] Yes, my friend."
LONG = SHORT * 5


@pytest.fixture
def measured():
    pytest.importorskip("pyloudnorm", reason='needs pyloudnorm: pip install -e ".[loudness]"')
    from dia_engine.audio.loudness import loudness

    return loudness


def test_whole_sounds_are_at_the_loudness_asked_for(talker, measured):
    plain = talker.generate([SHORT, LONG], seed=5, details=True)
    asked = talker.generate([SHORT, LONG], seed=5, loudness=-30, details=True)
    for before, after in zip(plain, asked, strict=True):
        assert measured(after.audio, talker.sample_rate) == pytest.approx(-30, abs=0.01)
        assert np.array_equal(before.codes, after.codes) and before.duration == after.duration
        gain = np.abs(after.audio).max() / np.abs(before.audio).max()
        assert np.abs(after.audio - gain * before.audio).max() < 1e-5
    edited = talker.generate(LONG, seed=5, loudness=-30, speed=0.8, pause=2.0, tail_silence=1.0)
    assert measured(edited, talker.sample_rate) == pytest.approx(-30, abs=0.01)


def test_mistakes_are_told_before_any_work(talker, measured, monkeypatch):
    monkeypatch.setattr(talker, "run_requests", None)
    for value, error, message in (
        (1, ValueError, r"loudness must be in \[-70, 0\] LUFS, got 1"),
        (-71, ValueError, "got -71"),
        (float("nan"), ValueError, "got nan"),
        ("-16", TypeError, "loudness must be a number, got '-16'"),
        (True, TypeError, "loudness must be a number, got True"),
    ):
        with pytest.raises(error, match=message):
            talker.generate(SHORT, loudness=value)
    for call in (talker.stream, talker.astream):
        with pytest.raises(ValueError, match="loudness is measured over a whole sound"):
            call(SHORT, loudness=-16)
    with (
        Engine.load("talker", device="cpu", load_dac=False) as mute,
        pytest.raises(ValueError, match="loudness is about sound, and this engine has no codec"),
    ):
        mute.generate(SHORT, loudness=-16)


def test_without_the_package_that_measures(talker, monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "pyloudnorm", None)
    wanted = "loudness needs more packages: pip install 'dia-engine[loudness]'"
    with pytest.raises(RuntimeError) as told:
        talker.generate(SHORT, loudness=-16)
    assert str(told.value).endswith(wanted)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scripts.jsonl").write_text(json.dumps({"id": "a", "text": SHORT}))
    for command in (["say", SHORT, "-o", "a.wav"], ["batch", "scripts.jsonl", "-o", "out"]):
        assert main([*command, "--model", "talker", "--loudness", "-16"]) == 2
        assert capsys.readouterr().err.rstrip().endswith(wanted)
    assert [path.name for path in tmp_path.iterdir()] == ["scripts.jsonl"]


def test_say(measured, tmp_path, capsys):
    say = ["say", SHORT, "--model", "talker", "--seed", "5", "-o", str(tmp_path / "a.wav"), "--loudness", "-31"]
    assert main(say) == 0
    assert measured(*soundfile.read(tmp_path / "a.wav", dtype="float32")) == pytest.approx(-31, abs=0.05)
    (tmp_path / "a.wav").unlink()
    assert main([*say, "--stream"]) == 2 and not list(tmp_path.iterdir())
    assert "--loudness is measured over the whole sound" in capsys.readouterr().err


def test_batch(measured, tmp_path):
    lines = [{"id": "own", "text": SHORT, "seed": 5, "loudness": -35}, {"id": "common", "text": SHORT, "seed": 5}]
    lines += [{"id": "bad", "text": SHORT, "loudness": 3}, {"id": "plain", "text": SHORT, "seed": 5, "loudness": None}]
    (tmp_path / "scripts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    batch = ["batch", str(tmp_path / "scripts.jsonl"), "-o", str(tmp_path / "out"), "--model", "talker", "-q"]
    assert main([*batch, "--loudness", "-31"]) == 1
    found = {
        name: measured(*soundfile.read(tmp_path / "out" / f"{name}.wav", dtype="float32")) for name in ("own", "common")
    }
    assert found == {"own": pytest.approx(-35, abs=0.05), "common": pytest.approx(-31, abs=0.05)}
    assert measured(*soundfile.read(tmp_path / "out" / "plain.wav", dtype="float32")) > -29
    assert "loudness must be in [-70, 0] LUFS, got 3" in (tmp_path / "out" / "manifest.jsonl").read_text()
