"""A script to a sound file: `python basic.py [MODEL]`, by default the toy that comes with the engine."""

import sys

from dia_engine import Engine

# A hub id or a folder: "nari-labs/Dia-1.6B-0626". With quant="int8" it takes half of the memory and is faster.
model = sys.argv[1] if len(sys.argv) > 1 else "talker"
script = "[S1] Hello, my little robot. Can you sing? [S2] No, I can count very well."

with Engine.load(model) as engine:
    result = engine.generate(script, seed=1, details=True)  # without details=True: the samples alone
    engine.save_audio("basic.wav", result.audio)  # float32 [samples]; the name's ending decides: wav, flac, ogg, mp3
    print(f"basic.wav: {result.duration:.2f} s, seed {result.seed}, ended by {result.finish_reason}")
