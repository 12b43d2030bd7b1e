"""Several scripts at the same time: `python batch.py [MODEL]`. For files of scripts there is `dia-engine batch`."""

import sys

from dia_engine import Engine, SamplingParams

model = sys.argv[1] if len(sys.argv) > 1 else "talker"
scripts = [
    "[S1] Hear me, robot. [S2] I hear you very well.",
    "[S1] Can you count? [S2] Five six seven eight nine.",
    "[S1] I see two cats and three dogs.",
]

with Engine.load(model, max_slots=4) as engine:  # at most four run at the same time, others wait
    # One value holds for all scripts, a list has one per script, where None is the model's default.
    results = engine.generate(
        scripts, seed=[1, 2, 3], sampling_params=[None, SamplingParams(temperature=0.8), None], details=True
    )
    for number, result in enumerate(results):
        engine.save_audio(f"batch-{number}.wav", result.audio)
        print(f"batch-{number}.wav: {result.duration:.2f} s, seed {result.seed}")
