"""The examples, run as they are with the talker. Those of the server are in `tests/server/test_examples.py`."""

import runpy
import sys
from types import ModuleType

import numpy as np
import pytest
import soundfile

from dia_engine import Engine
from tests.helpers import ROOT
from tools.talker.hearing import pitch

EXAMPLES = ROOT / "examples"
HERE = {
    "basic.py",
    "batch.py",
    "llm_to_speech.py",
    "long_dialogue.py",
    "stream_to_speakers.py",
    "voice_cloning.py",
}
WITH_A_SERVER = {"elevenlabs_http.py", "openai_http.py"}


@pytest.fixture(scope="module")
def talker():
    with Engine.load("talker") as engine:
        yield engine


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run an example in an empty folder -> the names in it, and what was printed."""

    def run_example(name, *arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        values = runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return values, capsys.readouterr().out

    return run_example


def sound_of(path):
    samples, _ = soundfile.read(path, dtype="float32")
    return samples


def test_every_example_is_run():
    clients = (ROOT / "tests" / "server" / "clients" / "run.py").read_text(encoding="utf-8")
    with_stock_clients = {path.name for path in EXAMPLES.iterdir() if f'"{path.name}"' in clients}
    found = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".sh")}
    assert found == HERE | WITH_A_SERVER | with_stock_clients
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert not [name for name in found if f"]({name})" not in listed]


def test_basic(run, talker):
    values, printed = run("basic.py")
    expected = talker.generate(values["script"], seed=1)
    np.testing.assert_allclose(sound_of("basic.wav"), expected, atol=1 / 32767)
    assert f"{len(expected) / talker.sample_rate:.2f} s, seed 1, ended by stop" in printed


def test_streaming_to_the_speakers(run, talker, monkeypatch):
    """Without a sound card: a module in sounddevice's place writes to a file what it would play."""

    class FileForSpeakers(soundfile.SoundFile):
        def __init__(self, samplerate, channels, dtype):
            assert dtype == "float32"
            super().__init__("played.wav", "w", samplerate=samplerate, channels=channels, subtype="FLOAT")

    stand_in = ModuleType("sounddevice")
    stand_in.OutputStream = FileForSpeakers
    monkeypatch.setitem(sys.modules, "sounddevice", stand_in)
    values, printed = run("stream_to_speakers.py")
    np.testing.assert_allclose(sound_of("played.wav"), talker.generate(values["script"], seed=1), atol=1e-5)
    assert "first audio after" in printed


def test_batch(run, talker):
    values, printed = run("batch.py")
    for number, (script, params) in enumerate(zip(values["scripts"], [{}, {"temperature": 0.8}, {}], strict=True)):
        alone = talker.generate(script, seed=number + 1, **params)
        np.testing.assert_allclose(sound_of(f"batch-{number}.wav"), alone, atol=1 / 32767)
    assert printed.count("batch-") == 3


def test_voice_cloning(run):
    _, printed = run("voice_cloning.py")
    for name in ("voice.wav", "cloned-0.wav", "cloned-1.wav"):
        assert 140 < pitch(sound_of(name)) < 220, "the second speaker's voice"
    assert printed.count("cloned-") == 2


def test_a_voice_of_ones_own_has_a_model_and_a_transcript(run):
    with pytest.raises(SystemExit, match="give a model, a voice file and its transcript"):
        run("voice_cloning.py", "talker")


def test_a_long_dialogue(run, talker):
    values, printed = run("long_dialogue.py")
    result = values["result"]
    assert [piece.text for piece in result.pieces] == [piece.text for piece in values["plan"].pieces]
    assert abs(len(sound_of("long.mp3")) / talker.sample_rate - result.duration) < 0.2
    assert result.duration > 20 and printed.count("tries:") == len(result.pieces) > 9


def test_a_language_model_to_speech(run, talker):
    _, printed = run("llm_to_speech.py")
    chunks = [float(line.split()[2]) for line in printed.splitlines()]
    sound = sound_of("answer.wav")
    assert len(chunks) > 2 and abs(sum(chunks) - len(sound) / talker.sample_rate) < 0.01 * len(chunks)
    assert 80 < pitch(sound) < 140, "the first speaker's voice"
