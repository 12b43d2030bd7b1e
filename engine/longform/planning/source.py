"""Where pieces come from: a plan that is known, or text that still arrives."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

from ...longform_settings import LongFormSettings
from ...runtime.call import without_stop
from ...text.script import TAGS
from .plan import Piece, Planner
from .turns import last_tag, units, whole_sentences

if TYPE_CHECKING:
    from ..calls import ScriptCall

MOST_PARTS, MOST_PIECES = 256, 64  # of a text that arrives, which wait to be planned and to be spoken
POLL_SECONDS = 0.05


class Flush:
    """The type of FLUSH."""

    def __repr__(self) -> str:
        return "FLUSH"


# Among the parts of a text that arrives: speak what is there, whether its last sentence has ended or not, to its very
# end, whenever more comes.
FLUSH: Final = Flush()


class PieceSource(Protocol):
    """Pieces in order."""

    @property
    def is_complete(self) -> bool:
        """Whether `take` has given the last one."""

    @property
    def total(self) -> int | None:
        """How many there are; None while that is not known."""

    @property
    def expected_seconds(self) -> float | None:
        """Of all of them; None while that is not known."""

    @property
    def is_flushed(self) -> bool:
        """Whether all that has come is to be heard now, however long it takes until more comes."""

    def take(self, idle: bool) -> Piece | None:
        """The next piece, None if there is none (yet). `idle`: nothing is being made, so a short one is welcome."""

    def is_anchor(self, index: int) -> bool:
        """Whether later pieces may follow this one."""


class Planned:
    """The pieces of a text that is known. They are planned as they are taken, so that the first sound of a long script
    does not wait for the plan of all of it."""

    is_flushed = False

    def __init__(self, pieces: Iterator[Piece]):
        self._left = pieces
        self._ready: deque[Piece] = deque()  # planned and not taken
        self._anchors: set[int] = set()
        self._planned, self._expected_seconds = 0, 0.0

    @property
    def is_complete(self) -> bool:
        return not (self._ready or self._plan_next())

    @property
    def total(self) -> int:
        self._plan_all()
        return self._planned

    @property
    def expected_seconds(self) -> float:
        self._plan_all()
        return self._expected_seconds

    def take(self, idle: bool) -> Piece | None:
        return self._ready.popleft() if self._ready or self._plan_next() else None

    def is_anchor(self, index: int) -> bool:
        self._plan_all()
        return index in self._anchors

    def _plan_next(self) -> bool:
        """Plan one more piece; whether there was one."""
        piece = next(self._left, None)
        if piece is None:
            return False
        self._ready.append(piece)
        self._anchors.update(piece.anchor_pieces)
        self._planned += 1
        self._expected_seconds += piece.expected_seconds
        return True

    def _plan_all(self) -> None:
        while self._plan_next():
            pass


@dataclass
class Arriving:
    """Pieces of a text that arrives in parts. Used by one thread.

    A piece is as long as the whole sentences that are there when it can be made: the first may be a single one, later
    ones fill up while others are being made.

    Attributes:
        check: raises ValueError for a piece that the model cannot read.
        is_flushed: see `PieceSource`.
    """

    seed: int
    settings: LongFormSettings
    transcript: str | None
    one_turn: bool
    closing_tag: bool
    check: Callable[[Piece], object]
    total: None = None
    expected_seconds: None = None
    is_flushed: bool = False
    _text: str = ""
    _speaker: str = ""
    _ended: bool = False
    _flushing: bool = False
    _last: str | None = None  # who has spoken
    _ready: deque[Piece] = field(default_factory=deque)
    _any_anchor: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._planner = Planner(
            self.seed, self.settings,
            transcript=self.transcript, one_turn=self.one_turn, closing_tag=self.closing_tag,
        )  # fmt: skip
        self._speakers: set[str] = set()
        self._taken = 0

    def feed(self, part: "str | Flush") -> None:
        """Take a part of the text.

        Raises:
            TypeError: something else.
        """
        if isinstance(part, Flush):
            self._flushing = self.is_flushed = True
        elif isinstance(part, str):
            self._text += part
            self.is_flushed = self.is_flushed and not part
        else:
            raise TypeError(f"the parts of a text must be strings, got {type(part).__name__}")
        self._plan_whole_sentences()

    def end(self) -> None:
        """No more text comes."""
        self._ended = True
        self._plan_whole_sentences()

    @property
    def is_complete(self) -> bool:
        return self._ended and not self._ready

    @property
    def ready(self) -> int:
        """Pieces that can be taken."""
        return len(self._ready)

    def take(self, idle: bool) -> Piece | None:
        if idle and not self._ready:
            self._collect(self._planner.add((), final=True))
        if not self._ready:
            return None
        piece = self._ready.popleft()
        if any(tag not in self._speakers for tag in _speakers_of(piece)):
            self._any_anchor.add(self._taken)
        self._speakers |= _speakers_of(piece)
        self._taken += 1
        return piece

    def is_anchor(self, index: int) -> bool:
        return index in self._any_anchor

    def _plan_whole_sentences(self) -> None:
        everything = self._ended or self._flushing
        self._flushing = False
        if everything:
            self._plan_to(len(self._text), final=True)
        while end := whole_sentences(self._text, self.settings.piece_bytes):
            self._plan_to(end, final=False)

    def _plan_to(self, end: int, final: bool) -> None:
        """Take the text up to there out of what waits."""
        whole, self._text = self._text[:end], self._text[end:]
        more = list(units(whole, self.settings.piece_bytes, self._speaker, self._last))
        self._last = more[-1].speaker if more else self._last
        self._speaker = last_tag(whole) or self._speaker
        self._collect(self._planner.add(more, final=final))

    def _collect(self, pieces: Sequence[Piece]) -> None:
        for piece in pieces:
            self.check(piece)
            self._ready.append(piece)


class Feeder:
    """Brings the parts of a text, as they come, to the thread of their script."""

    def __init__(
        self,
        parts: Any,
        source: Arriving,
        call: "ScriptCall",
        wake: Callable[[Callable[[], Any]], None],
        fail: Callable[[BaseException], None],
        loop: asyncio.AbstractEventLoop | None,
    ):
        """
        Args:
            parts: an iterator of the text's parts, or an asynchronous one of the event loop `loop`.
            source: takes them.
            call: while it is not aborted.
            wake: does some work in the script's thread.
            fail: ends the script with an error.
        """
        self._parts, self._source, self._call = parts, source, call
        self._wake, self._fail, self._loop = wake, fail, loop
        self._sent = self._taken = 0

    def start(self) -> None:
        if self._loop is None:
            threading.Thread(target=self._read, name="dia-engine text", daemon=True).start()
            return
        future = asyncio.run_coroutine_threadsafe(self._read_async(), self._loop)
        self._call.on_abort.append(future.cancel)

    def _read(self) -> None:
        try:
            try:
                for part in self._parts:
                    while self._is_far_ahead and not self._call.aborted:
                        time.sleep(POLL_SECONDS)
                    if self._call.aborted:
                        break
                    self._feed(part)
            finally:
                close = getattr(self._parts, "close", None)
                if close is not None:
                    close()
            self._wake(self._source.end)
        except BaseException as error:
            self._fail(without_stop(error, "the iterator of the text"))

    async def _read_async(self) -> None:
        try:
            async for part in self._parts:
                while self._is_far_ahead:
                    await asyncio.sleep(POLL_SECONDS)
                self._feed(part)
            self._wake(self._source.end)
        except BaseException as error:
            # A cancellation that the end of the call did not ask for is the text's own error.
            if not (isinstance(error, asyncio.CancelledError) and self._call.aborted):
                self._fail(without_stop(error, "the iterator of the text"))
            if isinstance(error, asyncio.CancelledError):
                raise

    @property
    def _is_far_ahead(self) -> bool:
        """Whether so much waits to be spoken that a text without an end would fill the memory."""
        return self._sent - self._taken >= MOST_PARTS or self._source.ready >= MOST_PIECES

    def _feed(self, part: Any) -> None:
        self._sent += 1

        def work() -> None:
            self._taken += 1
            self._source.feed(part)

        self._wake(work)


def _speakers_of(piece: Piece) -> set[str]:
    return {tag for tag in TAGS if tag in piece.text} or {""}


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop that this thread runs."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
