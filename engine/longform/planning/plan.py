"""Which pieces a script is generated in, and what each of them is told of what was said before.

Every piece but the first follows an anchor: the caller's audio prompt, or the first pieces in which its speakers have
spoken. So pieces do not depend on one another, and a voice that slips returns.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from ...longform_settings import LongFormSettings
from ...text.script import TAGS, check_says_something
from .turns import Unit, last_tag, units

SMALLEST = 0.4  # of a piece: a shorter rest joins its neighbor
LOOKAHEAD = 128  # units that are looked at for the next piece, which never holds more


@dataclass(frozen=True)
class Piece:
    """A part of a script that is generated as one.

    Attributes:
        text: with a tag wherever a turn begins, and at its beginning.
        anchor: the text that it follows: of the caller's prompt, or of the pieces `anchor_pieces`. "" for none.
        anchor_pieces: indices of earlier pieces whose sound is its prompt.
        seed: of the first try.
        expected_seconds: of sound, from its bytes.
        opens_turn: whether a turn begins with it.
        sent: what the model reads: anchor and text, without a second tag for a speaker who goes on.
        size: bytes of the text.
    """

    text: str
    anchor: str
    anchor_pieces: tuple[int, ...]
    seed: int
    expected_seconds: float
    opens_turn: bool
    sent: str
    size: int


@dataclass(frozen=True)
class Plan:
    """The pieces of a script.

    Attributes:
        pieces: in order; a single one is the script as it was written.
        is_split: whether the script was planned, and not taken as it is.
    """

    pieces: tuple[Piece, ...]
    is_split: bool

    @property
    def expected_seconds(self) -> float:
        """Of sound, of all pieces."""
        return sum(piece.expected_seconds for piece in self.pieces)

    def __str__(self) -> str:
        count = "1 piece" if len(self.pieces) == 1 else f"{len(self.pieces)} pieces"
        lines = [f"{count}, about {self.expected_seconds:.0f} s"]
        for index, piece in enumerate(self.pieces):
            after = f", after {_shown(piece.anchor)}" if piece.anchor else ""
            lines.append(f"{index + 1:>4}  {piece.expected_seconds:4.1f} s  {piece.text!r}{after}")
        return "\n".join(lines)


def size_of(text: str) -> int:
    """Bytes that the model reads of a text: a tag is one."""
    for tag in TAGS:
        text = text.replace(tag, "\x01")
    return len(text.encode("utf-8", "surrogatepass"))


def derived_seed(seed: int, piece: int, attempt: int = 0) -> int:
    """The seed in [0, 2^63) of a try of a piece."""
    digest = hashlib.sha256(f"{seed} {piece} {attempt}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def whole_script(script: str, seed: int, settings: LongFormSettings, transcript: str = "") -> Piece:
    """The script as it is, as one piece."""
    size = size_of(script)
    sent = f"{transcript.rstrip()} {script}" if transcript.strip() else script
    return Piece(script, transcript, (), seed, size * settings.seconds_per_byte, True, sent, size)


def plan_pieces(
    script: str,
    seed: int,
    settings: LongFormSettings,
    *,
    transcript: str | None = None,
    one_turn: bool = False,
    closing_tag: bool = False,
) -> Iterator[Piece]:
    """Plan a script in pieces, each when it is asked for.

    Args:
        script: any text.
        seed: that of the script.
        transcript: of the caller's prompt, which is then every piece's anchor; "" for a prompt without one.
        one_turn: no piece holds more than one turn.
        closing_tag: the text that is sent ends with the tag of who speaks next, which keeps Dia from cutting the end.

    Raises:
        ValueError: nothing but tags.
    """
    check_says_something(script)
    planner = Planner(seed, settings, transcript=transcript, one_turn=one_turn, closing_tag=closing_tag)
    return planner.pieces(units(script, settings.piece_bytes))


class Planner:
    """Turns units into pieces, as they come."""

    def __init__(
        self,
        seed: int,
        settings: LongFormSettings,
        *,
        transcript: str | None = None,
        one_turn: bool = False,
        closing_tag: bool = False,
    ):
        self._closing_tag = closing_tag
        self._seed, self._settings, self._transcript = seed, settings, transcript
        self._most_turns = 1 if one_turn else settings.most_turns
        self._waiting: list[Unit] = []
        self._introduced: dict[str, int] = {}  # speaker -> the piece in which he first spoke
        self._pieces: list[Piece] = []
        self._last_speakers: list[str] = []  # of each piece
        self._anchors: dict[tuple[int, ...], tuple[str, int]] = {}  # text and size, by their pieces

    def add(self, more: Sequence[Unit], *, final: bool) -> list[Piece]:
        """Take more units -> the pieces that are ready.

        Args:
            final: nothing comes behind them for now: all is given out.
        """
        self._waiting += more
        found = []
        while self._waiting:
            if not final and sum(unit.size for unit in self._waiting[:LOOKAHEAD]) < 2 * self._settings.piece_bytes:
                break
            found.append(self._next_piece())
        return found

    def pieces(self, script: Iterable[Unit]) -> Iterator[Piece]:
        """All pieces of a script whose end is known, planned one by one."""
        left = iter(script)
        while True:
            self._waiting += islice(left, LOOKAHEAD + 1 - len(self._waiting))
            if not self._waiting:
                return
            yield self._next_piece()

    def _next_piece(self) -> Piece:
        """The piece that the next of the waiting units make."""
        rest = self._waiting[:LOOKAHEAD]
        count = self._count(rest)
        del self._waiting[:count]
        return self._piece(rest[:count], self._waiting[0].speaker if self._waiting else "")

    def _count(self, rest: Sequence[Unit]) -> int:
        """How many of the next units make a piece."""
        if self._transcript is None and not self._pieces:
            return self._first_count(rest)
        budget = self._budget(rest)
        introduces = self._transcript is None and rest[0].speaker not in self._introduced
        if introduces:
            budget = min(budget, self._settings.anchor_bytes // 2)
        fitting, size, turns = 0, 0, 0
        for unit in rest:
            turns += unit.opens and fitting > 0
            size += unit.size
            stranger = self._transcript is None and fitting and unit.speaker not in self._introduced
            if fitting and (size > budget or turns >= self._most_turns or (stranger and unit.speaker)):
                break
            if fitting and introduces and unit.speaker != rest[0].speaker:
                break
            fitting += 1
        else:
            return fitting
        return fitting if introduces else self._best_cut(rest, fitting, budget)

    def _first_count(self, rest: Sequence[Unit]) -> int:
        """Units of the first piece, which is the anchor of the others: until each speaker has spoken, if that is short
        enough; else some of the first speaker's."""
        both, size, speakers = 0, 0, set()
        for count, unit in enumerate(rest, start=1):
            size += unit.size
            if size > self._settings.anchor_bytes and count > 1:
                break
            speakers.add(unit.speaker)
            closes = count == len(rest) or rest[count].opens
            if len(speakers) > 1 and closes and self._most_turns > 1:
                return count
            both = count
        half, size = 1, 0
        for count, unit in enumerate(rest[:both], start=1):
            size += unit.size
            if unit.speaker != rest[0].speaker or size > self._settings.anchor_bytes // 2:
                break
            half = count
        alone = len({unit.speaker for unit in rest}) == 1
        return both if alone else half

    def _budget(self, rest: Sequence[Unit]) -> int:
        """Bytes of the next piece, beside its anchor."""
        settings = self._settings
        speakers, size = set(), 0
        for unit in rest:
            speakers.add(unit.speaker)
            size += unit.size
            if size > settings.piece_bytes:
                break
        _, anchor = self._anchor(self._anchor_pieces(speakers))
        return max(int(SMALLEST * settings.piece_bytes), min(settings.piece_bytes, settings.good_bytes - anchor))

    def _best_cut(self, rest: Sequence[Unit], fitting: int, budget: int) -> int:
        """Of the first `fitting` units those that make the best piece: cut before [S1] where one is in reach, else
        where a turn begins. What is left at the end of a script is shared rather than left small."""
        smallest = SMALLEST * budget
        left = 0
        for unit in rest[fitting:]:  # few of them: a long script is planned before its first sound
            left += unit.size
            if left >= smallest:
                break
        if left < smallest and len(rest) < LOOKAHEAD:
            budget = (sum(unit.size for unit in rest) + 1) // 2
        sizes, size = [], 0
        for unit in rest[:fitting]:
            size += unit.size
            sizes.append(size)
        best, best_rank = fitting, (-1, 0.0)
        for count in range(1, fitting + 1):
            if count > 1 and sizes[count - 1] < smallest:
                continue
            behind = rest[count]
            kind = 2 if behind.opens and behind.speaker == TAGS[0] else 1 if behind.opens else 0
            if sizes[count - 1] < smallest:
                kind = -1
            rank = (kind, -abs(sizes[count - 1] - budget))
            if rank > best_rank:
                best, best_rank = count, rank
        return best

    def _anchor_pieces(self, speakers: set[str]) -> tuple[int, ...]:
        if self._transcript is not None or not self._pieces:
            return ()
        known = {self._introduced[speaker] for speaker in speakers if speaker in self._introduced}
        return tuple(sorted(known or {0}))

    def _anchor(self, pieces: tuple[int, ...]) -> tuple[str, int]:
        """The anchor that these pieces are, or the caller's, and its bytes."""
        if pieces not in self._anchors:
            text, last = (self._transcript or "").strip(), ""
            for index in pieces:
                text = _joined(text, last, self._pieces[index].text)
                last = self._last_speakers[index]
            self._anchors[pieces] = text, size_of(text)
        return self._anchors[pieces]

    def _piece(self, chosen: Sequence[Unit], following: str) -> Piece:
        index = len(self._pieces)
        speakers = {unit.speaker for unit in chosen}
        anchors = self._anchor_pieces(speakers)
        text = _text(chosen)
        size = size_of(text)
        # What one piece needs of another is dropped before it makes both too long for the model to speak well.
        while len(anchors) > 1 and self._anchor(anchors)[1] + size > self._settings.good_bytes:
            anchors = anchors[1:]
        anchor, _ = self._anchor(anchors)
        last = last_tag(anchor) if self._transcript is not None else self._last_speakers[anchors[-1]] if anchors else ""
        piece = Piece(
            text=text,
            anchor=anchor,
            anchor_pieces=anchors,
            seed=derived_seed(self._seed, index),
            expected_seconds=size * self._settings.seconds_per_byte,
            opens_turn=chosen[0].opens,
            sent=_joined(anchor, last, text) + (self._tag_behind(chosen[-1].speaker, following)),
            size=size,
        )
        self._pieces.append(piece)
        self._last_speakers.append(chosen[-1].speaker)
        for speaker in speakers:
            self._introduced.setdefault(speaker, index)
        return piece

    def _tag_behind(self, speaker: str, following: str) -> str:
        """The next speaker's tag; where the same one goes on, or nobody, that of the other."""
        if not self._closing_tag:
            return ""
        if not following or following == speaker:
            following = TAGS[1] if speaker in ("", TAGS[0]) else TAGS[0]
        return f" {following}"


def _text(chosen: Sequence[Unit]) -> str:
    parts, last = [], None
    for unit in chosen:
        parts += [unit.speaker] if unit.speaker and unit.speaker != last else []
        parts.append(unit.text)
        last = unit.speaker
    return " ".join(parts)


def _joined(before: str, last: str, text: str) -> str:
    """Two texts as one; a speaker who goes on gets no second tag."""
    if not before:
        return text
    if last and text.startswith(last):
        text = text[len(last) :].lstrip()
    return f"{before} {text}"


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:20]} ... {text[-15:]}")
