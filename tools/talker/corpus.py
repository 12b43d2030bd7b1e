"""Scripts as the language part learns them: text, codes of the trained codec, and which frames say which word."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm
from transformers import DacModel

from .data import load_speech
from .domain import SPEAKERS, Script, held_out_scripts
from .flite import SAMPLE_RATE, Spoken, speak

GAP = 0.08  # seconds between sentences, beside the margins of both
HOP = 512
ROW, SILENCE = 512, 8  # frames encoded at once, and between two scripts


@dataclass(frozen=True)
class Example:
    """One script.

    Attributes:
        text: ids [S] of the encoder.
        codes: [T, C].
        words: for each frame the word that it says, counted from 1, [T]; 0 is silence.
        letters: for each id of the text the word that it belongs to, [S]; 0 is none.
    """

    text: np.ndarray
    codes: np.ndarray
    words: np.ndarray
    letters: np.ndarray


def assemble(script: Script, spoken: dict[tuple[str, str], Spoken], lead_in: int = 0) -> tuple[np.ndarray, list]:
    """A script's sound [samples] float32, and begin and end of every word in seconds.

    Args:
        lead_in: samples of silence before it, so that the frames do not always begin at the same place of a word.
    """
    parts, spans, length = [np.zeros(lead_in, np.float32)], [], lead_in
    for index, turn in enumerate(script.turns):
        if index:
            parts.append(np.zeros(int(GAP * SAMPLE_RATE), np.float32))
            length += len(parts[-1])
        begin = length / SAMPLE_RATE
        spans += [(begin + a, begin + b) for a, b in spoken[turn].spans]
        parts.append(spoken[turn].sound)
        length += len(parts[-1])
    return np.concatenate(parts), spans


def original(script: Script) -> np.ndarray:
    """The synthesizer's own sound of a script [samples] float32."""
    return assemble(script, {turn: speak(turn[1], SPEAKERS[turn[0]]) for turn in script.turns})[0]


def training_examples(work: Path, codec: DacModel, name: str, make: Callable, count: int) -> list[Example]:
    """`count` scripts of the training sentences, as `make` of `domain` joins them, in the codec's codes."""
    speech = load_speech(work)
    sentences = [sentence for tag, sentence in speech if tag == "[S1]" and ("[S2]", sentence) in speech]
    return _encoded(work / f"{name}.pt", make(sentences, count), speech, codec)


def held_out_examples(work: Path, codec: DacModel, count: int = 100) -> list[Example]:
    """The evaluation's scripts in the codec's codes."""
    scripts = held_out_scripts(count)
    speech = {turn: speak(turn[1], SPEAKERS[turn[0]]) for script in scripts for turn in script.turns}
    return _encoded(work / "held_out.pt", scripts, speech, codec)


def _encoded(path: Path, scripts: list[Script], speech, codec: DacModel) -> list[Example]:
    """The examples of some scripts, read from `path` if they were made before."""
    if path.exists():
        stored = torch.load(path, weights_only=True)
        return [Example(*(part.numpy() for part in parts)) for parts in stored]
    rng = np.random.default_rng(3)
    assembled = [assemble(script, speech, int(rng.integers(HOP))) for script in scripts]
    codes = encode_all([sound for sound, _ in assembled], codec, path.stem)
    examples = []
    for script, (_, spans), coded in zip(scripts, assembled, codes, strict=True):
        text, letters = text_ids(script.text)
        examples.append(Example(text, coded, _words_of_frames(spans, len(coded)), letters))
    torch.save([tuple(map(torch.from_numpy, vars(example).values())) for example in examples], path)
    return examples


@torch.no_grad()
def encode_all(sounds: list[np.ndarray], codec: DacModel, name: str) -> list[np.ndarray]:
    """The codes [T, C] of many sounds.

    They are laid one after another, with silence between, into rows of one length: so the encoder is compiled once.
    """
    encoder = torch.compile(codec.encoder)
    frames = [-(-len(sound) // HOP) for sound in sounds]
    found: list[np.ndarray] = []
    with tqdm(total=len(sounds), desc=name, mininterval=2.0) as bar:
        while len(found) < len(sounds):
            row, places = np.zeros(ROW * HOP, np.float32), []
            at = SILENCE
            while len(found) + len(places) < len(sounds) and at + frames[len(found) + len(places)] + SILENCE <= ROW:
                index = len(found) + len(places)
                row[at * HOP : at * HOP + len(sounds[index])] = sounds[index]
                places.append((at, at + frames[index]))
                at += frames[index] + SILENCE
            if not places:
                raise ValueError(f"a script of {frames[len(found)]} frames is too long, {ROW - 2 * SILENCE} fit")
            latent = encoder(torch.from_numpy(row)[None, None].to(codec.device))
            codes = codec.quantizer(latent)[1][0].T.cpu().numpy().astype(np.int64)
            found += [codes[begin:end] for begin, end in places]
            bar.update(len(places))
    return found


def text_ids(text: str) -> tuple[np.ndarray, np.ndarray]:
    """The encoder's ids of a script, and for each of them the number of its word, from 1; 0 is none."""
    coded = text.replace("[S1]", "\x01").replace("[S2]", "\x02")
    letters = np.zeros(len(coded), np.int64)
    for number, match in enumerate(re.finditer("[A-Za-z]+", coded), start=1):
        letters[match.start() : match.end()] = number
    return np.frombuffer(coded.encode("ascii"), np.uint8).astype(np.int64), letters


def _words_of_frames(spans: list[tuple[float, float]], frames: int) -> np.ndarray:
    middles = (np.arange(frames) + 0.5) * HOP / SAMPLE_RATE
    words = np.zeros(frames, np.int64)
    for number, (begin, end) in enumerate(spans, start=1):
        words[(middles >= begin) & (middles < end)] = number
    return words
