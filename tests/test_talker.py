"""The small model that comes with the engine: it loads by name, brings its codec and defaults along, and speaks."""

import json
import re
import shutil
import struct
import zlib

import numpy as np
import pytest

from dia_engine import Engine
from dia_engine.cli import main
from dia_engine.files.spectrogram import draw_spectrogram
from dia_engine.weights.save import quantize_model
from dia_engine.weights.source import TALKER_FOLDER, find_bundled_codec, load_generation_defaults
from tools.talker.domain import DEMO, WORDS, held_out_scripts, training_sentences, words_of
from tools.talker.evaluate import rows_of_sound
from tools.talker.hearing import pitch, word_errors


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.load("talker", device="cpu")


def test_training_never_sees_what_is_held_out():
    learnt = {tuple(words_of(sentence)) for sentence in training_sentences(4500)}
    scripts = held_out_scripts(100)
    held_out = [tuple(words_of(sentence)) for script in scripts for _, sentence in script.turns]
    assert len(set(held_out)) == len(held_out) >= 100 and not learnt & set(held_out)
    demo = re.findall(r"[A-Z][^.?\]]*[.?]", DEMO)
    assert len(demo) == 3 and {tuple(words_of(sentence)) for sentence in demo} <= learnt, "the demo is no test"
    assert set().union(*learnt, *held_out) == set(WORDS)


def test_word_errors_are_edits():
    assert word_errors("i see cats".split(), "i see two cats".split()) == 1
    assert word_errors("no".split(), "yes i can".split()) == 3
    assert word_errors([], ["yes"]) == word_errors(["yes"], []) == 1


def test_it_is_small():
    assert sum(path.stat().st_size for path in TALKER_FOLDER.rglob("*.safetensors")) <= 12e6


def test_it_brings_codec_and_defaults(engine):
    assert engine.sample_rate == 16000 and engine.codec.num_codebooks == engine.config.decoder.num_channels
    assert engine.defaults == load_generation_defaults(TALKER_FOLDER) and engine.defaults
    assert Engine.load("synthetic:tiny", load_dac=False).defaults == {}


def test_it_says_the_demo_and_ends(engine):
    sound = engine.generate(DEMO, seed=1)
    frames = len(sound) // engine.codec.hop_length
    assert frames < rows_of_sound(engine), "it must end by itself"
    assert 2.0 < len(sound) / engine.sample_rate < 7.0
    assert 0.02 < np.sqrt(np.mean(sound**2)) < 0.3


def test_its_voices_differ(engine):
    low, high = (pitch(engine.generate(f"{tag} I can speak very well.", seed=1)) for tag in ("[S1]", "[S2]"))
    assert 80 < low < 140 < high < 220


def test_own_defaults_stand_for_what_is_left_out_and_yield_to_a_caller(engine):
    text, seed = "[S1] Hello, robot.", 3
    shown = engine.generate(text, seed=seed, **engine.defaults)
    assert np.array_equal(engine.generate(text, seed=seed), shown)
    wild = engine.generate(text, seed=seed, cfg_scale=3.0, temperature=1.2, top_p=0.95, cfg_filter_top_k=45)
    plain = Engine(engine.config, engine.weights, engine.codec).generate(text, seed=seed)
    assert np.array_equal(wild, plain), "the reference's values, given by a caller, are not taken for defaults"
    assert not np.array_equal(wild, shown)


def test_a_quantized_copy_keeps_its_codec_and_defaults(engine, tmp_path):
    quantize_model("talker", tmp_path / "small", "int8", dtype="float32")
    copy = Engine.load(tmp_path / "small")
    assert copy.sample_rate == 16000 and copy.defaults == engine.defaults
    same = Engine.load("talker", quant="int8", dtype="float32")
    text = "[S2] I see two cats."
    assert np.array_equal(copy.generate(text, seed=2), same.generate(text, seed=2))


def test_a_folder_of_that_name_does_not_hide_it(tmp_path, monkeypatch):
    (tmp_path / "talker").mkdir()
    monkeypatch.chdir(tmp_path)
    assert Engine.load("talker").sample_rate == 16000
    with pytest.raises(FileNotFoundError, match="no config.json in"):
        Engine.load("./talker")


def test_a_revision_is_refused():
    with pytest.raises(ValueError, match="revision 'main' has no meaning for talker, which comes with the engine"):
        Engine.load("talker", revision="main")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"dia_engine": {"warmth": 1}}', "dia_engine knows max_tokens, .* got warmth"),
        ('{"dia_engine": {"temperature": -1}}', r"generation_config.json: temperature must be in .* got -1"),
        ('{"dia_engine": {"temperature": "hot"}}', "temperature must be a number, got 'hot'"),
        ('{"dia_engine": 3}', "dia_engine must be a JSON object, got 3"),
        ("{", "generation_config.json is not JSON: "),
    ],
)
def test_bad_defaults_are_told(tmp_path, content, message):
    folder = tmp_path / "model"
    shutil.copytree(TALKER_FOLDER, folder)
    (folder / "generation_config.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        Engine.load(folder)


def test_transformers_own_keys_change_nothing(tmp_path):
    (tmp_path / "generation_config.json").write_text(json.dumps({"temperature": 1.8, "top_p": 0.9}))
    assert load_generation_defaults(tmp_path) == {}
    assert find_bundled_codec(tmp_path) is None


def test_a_script_that_is_too_long(engine):
    with pytest.raises(ValueError, match="text has .* bytes"):
        engine.generate("[S1] " + "Hello, robot. " * 40, split=False)


def test_the_command_draws_what_it_says(tmp_path, capsys):
    sound, picture = tmp_path / "demo.wav", tmp_path / "demo.png"
    assert main(["say", "--model", "talker", "--seed", "1", "-o", str(sound), "--spectrogram", str(picture), DEMO]) == 0
    assert "toy" in capsys.readouterr().out
    width, height = struct.unpack(">II", picture.read_bytes()[16:24])
    assert height == 256 and width > 300


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.jpg", "is a .png file, got"),
        ("absent/a.png", "absent does not exist"),
        ("folder.png", "is a folder"),
    ],
)
def test_the_command_refuses_a_bad_picture(tmp_path, capsys, name, message):
    (tmp_path / "folder.png").mkdir()
    output = str(tmp_path / "demo.wav")
    assert main(["say", "--model", "talker", "-o", output, "--spectrogram", str(tmp_path / name), DEMO]) == 2
    assert message in capsys.readouterr().err


def test_a_spectrogram_shows_a_tone_where_it_is(tmp_path):
    rate = 16000
    draw_spectrogram(tmp_path / "tone.png", np.sin(2 * np.pi * 2000 * np.arange(rate) / rate), rate)
    data = (tmp_path / "tone.png").read_bytes()
    _, height = struct.unpack(">II", data[16:24])
    at = data.index(b"IDAT")
    rows = np.frombuffer(zlib.decompress(data[at + 4 : at + 4 + struct.unpack(">I", data[at - 4 : at])[0]]), np.uint8)
    brightness = rows.reshape(height, -1)[:, 1:].astype(int).sum(1)
    assert abs(height - 1 - brightness.argmax() - 2000 / 8000 * height) <= 2
    with pytest.raises(ValueError, match=r"got shape \[0\]"):
        draw_spectrogram(tmp_path / "none.png", np.zeros(0), rate)


def test_a_long_spectrogram_is_computed_some_columns_at_a_time(tmp_path, monkeypatch):
    transforms, transform = [], np.fft.rfft
    monkeypatch.setattr(np.fft, "rfft", lambda frames, size: transforms.append(len(frames)) or transform(frames, size))
    sound = np.sin(np.arange(8 * 16000) * 0.3)
    draw_spectrogram(tmp_path / "a.png", sound, 16000)
    assert max(transforms) <= 1000 < sum(transforms)
    monkeypatch.setattr("dia_engine.files.spectrogram.COLUMNS", 10**6)
    draw_spectrogram(tmp_path / "b.png", sound, 16000)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
