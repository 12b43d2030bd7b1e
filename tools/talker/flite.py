"""The synthesizer that the talker learns from: sentences as 16 kHz sound, and when each word is said."""

import re
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import soundfile

from .domain import words_of

SAMPLE_RATE = 16000
MARGIN = 0.06  # seconds of silence kept on either side of a sentence
LOUDNESS = 0.08  # root mean square of a sentence, so that neither voice is louder


@dataclass(frozen=True)
class Spoken:
    """One sentence in one voice.

    Attributes:
        sound: [samples] float32 at 16 kHz.
        spans: for each word of the sentence where it begins and ends, in seconds.
    """

    sound: np.ndarray
    spans: list[tuple[float, float]]


class OtherWords(ValueError):
    """flite does not say the words of a sentence as they stand."""


def require_flite() -> None:
    """Raises:
    FileNotFoundError: flite is not installed.
    """
    if shutil.which("flite") is None:
        raise FileNotFoundError("flite is not installed; it is Debian's and Ubuntu's package `flite`")


def speak(sentence: str, voice: str) -> Spoken:
    """Let flite say a sentence."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "sound.wav")
        printed = _run("-voice", voice, "-psdur", "-t", sentence, "-o", str(path))
        sound, _ = soundfile.read(path, dtype="float32")
    phones = [(name, float(end)) for name, end in (item.rsplit(":", 1) for item in printed.split())]
    first, last = _speech(phones)
    begin, end = max(0.0, first - MARGIN), min(len(sound) / SAMPLE_RATE, last + MARGIN)
    sound = sound[int(begin * SAMPLE_RATE) : int(end * SAMPLE_RATE)]
    sound = np.clip(sound * (LOUDNESS / np.sqrt(np.mean(sound**2))), -1.0, 1.0)
    return Spoken(sound, [(a - begin, b - begin) for a, b in _word_spans(phones, words_of(sentence), voice)])


def speak_all(pairs: list[tuple[str, str]], threads: int = 2) -> list[Spoken | None]:
    """`speak` for many pairs of sentence and voice, in order; None where flite says something else than what stands
    there ("nine I" is "nine the first" to it)."""

    def speak_or_none(pair):
        try:
            return speak(*pair)
        except OtherWords:
            return None

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(speak_or_none, pairs))


def _run(*arguments: str) -> str:
    return subprocess.run(["flite", *arguments], check=True, capture_output=True, text=True).stdout


def _speech(phones: list[tuple[str, float]]) -> tuple[float, float]:
    """Where the first sound that is no pause begins and the last one ends."""
    spoken = [index for index, (name, _) in enumerate(phones) if name != "pau"]
    return phones[spoken[0] - 1][1], phones[spoken[-1]][1]


def _word_spans(phones: list[tuple[str, float]], words: list[str], voice: str) -> list[tuple[float, float]]:
    """Cuts the phones of a sentence into those of its words, by the number that each word has on its own."""
    sounds = [(phones[index - 1][1], end) for index, (name, end) in enumerate(phones) if name != "pau"]
    counts = [_phone_count(word, voice) for word in words]
    if sum(counts) != len(sounds):
        raise OtherWords(f"flite says {words} with {len(sounds)} phones, and the words alone with {counts}")
    spans, at = [], 0
    for count in counts:
        spans.append((sounds[at][0], sounds[at + count - 1][1]))
        at += count
    return spans


@cache
def _phone_count(word: str, voice: str) -> int:
    return len(re.findall(r"\b(?!pau\b)\w+", _run("-voice", voice, "-ps", "-t", word, "-o", "/dev/null")))
