"""Ears for the tests: what is said, how high, how loud. Needs pocketsphinx."""

import math
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

from .domain import WORDS, training_sentences, words_of
from .flite import SAMPLE_RATE

PITCH_RANGE = 60.0, 320.0  # Hz


class Listener:
    """Writes down the words of a sound, of which it knows those of the domain and no others.

    Its language model is a bigram of training sentences, half of which are words in no order, mixed with a flat one:
    it helps little beyond knowing the words.

    Raises:
        ModuleNotFoundError: pocketsphinx is not installed.
    """

    def __init__(self):
        import pocketsphinx

        folder = tempfile.TemporaryDirectory()
        model, dictionary = Path(folder.name, "words.arpa"), Path(folder.name, "words.dict")
        model.write_text(bigram_arpa([words_of(sentence) for sentence in training_sentences(3000)], WORDS))
        dictionary.write_text(_pronunciations(Path(pocketsphinx.get_model_path("en-us/cmudict-en-us.dict"))))
        self._decoder = pocketsphinx.Decoder(
            hmm=pocketsphinx.get_model_path("en-us/en-us"), lm=str(model), dict=str(dictionary), samprate=SAMPLE_RATE,
            loglevel="FATAL", cmn="batch",
        )  # fmt: skip
        folder.cleanup()  # it has been read

    def words(self, sound: np.ndarray) -> list[str]:
        """The words of a sound [samples] float32 at 16 kHz, in lower case."""
        quiet = np.zeros(SAMPLE_RATE // 5, np.float32)
        samples = np.concatenate([quiet, sound, quiet])
        self._decoder.reinit_feat()  # what was heard before must not matter
        self._decoder.start_utt()
        self._decoder.process_raw((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes(), full_utt=True)
        self._decoder.end_utt()
        heard = self._decoder.hyp()
        return heard.hypstr.split() if heard else []


def bigram_arpa(sentences: list[list[str]], words: list[str]) -> str:
    """A bigram language model over `words` in the ARPA format, three parts in four counted, one part flat."""
    vocabulary = ["<s>", "</s>", *words]
    counts = Counter(pair for words in sentences for pair in zip(["<s>", *words], [*words, "</s>"], strict=True))
    totals = Counter()
    for (first, _), count in counts.items():
        totals[first] += count
    pairs = []
    for first in ["<s>", *words]:
        for second in ["</s>", *words]:
            share = 0.75 * counts[first, second] / totals[first] + 0.25 / (len(words) + 1)
            pairs.append(f"{math.log10(share):.4f} {first} {second}")
    single = -math.log10(len(vocabulary))
    singles = [f"{-99 if word == '<s>' else single:.4f} {word} 0.0000" for word in vocabulary]
    head = f"\\data\\\nngram 1={len(singles)}\nngram 2={len(pairs)}\n"
    return "\n".join([head, "\\1-grams:", *singles, "", "\\2-grams:", *pairs, "", "\\end\\", ""])


def _pronunciations(dictionary: Path) -> str:
    """The lines of a CMU dictionary that are about our words."""
    lines = dictionary.read_text(encoding="utf-8").splitlines(keepends=True)
    return "".join(line for line in lines if line.split(maxsplit=1)[0].split("(")[0] in WORDS)


def word_errors(said: list[str], meant: list[str]) -> int:
    """Words put in, left out or taken for others: the edit distance."""
    row = list(range(len(meant) + 1))
    for i, heard in enumerate(said, start=1):
        above, row[0] = row[0], i
        for j, word in enumerate(meant, start=1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (heard != word))
    return row[-1]


def pitch(sound: np.ndarray) -> float:
    """The median pitch of the voiced parts of a sound [samples] at 16 kHz, in Hz; NaN if there are none.

    Autocorrelation of 40 ms frames, divided by that of the window; a frame counts if it is loud and repeats itself.
    """
    size, hop = 640, 160
    if len(sound) < size:
        return math.nan
    window = np.hanning(size)
    frames = np.lib.stride_tricks.sliding_window_view(sound, size)[::hop] * window
    spectrum = np.abs(np.fft.rfft(frames, 2 * size)) ** 2
    correlation = np.fft.irfft(spectrum)[:, :size]
    of_window = np.fft.irfft(np.abs(np.fft.rfft(window, 2 * size)) ** 2)[:size]
    shortest, longest = int(SAMPLE_RATE / PITCH_RANGE[1]), int(SAMPLE_RATE / PITCH_RANGE[0])
    energy = correlation[:, 0]
    lags = correlation[:, shortest:longest] / of_window[shortest:longest] * of_window[0]
    likeness = lags.max(1) / np.maximum(energy, 1e-9)
    voiced = (likeness > 0.6) & (energy > 0.1 * energy.max())
    return float(np.median(SAMPLE_RATE / (shortest + lags[voiced].argmax(1)))) if voiced.any() else math.nan
