"""Whether a piece is what its text asks for, judged by its length alone, and which of several tries is kept."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from ..longform_settings import LongFormSettings
from ..results import Generation
from .planning.plan import Piece

MOST_TRIES = 3
GUARD = 0.25  # of the frames that are expected: so many are made before the model may end
RECENT = 64  # pieces before that are looked at


@dataclass(frozen=True)
class Pace:
    """Frames per byte of the pieces so far.

    Attributes:
        prior: what the model's settings say, which counts as one piece while there are few.
        kept: of each piece that was kept, in order.
    """

    prior: float
    kept: tuple[float, ...] = ()

    @property
    def expected(self) -> float:
        """The median; it depends on the pieces before alone, and on no timing."""
        return median(self.kept if len(self.kept) >= 3 else (self.prior, *self.kept))

    def after(self, piece: Piece, generation: Generation) -> "Pace":
        """With one more piece."""
        return Pace(self.prior, (*self.kept, generation.frames / piece.size)[-RECENT:])


def is_good(piece: Piece, generation: Generation, pace: Pace, settings: LongFormSettings) -> bool:
    """Whether a piece ended by itself and is neither too short nor too long for its text."""
    share = generation.frames / (piece.size * pace.expected)
    return generation.finish_reason == "stop" and settings.shortest <= share <= settings.longest


def best(piece: Piece, tries: Sequence[Generation], pace: Pace) -> Generation:
    """The try nearest to the length that is expected, one that ended by itself if there is one; else the first."""

    def distance(generation: Generation) -> tuple[bool, float]:
        share = max(generation.frames, 0.1) / (piece.size * pace.expected)
        return generation.finish_reason != "stop", max(share, 1 / share)

    return min(tries, key=distance)


def guard_frames(piece: Piece, frames_per_byte: float) -> int:
    """Frames before which the model may not end a piece."""
    return int(GUARD * piece.size * frames_per_byte)
