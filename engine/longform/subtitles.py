"""Subtitles of a script that was spoken in pieces: start and end of each turn.

The times of pieces are exact. Inside a piece only the text says where a turn ends: by its share of the bytes. Those
times are estimates, and the file says so.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..files.output import check_file_name, check_replaceable, write_whole
from ..files.paths import user_path
from ..results import PieceResult
from .turns import units

FORMATS = (".srt", ".vtt")
ESTIMATED = "Times inside a piece are estimated by the length of the text; those between pieces are exact."


@dataclass(frozen=True)
class Cue:
    """A turn, or the part of one that a piece holds: seconds and text."""

    start: float
    end: float
    speaker: str
    text: str


def check_subtitles_path(path: str | None) -> None:
    """Raises FileNotFoundError, PermissionError, ValueError: no subtitles can be written there."""
    if path is not None:
        check_file_name(path)
        if Path(path).suffix.lower() not in FORMATS:
            raise ValueError(f"{path}: subtitles are written as {' or '.join(FORMATS)}")
        check_replaceable(user_path(path))


def cues(pieces: Sequence[PieceResult]) -> Iterator[Cue]:
    """The turns of pieces, in order."""
    for piece in pieces:
        turns: list[tuple[str, str]] = []
        for unit in units(piece.text, most=2**20):
            if turns and not unit.opens:
                turns[-1] = (unit.speaker, f"{turns[-1][1]} {unit.text}")
            else:
                turns.append((unit.speaker, unit.text))
        total = sum(len(text.encode()) for _, text in turns)
        start = piece.start
        for speaker, text in turns:
            end = start + (piece.end - piece.start) * len(text.encode()) / total
            yield Cue(start, end, speaker, text)
            start = end


def write_subtitles(path: str, pieces: Sequence[PieceResult]) -> None:
    """Write a file in the format that its extension names.

    Raises:
        OSError: it cannot be written.
    """
    content = _vtt(pieces) if Path(path).suffix.lower() == ".vtt" else _srt(pieces)
    write_whole(user_path(path), content.encode("utf-8"))


def _vtt(pieces: Sequence[PieceResult]) -> str:
    blocks = ["WEBVTT", f"NOTE\n{ESTIMATED}"]
    for cue in cues(pieces):
        voice = f"<v {cue.speaker.strip('[]')}>" if cue.speaker else ""
        text = cue.text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        blocks.append(f"{_time(cue.start, '.')} --> {_time(cue.end, '.')}\n{voice}{text}")
    return "\n\n".join(blocks) + "\n"


def _srt(pieces: Sequence[PieceResult]) -> str:
    blocks = []
    for number, cue in enumerate(cues(pieces), start=1):
        speaker = f"{cue.speaker} " if cue.speaker else ""
        blocks.append(f"{number}\n{_time(cue.start, ',')} --> {_time(cue.end, ',')}\n{speaker}{cue.text}")
    return "\n\n".join(blocks) + "\n"


def _time(seconds: float, point: str) -> str:
    milliseconds = round(1000 * seconds)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{milliseconds // 1000:02}{point}{milliseconds % 1000:03}"
