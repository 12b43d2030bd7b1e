"""A dialogue of any length, with subtitles: `python long_dialogue.py [MODEL SCRIPT_FILE]`."""

import sys
from pathlib import Path

from dia_engine import Engine

TURNS = """[S1] Hello, my friend. Can you count? [S2] Yes, I can. One two three four.
[S1] I see two black cats. [S2] I see three red birds. """

model = sys.argv[1] if len(sys.argv) > 1 else "talker"
script = Path(sys.argv[2]).read_text(encoding="utf-8") if len(sys.argv) > 2 else 3 * TURNS

with Engine.load(model) as engine:
    plan = engine.plan(script, seed=5, pause=0.3)  # in which pieces, without generating them
    print(f"{len(plan.pieces)} pieces, about {sum(piece.expected_seconds for piece in plan.pieces):.0f} s")

    result = engine.generate(script, seed=5, pause=0.3, details=True)  # engine.stream takes it too
    engine.save_audio("long.mp3", result.audio)
    for piece in result.pieces:
        print(f"{piece.start:6.2f} to {piece.end:6.2f} s, tries: {piece.tries}: {piece.text}")
