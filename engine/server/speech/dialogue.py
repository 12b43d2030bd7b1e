"""Builds one script with [S1] and [S2] tags from the turns of one or two voices, incrementally."""

import asyncio
import re
from collections import deque
from collections.abc import Iterable
from typing import Generic, TypeVar

from ..voices.voice import TAG
from .arriving import ArrivingText, check_waiting

# ElevenLabs' audio tags that Dia has a sound for; others are read out.
SOUNDS = {
    "laughs", "clears throat", "sighs", "gasps", "coughs", "singing", "sings", "mumbles", "beep", "groans", "sniffs",
    "claps", "screams", "inhales", "exhales", "applause", "burps", "humming", "sneezes", "chuckle", "whistles",
}  # fmt: skip
BRACKETED = re.compile(r"\[([a-z ]+)\]", re.IGNORECASE)
LONGEST_TAG = 20  # characters; an open bracket is held back up to this length, as a tag may follow


class DialogueWriter:
    """Writes a script: the first voice becomes [S1], the second [S2]. A turn that begins with a tag keeps it.

    Attributes:
        voices: ids of the voices in the order of their first turns. The caller checks that there are at most two.
    """

    def __init__(self, *, sounds: bool = True):
        """`sounds`: convert ElevenLabs' audio tags such as [laughs] to Dia's (laughs)."""
        self.voices: list[str] = []
        self._sounds = sounds
        self._speaker: str | None = None
        self._held = ""  # the beginning of what may become a tag
        self._opens = False  # whether a turn begins with what comes next
        self._last = ""  # character of the script

    def add(self, text: str, voice: str) -> str:
        """Append what a voice says; returns the next part of the script, "" if a tag may still be incomplete."""
        rest = ""
        if voice != self._speaker:
            rest = self.finish()
            self._speaker, self._opens = voice, True
        text = self._held + text
        opened = text.rfind("[")
        is_open = opened >= 0 and "]" not in text[opened:] and len(text) - opened <= LONGEST_TAG
        text, self._held = (text[:opened], text[opened:]) if is_open else (text, "")
        return rest + self._written(text)

    def finish(self) -> str:
        """Return the text that was held back as a possible tag."""
        held, self._held = self._held, ""
        return self._written(held)

    def _written(self, text: str) -> str:
        if self._sounds:
            text = BRACKETED.sub(_sound, text)
        text = self._opened(text.lstrip()) if self._opens else text
        self._last = text[-1:] or self._last
        return text

    def _opened(self, text: str) -> str:
        """Text at the beginning of a turn, with its tag; "" as long as the turn is empty."""
        if not text or self._speaker is None:
            return ""
        self._opens = False
        if self._speaker not in self.voices:
            self.voices.append(self._speaker)
        tag = "" if TAG.match(text) else f"[S{self.voices.index(self._speaker) + 1}] "
        return ("" if not self._last or self._last.isspace() else " ") + tag + text


def script(turns: Iterable[tuple[str, str]]) -> str:
    """Convert turns (text, voice id) to a script."""
    writer = DialogueWriter()
    parts = [writer.add(f"{text.strip()} ", voice) for text, voice in turns if text.strip()]
    return "".join([*parts, writer.finish()]).strip()


def _sound(found: re.Match[str]) -> str:
    name = found[1].lower()
    return f"({name})" if name in SOUNDS else found[0]


class ArrivingDialogue:
    """A script whose turns arrive one after another.

    Attributes:
        script: the text so far.
        begun: whether generation has started; from then on no other voice can join.
    """

    def __init__(self, *, sounds: bool = True):
        """`sounds`: see `DialogueWriter`."""
        self.script, self.begun = ArrivingText(), False
        self._writer = DialogueWriter(sounds=sounds)

    def takes(self, voice: str) -> bool:
        """Whether a voice can speak in this script: once generation has started, only those of its prompt can."""
        return not self.begun or voice in self._writer.voices

    def add(self, text: str, voice: str = "") -> None:
        """Append what a voice says."""
        self._extend(self._writer.add(text, voice))

    def flush(self) -> None:
        """Release everything received so far for generation."""
        self._extend(self._writer.finish())
        self.script.flush()

    def end(self) -> None:
        """Mark the script as complete."""
        self._extend(self._writer.finish())
        self.script.end()

    async def begin(self) -> list[str]:
        """Wait until generation can start; returns the ids of the voices, which are fixed from then on. Empty if the
        script ended without text."""
        await self.script.speakable()
        self.begun = True
        return self._writer.voices

    def _extend(self, part: str) -> None:
        if part:
            self.script.add(part)


Text = TypeVar("Text", bound=ArrivingDialogue)


class TextQueue(Generic[Text]):
    """Texts of a client, spoken one after another. Every method must be called in the same event loop.

    Attributes:
        closing: whether the client sends no further text.
    """

    def __init__(self) -> None:
        self.closing = False
        self._texts: deque[Text] = deque()
        self._changed = asyncio.Event()

    def add(self, text: Text) -> None:
        """Append a text."""
        self._texts.append(text)
        self._changed.set()

    def close(self) -> None:
        """Accept no further text."""
        self.closing = True
        self._changed.set()

    def check(self, more: int = 0) -> None:
        """Raises ApiError if too much text waits, `more` characters included; see `check_waiting`."""
        check_waiting([text.script for text in self._texts], more)

    async def first(self) -> Text | None:
        """Wait for the next text to speak, which stays in the queue until `pop`. None once it is closed and empty."""
        while not self._texts:
            if self.closing:
                return None
            self._changed.clear()
            await self._changed.wait()
        return self._texts[0]

    def pop(self) -> None:
        """Remove the first text, which has been spoken."""
        self._texts.popleft()
