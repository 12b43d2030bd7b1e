"""Subtitles of a script that was spoken in pieces: start and end of each turn.

The times of pieces are exact. Inside a piece the text says about where a turn ends, by its share of the bytes, and the
longest silence near there is taken for the end. Those times are estimates, and a VTT file says so.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from ..files.output import check_file_name, check_replaceable, write_whole
from ..files.paths import user_path
from ..results import PieceResult
from .planning.turns import units

FORMATS = (".srt", ".vtt")
ESTIMATED = (
    "Times inside a piece are estimated by the length of the text and by silence; those between pieces are exact."
)
LEVELS_PER_SECOND = 100
QUIET = 0.1  # of the level of the piece
SHORTEST_SILENCE = 0.05  # seconds
REACH = 0.4  # of the shorter one of two turns: so far from the estimate silence is looked for


@dataclass(frozen=True)
class Cue:
    """A turn, or the part of one that a piece holds: seconds and text."""

    start: float
    end: float
    speaker: str
    text: str


class Levels:
    """How loud a sound is from one hundredth of a second to the next, taken in as it comes."""

    def __init__(self, sample_rate: int):
        self._step = sample_rate // LEVELS_PER_SECOND
        self._per_second = sample_rate / self._step
        self._levels: list[np.ndarray] = []
        self._rest = np.zeros(0, np.float32)

    def add(self, sound: np.ndarray) -> None:
        """More samples [n] float32."""
        sound = np.concatenate([self._rest, sound])
        whole = len(sound) // self._step * self._step
        steps, self._rest = sound[:whole].reshape(-1, self._step), sound[whole:]
        self._levels.append(np.sqrt(np.mean(np.square(steps), axis=1, dtype=np.float64)).astype(np.float32))

    def between(self, start: float, end: float) -> np.ndarray:
        """RMS [steps] float32 from one second to another."""
        self._levels = [np.concatenate(self._levels)] if self._levels else [np.zeros(0, np.float32)]
        return self._levels[0][round(start * self._per_second) : round(end * self._per_second)]

    def silence(self, start: float, end: float, quiet: float) -> float | None:
        """The second in the middle of the longest stretch between two seconds whose levels are below `quiet`; None if
        none is SHORTEST_SILENCE long."""
        below = np.concatenate([[False], self.between(start, end) < quiet, [False]])
        edges = np.flatnonzero(below[1:] != below[:-1])
        first, last = edges[::2], edges[1::2]
        if not len(first) or (last - first).max() < SHORTEST_SILENCE * self._per_second:
            return None
        longest = int((last - first).argmax())
        return start + float(first[longest] + last[longest]) / 2 / self._per_second


def check_subtitles_path(path: str | None) -> None:
    """Raises FileNotFoundError, PermissionError, ValueError: no subtitles can be written there."""
    if path is not None:
        check_file_name(path)
        if Path(path).suffix.lower() not in FORMATS:
            raise ValueError(f"{path}: subtitles are written as {' or '.join(FORMATS)}")
        check_replaceable(user_path(path))


def cues(pieces: Sequence[PieceResult], levels: Levels | None = None) -> Iterator[Cue]:
    """The turns of pieces, in order; `levels` are those of their sound. A piece without sound has none."""
    for piece in pieces:
        if piece.end <= piece.start:
            continue
        turns: list[tuple[str, str]] = []
        for unit in units(piece.text, most=2**20):
            text = " ".join(unit.text.split())  # a blank line would end the cue
            if turns and not unit.opens:
                turns[-1] = (unit.speaker, f"{turns[-1][1]} {text}")
            else:
                turns.append((unit.speaker, text))
        ends = _ends(piece, [len(text.encode("utf-8", "surrogatepass")) for _, text in turns], levels)
        start = piece.start
        for (speaker, text), end in zip(turns, ends, strict=True):
            yield Cue(start, end, speaker, text)
            start = end


def _ends(piece: PieceResult, sizes: Sequence[int], levels: Levels | None) -> list[float]:
    """When each turn of a piece ends, whose texts have so many bytes; the last one ends with it."""
    seconds = [(piece.end - piece.start) * size / sum(sizes) for size in sizes]
    ends = list(piece.start + np.cumsum(seconds))
    if levels is not None and len(ends) > 1:
        heard = levels.between(piece.start, piece.end)
        quiet = QUIET * float(np.sqrt(np.mean(np.square(heard)))) if len(heard) else 0.0
        for index, (before, after) in enumerate(pairwise(seconds)):
            reach = REACH * min(before, after)
            silence = levels.silence(ends[index] - reach, ends[index] + reach, quiet)
            ends[index] = ends[index] if silence is None else silence
    return [*map(float, ends[:-1]), piece.end]


def write_subtitles(path: str, pieces: Sequence[PieceResult], levels: Levels | None = None) -> None:
    """Write a file in the format that its extension names.

    Raises:
        OSError: it cannot be written.
    """
    described = _vtt if Path(path).suffix.lower() == ".vtt" else _srt
    write_whole(user_path(path), described(cues(pieces, levels)).encode("utf-8"))


def _vtt(found: Iterator[Cue]) -> str:
    blocks = ["WEBVTT", f"NOTE\n{ESTIMATED}"]
    for cue in found:
        voice = f"<v {cue.speaker.strip('[]')}>" if cue.speaker else ""
        text = cue.text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        blocks.append(f"{_time(cue.start, '.')} --> {_time(cue.end, '.')}\n{voice}{text}")
    return "\n\n".join(blocks) + "\n"


def _srt(found: Iterator[Cue]) -> str:
    blocks = []
    for number, cue in enumerate(found, start=1):
        speaker = f"{cue.speaker} " if cue.speaker else ""
        blocks.append(f"{number}\n{_time(cue.start, ',')} --> {_time(cue.end, ',')}\n{speaker}{cue.text}")
    return "\n\n".join(blocks) + "\n"


def _time(seconds: float, point: str) -> str:
    milliseconds = round(1000 * seconds)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{milliseconds // 1000:02}{point}{milliseconds % 1000:03}"
