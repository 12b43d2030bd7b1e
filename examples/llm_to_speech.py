"""Speak an answer while a language model still writes it: `python llm_to_speech.py [MODEL]`."""

import sys
import time
from collections.abc import Iterator

import soundfile

from dia_engine import Engine


def fake_llm() -> Iterator[str]:
    """In place of a language model: a fixed text, in pieces as a model's tokens arrive. Put your own here."""
    for word in "[S1] Hello, my friend. I see three red birds and two black cats. Can you see my dogs?".split():
        time.sleep(0.05)
        yield word + " "


model = sys.argv[1] if len(sys.argv) > 1 else "talker"
with Engine.load(model) as engine:
    engine.prepare()
    begun = time.perf_counter()
    with soundfile.SoundFile("answer.wav", "w", samplerate=engine.sample_rate, channels=1) as file:
        # A piece is begun as soon as a sentence is whole. `astream` takes asynchronous iterators for event loops.
        for chunk in engine.stream(fake_llm(), seed=0):
            file.write(chunk)
            print(f"{time.perf_counter() - begun:.2f} s: {len(chunk) / engine.sample_rate:.2f} s of audio")
