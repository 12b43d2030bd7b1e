"""A script as units: stretches of one speaker's text that pieces are put together from.

A unit is a sentence; a sentence that is too long for a piece is cut behind a comma, else between words, else between
characters. Nothing is cut inside parentheses, which hold sounds such as (laughs), unless they are too long themselves.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from ...text.script import TAGS

LONGEST_PARENTHESIS = 200  # characters that a growing text is given to close one
_TAG = re.compile("|".join(map(re.escape, TAGS)))
# The end of a sentence and the quotes and brackets that close with it; full-width ends need no space behind them. A run
# of ends is looked at from its first, or a long one would take time by the square of its length.
_SENTENCE_END = re.compile(
    r"(?<![.!?\u2026])[.!?\u2026]+[\"'\u2019\u201d\u00bb)\]]*(?=\s|$)|[\u3002\uff01\uff1f]+[\u300d\u300f\u201d\uff09]*"
)
_PHRASE_END = re.compile(r"[,;:\u2013\u2014](?=\s|$)|[\u3001\uff0c\uff1b\uff1a]")
_OPENING = "(\uff08"
_WORD_END = re.compile(r"\S(?=\s)")


@dataclass(frozen=True)
class Unit:
    """Text of one speaker, without a tag.

    Attributes:
        speaker: a tag such as "[S1]"; "" before the first tag of a script.
        text: without white space at its ends.
        opens: whether a turn begins with it.
    """

    speaker: str
    text: str
    opens: bool

    @cached_property
    def size(self) -> int:
        """Bytes in a piece: with the space before it, or its tag and a space."""
        return len(self.text.encode("utf-8", "surrogatepass")) + (2 if self.opens else 1)


def units(script: str, most: int, speaker: str = "", last: str | None = None) -> Iterator[Unit]:
    """The units of a script in order, none of more than `most` bytes.

    Consecutive turns of one speaker are one turn: Dia loses its way where a tag is repeated.

    Args:
        speaker: who speaks before the first tag.
        last: who spoke before the script, and may go on; None for nobody.
    """
    at = 0
    for match in [*_TAG.finditer(script), None]:
        text = script[at : match.start() if match else len(script)]
        for part in sentences(text, most):
            yield Unit(speaker, part, opens=speaker != last)
            last = speaker
        if match:
            at, speaker = match.end(), match.group()


def sentences(text: str, most: int) -> list[str]:
    """The sentences of a text without tags, and parts of those that are longer than `most` bytes less a tag."""
    room = max(4, most - 2)  # no character takes more than four
    parts: list[str] = []
    for sentence in _cut(text, _SENTENCE_END):
        parts += _shortened(sentence, room)
    return parts


def last_tag(text: str) -> str:
    """The speaker tag that a text has last, "" for none."""
    return max(TAGS, key=text.rfind) if any(tag in text for tag in TAGS) else ""


def whole_sentences(text: str, most: int) -> int:
    """The length of the beginning of a growing text behind which no sentence is open; 0 if there is none.

    A text that ends with a full stop may go on with a digit or a quote: only an end that is followed by something
    counts, and none behind a parenthesis that is still open. A sentence that is already so long that `sentences` will
    cut it ends at the last of these cuts: at the first, all the rest would be looked at again for each.
    """
    opened = text.rfind("(")
    if opened >= 0 and ")" not in text[opened:] and len(text) - opened <= LONGEST_PARENTHESIS:
        text = text[: opened + 1]
    ends = [end for end in _ends(text, _SENTENCE_END) if end < len(text)]
    begins = len(text) - len(text.lstrip())
    tags = [match.start() for match in _TAG.finditer(text) if match.start() > begins]
    whole, room = max([0, *ends, *tags]), max(4, most - 2)
    while not ends and not tags and len(text) - whole >= 2 * room:
        whole = _next_cut(text, whole, room)
    return whole


def _shortened(text: str, room: int) -> Iterator[str]:
    """A text in parts of at most `room` bytes, each as long as the best places to cut allow."""
    start = 0
    while _bytes(text[start : start + room + 1]) > room:
        end = _next_cut(text, start, room)
        yield text[start:end].strip()
        start = end
    yield text[start:]


def _next_cut(text: str, start: int, room: int) -> int:
    """The place behind `start` where to cut a text that has more than `room` bytes there, and behind white space."""
    end = start + _place_to_cut(text[start : start + 2 * room], room)
    while text[end : end + 1].isspace():
        end += 1
    return end


def _place_to_cut(text: str, room: int) -> int:
    """Where to cut a text of more than `room` bytes."""
    longest = sum(size <= room for size in accumulate(map(_bytes, text)))
    for pattern in (_PHRASE_END, _WORD_END):
        fitting = [end for end in _ends(text, pattern) if end <= longest]
        if fitting:
            return fitting[-1]
    # Inside parentheses that are too long a space is still better than the middle of a word.
    space = text.rfind(" ", 1, longest)
    return space if space > 0 else longest


def _cut(text: str, pattern: re.Pattern[str]) -> Iterator[str]:
    """The non-empty parts of a text between the places where a pattern ends."""
    start = 0
    for end in [*_ends(text, pattern), len(text)]:
        part = text[start:end].strip()
        start = end
        if part:
            yield part


def _ends(text: str, pattern: re.Pattern[str]) -> list[int]:
    """Where matches of a pattern end, outside parentheses."""
    if not any(opening in text for opening in _OPENING):
        return [match.end() for match in pattern.finditer(text)]
    inside = _inside_parentheses(text)
    return [match.end() for match in pattern.finditer(text) if not inside[match.start()]]


def _inside_parentheses(text: str) -> list[bool]:
    """For each character whether it stands between a parenthesis and the one that closes it, those included."""
    open_at: list[int] = []
    changes = [0] * (len(text) + 1)
    for index, character in enumerate(text):
        if character in _OPENING:
            open_at.append(index)
        elif character in ")\uff09" and open_at:
            changes[open_at.pop()] += 1
            changes[index + 1] -= 1
    return [depth > 0 for depth in accumulate(changes[:-1])]


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))
