"""Turns of one or two voices as one script, as they come."""

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
LONGEST_TAG = 20  # characters after a bracket in which the other one may still come


class DialogueWriter:
    """Writes a script: the first voice is [S1], the second [S2]. A turn that names its speaker itself is left as it is.

    Attributes:
        voices: that speak, in the order of their first turns. A script has at most two; that is for the caller to see.
    """

    def __init__(self, *, sounds: bool = True):
        """`sounds`: write ElevenLabs' [laughs] as Dia's (laughs)."""
        self.voices: list[str] = []
        self._sounds = sounds
        self._speaker: str | None = None
        self._held = ""  # the beginning of what may become a tag
        self._opens = False  # whether a turn begins with what comes next
        self._last = ""  # character of the script

    def add(self, text: str, voice: str) -> str:
        """What a voice says next, as the next part of the script; "" if there is nothing to write yet."""
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
        """What was held back, because a tag could have become of it."""
        held, self._held = self._held, ""
        return self._written(held)

    def _written(self, text: str) -> str:
        if self._sounds:
            text = BRACKETED.sub(_sound, text)
        text = self._opened(text.lstrip()) if self._opens else text
        self._last = text[-1:] or self._last
        return text

    def _opened(self, text: str) -> str:
        """The beginning of a turn, once there is any."""
        if not text or self._speaker is None:
            return ""
        self._opens = False
        if self._speaker not in self.voices:
            self.voices.append(self._speaker)
        tag = "" if TAG.match(text) else f"[S{self.voices.index(self._speaker) + 1}] "
        return ("" if not self._last or self._last.isspace() else " ") + tag + text


def script(turns: Iterable[tuple[str, str]]) -> str:
    """Turns (text, voice) as a script."""
    writer = DialogueWriter()
    parts = [writer.add(f"{text.strip()} ", voice) for text, voice in turns if text.strip()]
    return "".join([*parts, writer.finish()]).strip()


def _sound(found: re.Match[str]) -> str:
    name = found[1].lower()
    return f"({name})" if name in SOUNDS else found[0]


class ArrivingDialogue:
    """A script of which more turns may come.

    Attributes:
        script: of it.
        begun: whether its voices are settled.
    """

    def __init__(self, *, sounds: bool = True):
        """`sounds`: as of `DialogueWriter`."""
        self.script, self.begun = ArrivingText(), False
        self._writer = DialogueWriter(sounds=sounds)

    def takes(self, voice: str) -> bool:
        """Whether a voice can go on with it: the prompt of a script that is begun holds no other one."""
        return not self.begun or voice in self._writer.voices

    def add(self, text: str, voice: str = "") -> None:
        """Take what a voice says next."""
        self._extend(self._writer.add(text, voice))

    def flush(self) -> None:
        """Have what has come spoken."""
        self._extend(self._writer.finish())
        self.script.flush()

    def end(self) -> None:
        """No more comes."""
        self._extend(self._writer.finish())
        self.script.end()

    async def begin(self) -> list[str]:
        """Wait until there is something to speak or all of it has come -> the voices, which are settled from now on;
        none if there is nothing to speak."""
        await self.script.speakable()
        self.begun = True
        return self._writer.voices

    def _extend(self, part: str) -> None:
        if part:
            self.script.add(part)


Text = TypeVar("Text", bound=ArrivingDialogue)


class TextQueue(Generic[Text]):
    """Texts of a client that are spoken one after another. Belongs to one event loop.

    Attributes:
        closing: no further text comes.
    """

    def __init__(self) -> None:
        self.closing = False
        self._texts: deque[Text] = deque()
        self._changed = asyncio.Event()

    def add(self, text: Text) -> None:
        """Take one more."""
        self._texts.append(text)
        self._changed.set()

    def close(self) -> None:
        """No further one comes."""
        self.closing = True
        self._changed.set()

    def check(self, more: int = 0) -> None:
        """Check what waits, with so many characters more; raises ApiError, see `check_waiting`."""
        check_waiting([text.script for text in self._texts], more)

    async def first(self) -> Text | None:
        """The next to be spoken, once there is one; it stays in the queue until `pop`. None at the end."""
        while not self._texts:
            if self.closing:
                return None
            self._changed.clear()
            await self._changed.wait()
        return self._texts[0]

    def pop(self) -> None:
        """The first has been spoken."""
        self._texts.popleft()
