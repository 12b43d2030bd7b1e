"""Play a script while it is made: `python stream_to_speakers.py [MODEL]`.

Needs sounddevice: `pip install sounddevice`, and PortAudio (on Debian: `apt install libportaudio2`).
"""

import sys
import time

import sounddevice

from dia_engine import Engine

model = sys.argv[1] if len(sys.argv) > 1 else "talker"
script = "[S1] Can you count? [S2] Yes, I can count. One two three four five six seven."

with Engine.load(model) as engine:
    engine.prepare()  # what the first request would wait for
    with sounddevice.OutputStream(samplerate=engine.sample_rate, channels=1, dtype="float32") as speakers:
        begun, first = time.perf_counter(), None
        for chunk in engine.stream(script, seed=1):  # float32 [samples], never empty
            first = first or time.perf_counter() - begun
            speakers.write(chunk[:, None])  # waits while its buffer is full; the engine does not wait for it
    print(f"first audio after {first:.2f} s")
