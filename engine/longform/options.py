"""What a caller may ask for beside the sampling of a script."""

import math
from dataclasses import dataclass
from typing import Any

from ..messages import shown

FADE_SECONDS = 0.010
SLOWEST, FASTEST = 0.25, 4.0
LONGEST_SILENCE = 60.0


@dataclass(frozen=True)
class SpeechOptions:
    """Attributes:
        split: whether a script that is too long for the model to speak well is planned in pieces.
        speed: pace of the speech, at the same pitch.
        pause: silence between turns in seconds, in addition to what the model makes; turns are then pieces.
        tail_silence: silence at the end in seconds.
        trim_cut_end: whether sound that `max_tokens` cut loses its last frames, which forced rows damage, and fades
            out. None: of planned scripts.
        closing_tag: whether the next speaker's tag ends the text of every piece. None: planned scripts of Dia.

    Raises:
        TypeError, ValueError: a value of another kind, or out of range.
    """

    split: bool = True
    speed: float = 1.0
    pause: float = 0.0
    tail_silence: float = 0.0
    trim_cut_end: bool | None = None
    closing_tag: bool | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.split, bool):
            raise TypeError(f"split must be True or False, got {shown(self.split)}")
        for name in ("trim_cut_end", "closing_tag"):
            if not (getattr(self, name) is None or isinstance(getattr(self, name), bool)):
                raise TypeError(f"{name} must be True, False or None, got {shown(getattr(self, name))}")
        _check_range("speed", self.speed, SLOWEST, FASTEST)
        _check_range("pause", self.pause, 0.0, LONGEST_SILENCE)
        _check_range("tail_silence", self.tail_silence, 0.0, LONGEST_SILENCE)

    @property
    def changes_sound(self) -> bool:
        """Whether a script that is not planned sounds otherwise than as the model made it."""
        return self.speed != 1 or self.tail_silence > 0 or bool(self.trim_cut_end)

    @property
    def changes_text(self) -> bool:
        """Whether a short script is not generated as it is."""
        return bool(self.closing_tag) or self.pause > 0


def _check_range(name: str, value: Any, least: float, most: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {shown(value)}")
    if not (math.isfinite(value) and least <= value <= most):
        raise ValueError(f"{name} must be in [{least:g}, {most:g}], got {shown(value)}")
