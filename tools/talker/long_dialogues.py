"""Listens to long dialogues: `python -m tools.talker.long_dialogues`. Needs pocketsphinx.

Held-out sentences by turns, generated in pieces; word errors, pitch and level by quarter of the dialogue show whether
words, voices or loudness drift. Each piece is heard by itself, where `Generation.pieces` says that it is; a control
compares each piece with the words of the next.
"""

import argparse
import json
import re
import time
from difflib import SequenceMatcher
from pathlib import Path
from statistics import median

import numpy as np

from dia_engine import Engine, Generation

from .domain import SPEAKERS, Script, held_out_scripts, words_of
from .flite import SAMPLE_RATE
from .hearing import Listener, pitch, word_errors

BETWEEN_VOICES = 130.0  # Hz; [S1] speaks at 101, [S2] at 167
QUIET = 0.05  # of the sound's rms
LEVEL_SAMPLES = SAMPLE_RATE // 100


def main(arguments: list[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    engine = Engine.load("talker", device="cpu")
    listener = Listener()
    heard, seconds, spent = [], 0.0, 0.0
    for number, script in enumerate(_dialogues(options)):
        for seed in range(options.seeds):
            began = time.perf_counter()
            generation = engine.generate(script.text, seed=seed, details=True, speed=options.speed)
            spent += time.perf_counter() - began
            if len(generation.pieces) < 4:
                raise SystemExit(f"dialogue {number} has no piece for each quarter; give more --turns")
            seconds += generation.duration
            heard.append(hear(listener, generation))
            print(
                f"dialogue {number}, seed {seed}: {generation.duration:.1f} s, {heard[-1]['pieces']} pieces", flush=True
            )
    report = summary(heard) | {"seconds": round(seconds, 1), "real_time": round(seconds / spent, 2)}
    print(json.dumps(report, indent=2))
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def _dialogues(options: argparse.Namespace) -> list[Script]:
    """Held-out sentences, each speaker saying `run` of them before the other one does."""
    tags = list(SPEAKERS)
    return [
        Script(tuple((tags[(number + turn // options.run) % 2], words) for turn, (_, words) in enumerate(script.turns)))
        for number, script in enumerate(held_out_scripts(options.dialogues, options.turns, seed=7))
    ]


def hear(listener: Listener, generation: Generation) -> dict:
    """Errors and words of each piece, the same against the next piece's words, pitch by speaker, whether each turn was
    heard, tries, levels, joins."""
    audio, pieces = generation.audio, generation.pieces
    assert audio is not None
    errors, words, control, pitches, turns = [], [], [], [], []
    for index, piece in enumerate(pieces):
        sound = audio[round(piece.start * SAMPLE_RATE) : round(piece.end * SAMPLE_RATE)]
        said, meant = listener.words(sound), words_of(piece.text)
        following = words_of(pieces[(index + 1) % len(pieces)].text)
        errors.append(word_errors(said, meant))
        control.append(word_errors(said, following))
        words.append(len(meant))
        pitches.append(_pitches(piece.text, sound))
        turns += turns_heard(said, piece.text)
    loud = float(np.sqrt(np.mean(np.square(audio))))
    joins = [round(piece.start * SAMPLE_RATE) for piece in pieces[1:]]
    return {
        "pieces": len(pieces),
        "errors": errors,
        "words": words,
        "control": control,
        "pitches": pitches,
        "turns": turns,
        "levels": [_level(audio[len(audio) * quarter // 4 : len(audio) * (quarter + 1) // 4]) for quarter in range(4)],
        "pauses": [_pause(audio, join, QUIET * loud) for join in joins],
        "tries": sum(piece.tries for piece in pieces),
        "empty": sum(piece.end - piece.start < 0.1 for piece in pieces),
        "cut": sum(piece.finish_reason != "stop" for piece in pieces),
        "step": max(abs(float(audio[join] - audio[join - 1])) / loud for join in joins),
    }


def turns_heard(said: list[str], text: str) -> list[bool]:
    """Of each turn of a text, whether a word of it was heard in its place."""
    turns = [words_of(turn) for turn in re.split(r"\[S[12]\]", text) if words_of(turn)]
    meant = [word for turn in turns for word in turn]
    matched = {
        match.b + offset
        for match in SequenceMatcher(None, said, meant, autojunk=False).get_matching_blocks()
        for offset in range(match.size)
    }
    found, at = [], 0
    for turn in turns:
        found.append(any(place in matched for place in range(at, at + len(turn))))
        at += len(turn)
    return found


def _level(sound: np.ndarray) -> float:
    """In dB of full scale."""
    return 10 * float(np.log10(np.mean(np.square(sound))))


def _pause(sound: np.ndarray, join: int, quiet: float) -> float:
    """Seconds of quiet around a join."""

    def seconds(side: np.ndarray) -> float:
        windows = side[: len(side) // LEVEL_SAMPLES * LEVEL_SAMPLES].reshape(-1, LEVEL_SAMPLES)
        loud = np.sqrt(np.mean(np.square(windows), axis=1)) >= quiet
        return float(loud.argmax() if loud.any() else len(loud)) * LEVEL_SAMPLES / SAMPLE_RATE

    around = SAMPLE_RATE  # a second to both sides
    return seconds(sound[max(0, join - around) : join][::-1]) + seconds(sound[join : join + around])


def _pitches(text: str, sound: np.ndarray) -> dict[str, float]:
    """Median pitch by tag; where both speak, the text's share of bytes says where one ends and the other begins."""
    turns = re.findall(r"(\[S[12]\])([^\[]*)", text)
    total, at, found = sum(len(words) for _, words in turns), 0, {}
    for tag, words in turns:
        first, last = at / total, (at + len(words)) / total
        inner = sound[int((first + 0.05) * len(sound)) : int((last - 0.05) * len(sound))]
        found[tag] = pitch(inner)
        at += len(words)
    return found


def summary(heard: list[dict]) -> dict:
    """Of all dialogues, and by quarters of each."""

    def share(name: str, quarter: int | None = None) -> float:
        errors = words = 0
        for each in heard:
            chosen = range(len(each["words"])) if quarter is None else _quarter(len(each["words"]), quarter)
            errors += sum(each[name][index] for index in chosen)
            words += sum(each["words"][index] for index in chosen)
        return round(100 * errors / words, 1)

    def pitches(tag: str, quarter: int) -> list[float]:
        return [
            each["pitches"][index][tag]
            for each in heard for index in _quarter(len(each["pitches"]), quarter) if tag in each["pitches"][index]
        ]  # fmt: skip

    spoken = {tag: [pitches(tag, quarter) for quarter in range(4)] for tag in SPEAKERS}
    levels = np.array([each["levels"] for each in heard])
    turns = [turn for each in heard for turn in each["turns"]]
    pieces = sum(each["pieces"] for each in heard)
    return {
        "words": sum(sum(each["words"]) for each in heard),
        "word_error": share("errors"),
        "word_error_by_quarter": [share("errors", quarter) for quarter in range(4)],
        "control": share("control"),
        "pitch_by_quarter": {
            tag: [round(float(np.nanmedian(quarter)), 1) for quarter in quarters] for tag, quarters in spoken.items()
        },
        "in_the_other_voice": sum(
            (hertz > BETWEEN_VOICES) == (tag == "[S1]")
            for tag, quarters in spoken.items()
            for quarter in quarters
            for hertz in quarter
            if not np.isnan(hertz)
        ),
        "turns": len(turns),
        "turns_heard": round(100 * sum(turns) / len(turns), 1),
        "level_by_quarter": [round(float(each), 2) for each in (levels - levels[:, :1]).mean(axis=0)],
        "largest_change_of_level": round(float(np.ptp(levels, axis=1).max()), 2),
        "pieces": pieces,
        "tries_per_piece": round(sum(each["tries"] for each in heard) / pieces, 3),
        "empty": sum(each["empty"] for each in heard),
        "cut": sum(each["cut"] for each in heard),
        "median_pause_at_a_join": round(median([pause for each in heard for pause in each["pauses"]]), 2),
        "largest_step_at_a_join": round(max(each["step"] for each in heard), 4),
    }


def _quarter(count: int, quarter: int) -> range:
    return range(quarter * count // 4, (quarter + 1) * count // 4)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.talker.long_dialogues", description=__doc__.splitlines()[0])
    parser.add_argument("--dialogues", type=int, default=3)
    parser.add_argument("--turns", type=int, default=36)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--run", type=int, default=1, help="sentences of a speaker in a row (default: %(default)s)")
    parser.add_argument("--speed", type=float, default=1.0)
    parser.add_argument("--json", type=Path, help="write the report to this file")
    return parser


if __name__ == "__main__":
    main()
