"""Go on with a voice: `python voice_cloning.py [MODEL VOICE_FILE TRANSCRIPT]`.

Without arguments the toy makes the voice file too, with another seed. For Dia take 5 to 10 seconds of clean speech and
its exact transcript, with the tag of each speaker. Do not imitate a real person without permission.
"""

import sys

from dia_engine import Engine

if len(sys.argv) not in (1, 4):
    sys.exit("give a model, a voice file and its transcript, or nothing")
model, voice, transcript = sys.argv[1:] or ("talker", None, "[S2] I have two red birds.")

with Engine.load(model) as engine:
    if voice is None:
        voice = "voice.wav"
        engine.save_audio(voice, engine.generate(transcript, seed=0))

    codes = engine.load_audio(voice)  # encoded once for many scripts; the file's name in its place works too
    for number, line in enumerate(["I can count very well.", "I see three cats."]):
        # The speaker of the prompt goes on, so his tag is not repeated. The prompt is not part of the result.
        audio = engine.generate(line, audio_prompt=codes, audio_prompt_text=transcript, seed=number)
        engine.save_audio(f"cloned-{number}.wav", audio)
        print(f"cloned-{number}.wav: {len(audio) / engine.sample_rate:.2f} s")
