"""Text that a client sends in pieces, as `Engine.astream` reads it."""

import asyncio
import re
from collections import deque
from collections.abc import Collection

from ...longform.planning.source import FLUSH, Flush
from ...longform.planning.turns import whole_sentences
from ..errors import ApiError

MAX_TEXTS = 64  # texts per client, including the one being spoken
MAX_WAITING = 20_000  # characters per client that the engine has not read yet
LONG_ENOUGH = 40  # characters with which generation starts: a shorter sentence waits for the next
MAY_END = re.compile(r"[\s\u3002\uff01\uff1f]")  # what makes the end of a sentence one
SENTENCE_END = re.compile(r"[.!?…][\"')\]]*\s*$")


class ArrivingText:
    """A script that arrives in parts: an asynchronous iterator of them, for one reader in the same event loop.

    Attributes:
        ended: whether the text is complete.
        waiting: characters that the reader has not read.
    """

    def __init__(self) -> None:
        self.ended, self.waiting = False, 0
        self._said: list[str] = []
        self._parts: deque[str | Flush] = deque()
        self._unspoken = ""  # since the last flush
        self._changed, self._speakable = asyncio.Event(), asyncio.Event()

    @property
    def so_far(self) -> str:
        """The text received so far."""
        return "".join(self._said)

    def add(self, text: str) -> None:
        """Append text. If it ends with a sentence, everything so far is released for generation."""
        self.waiting += len(text)
        self._said.append(text)
        self._parts.append(text)
        self._unspoken += text
        self._changed.set()
        if len(self._unspoken) < LONG_ENOUGH:
            return
        if SENTENCE_END.search(text):
            self.flush()
        elif not self._speakable.is_set() and MAY_END.search(text) and self._has_whole_sentence():
            self._speakable.set()

    def _has_whole_sentence(self) -> bool:
        return whole_sentences(self._unspoken, len(self._unspoken)) >= LONG_ENOUGH

    def flush(self) -> None:
        """Release everything received so far for generation, whether or not a sentence is complete."""
        if self._unspoken.strip():
            self._parts.append(FLUSH)
            self._speakable.set()
        self._unspoken = ""
        self._changed.set()

    def end(self) -> None:
        """Mark the text as complete."""
        self.ended = True
        self._speakable.set()
        self._changed.set()

    async def speakable(self) -> None:
        """Wait until generation can start or the text is complete."""
        await self._speakable.wait()

    def __aiter__(self) -> "ArrivingText":
        return self

    async def __anext__(self) -> str | Flush:
        while not self._parts:
            if self.ended:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        part = self._parts.popleft()
        if isinstance(part, str):
            self.waiting -= len(part)
        return part


def check_waiting(texts: Collection[ArrivingText], more: int = 0) -> None:
    """Check that a client has not sent too much text that is not spoken yet, `more` characters included.

    Raises:
        ApiError: 400, too many texts or characters.
    """
    if len(texts) > MAX_TEXTS:
        raise ApiError(400, f"at most {MAX_TEXTS} texts may wait to be spoken", code="text_too_long")
    if sum(text.waiting for text in texts) + more > MAX_WAITING:
        raise ApiError(400, f"at most {MAX_WAITING} characters may wait to be spoken", code="text_too_long")
