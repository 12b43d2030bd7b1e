"""What comes of a request: its audio and codes, its pieces, and how far it is meanwhile."""

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, eq=False)  # arrays have no one answer to ==
class Generation:
    """What a request has come to.

    Attributes:
        audio: [samples] float32, without the prompt. None without a codec, and in the result of a stream.
        codes: [T, C] int64, without the prompt.
        finish_reason: "stop" where the model ended, "length" where `max_tokens` cut it, "abort" where the caller did.
        seed: with which the same text gives the same audio.
        pieces: what became of each piece of a planned script; empty if it was generated as one.
        frames: T.
        duration: seconds of audio.
    """

    audio: np.ndarray | None = field(repr=False)
    codes: np.ndarray = field(repr=False)
    finish_reason: str
    seed: int
    frames: int
    duration: float
    pieces: "tuple[PieceResult, ...]" = ()


@dataclass(frozen=True)
class PieceResult:
    """A piece of a planned script.

    Attributes:
        text: with a tag wherever a turn begins, and at its beginning.
        seed: of the try that was kept.
        tries: how many there were.
        finish_reason: as of a `Generation`.
        start, end: where it is in the audio, in seconds.
    """

    text: str
    seed: int
    tries: int
    finish_reason: str
    start: float
    end: float


@dataclass(frozen=True)
class Progress:
    """How far a planned script is.

    Attributes:
        index: of the script in its call.
        pieces: that are done.
        total: pieces of the script; None while its text arrives.
        seconds: of audio that are done.
        elapsed: since its first piece got a slot, in seconds.
        left: seconds until its end at the pace so far; None while its text arrives.
        last: the piece that was done last.
    """

    index: int
    pieces: int
    total: int | None
    seconds: float
    elapsed: float
    left: float | None
    last: PieceResult

    @property
    def times_real_time(self) -> float:
        """Seconds of audio per second."""
        return self.seconds / self.elapsed if self.elapsed > 0 else 0.0

    def __str__(self) -> str:
        made = "1 piece" if self.pieces == 1 else f"{self.pieces} pieces"
        pieces = made if self.total is None else f"piece {self.pieces} of {self.total}"
        left = "" if self.left is None else f", {self.left:.0f} s left"
        return f"{pieces}, {self.seconds:.1f} s, {self.times_real_time:.2f}x real time{left}"
