"""Makes the sound to learn from: `python -m tools.talker.data`. What is already there is not made again."""

import argparse
import json
from pathlib import Path

import numpy as np
from tqdm import tqdm

from .domain import SPEAKERS, training_sentences
from .flite import Spoken, require_flite, speak_all

WORK = Path(__file__).parent / "work"
SENTENCES = 4500  # each in both voices, about 3.9 hours in all
CHUNK = 250  # sentences a file


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.talker.data", description=__doc__)
    parser.add_argument("--sentences", type=int, default=SENTENCES)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=WORK, help="folder for all that training makes")
    options = parser.parse_args(arguments)
    require_flite()
    sentences = training_sentences(options.sentences)
    folder = options.work / "speech"
    folder.mkdir(parents=True, exist_ok=True)
    for start in tqdm(range(0, len(sentences), CHUNK), desc="speech", unit=f" x {CHUNK} sentences"):
        _write_chunk(folder / f"{start:06d}.npz", sentences[start : start + CHUNK], options.threads)


def load_speech(work: Path = WORK) -> dict[tuple[str, str], Spoken]:
    """All that was made, by speaker's tag and sentence.

    Raises:
        FileNotFoundError: nothing was made yet.
    """
    files = sorted((work / "speech").glob("*.npz"))
    if not files:
        raise FileNotFoundError(f"no speech in {work / 'speech'}; run python -m tools.talker.data first")
    speech = {}
    for file in files:
        content = np.load(file)
        sounds = np.split(content["sound"], content["ends"][:-1])
        for (tag, sentence, spans), sound in zip(json.loads(str(content["lines"])), sounds, strict=True):
            speech[tag, sentence] = Spoken(sound, spans)
    return speech


def _write_chunk(path: Path, sentences: list[str], threads: int) -> None:
    if path.exists():
        return
    lines = [(tag, sentence) for sentence in sentences for tag in SPEAKERS]
    spoken = speak_all([(sentence, SPEAKERS[tag]) for tag, sentence in lines], threads)
    lines = [line for line, each in zip(lines, spoken, strict=True) if each]
    spoken = [each for each in spoken if each]
    ends = np.cumsum([len(each.sound) for each in spoken])
    described = json.dumps([(*line, each.spans) for line, each in zip(lines, spoken, strict=True)])
    partial = path.with_suffix(".partial")
    with open(partial, "wb") as file:
        np.savez(file, sound=np.concatenate([each.sound for each in spoken]), ends=ends, lines=described)
    partial.rename(path)  # a file is whole or absent


if __name__ == "__main__":
    main()
