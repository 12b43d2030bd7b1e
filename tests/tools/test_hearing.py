"""What other arithmetic does to speech, heard: word error of the same scripts with the same seeds."""

import shutil

import numpy as np
import pytest

pytest.importorskip("pocketsphinx", reason='needs pocketsphinx: pip install -e ".[hear]"')
if shutil.which("flite") is None:
    pytest.skip("needs flite: apt install flite", allow_module_level=True)

from dia_engine import Engine
from tools.talker.domain import DEMO, held_out_scripts, words_of
from tools.talker.evaluate import evaluate, generate_all
from tools.talker.hearing import Listener, word_errors

pytestmark = pytest.mark.slow

SCRIPTS = held_out_scripts(60)
WORD_ERROR = 10.0  # per cent, the most that float32 may have
# Points of word error that each may lose against float32 on the same scripts and seeds.
MARGINS = {
    "bfloat16": ({"dtype": "bfloat16"}, 2.0),
    "int8": ({"quant": "int8"}, 2.0),
    "nf4": ({"quant": "nf4"}, 5.0),
    "nf4-all": ({"quant": "nf4-all"}, 5.0),
}


@pytest.fixture(scope="module")
def reference() -> dict:
    return evaluate(Engine.load("talker", dtype="float32", device="cpu"), SCRIPTS)["heard"]


def test_the_synthesizer_is_understood(reference):
    assert reference["synthesizer"]["word_error"] <= 3.0


def test_the_talker_is_understood(reference):
    assert reference["model"]["word_error"] <= WORD_ERROR
    assert reference["model"]["ended"] == 1.0


def test_the_recognizer_does_not_guess(reference):
    assert reference["control: the next script's words"]["word_error"] > 60.0


def test_the_length_is_that_of_the_synthesizer(reference):
    assert 0.9 < reference["model"]["length"] < 1.1


@pytest.mark.parametrize("name", MARGINS)
def test_other_arithmetic_says_the_same(reference, name):
    params, margin = MARGINS[name]
    engine = Engine.load("talker", **({"dtype": "float32"} | params), device="cpu")
    found = evaluate(engine, SCRIPTS, baselines=False)["heard"]["model"]
    assert found["word_error"] <= reference["model"]["word_error"] + margin
    assert found["ended"] == 1.0


def test_the_demo_is_said_right():
    (sound,) = Engine.load("talker", device="cpu").generate([DEMO], seed=1)
    assert word_errors(Listener().words(sound), words_of(DEMO)) == 0


def test_streamed_and_whole_say_the_same():
    engine, listener = Engine.load("talker", device="cpu"), Listener()
    for script in held_out_scripts(10):
        whole = engine.generate(script.text, seed=1)
        streamed = np.concatenate(list(engine.stream(script.text, seed=1, chunk_frames=8)))
        np.testing.assert_allclose(streamed, whole, atol=1e-5)
        assert listener.words(streamed) == listener.words(whole)


def test_a_batch_changes_no_word():
    engine, scripts = Engine.load("talker", device="cpu"), held_out_scripts(4)
    alone, together = generate_all(engine, scripts, 0, 1, {}), generate_all(engine, scripts, 0, 4, {})
    assert all((a == b).all() for a, b in zip(alone, together, strict=True))
