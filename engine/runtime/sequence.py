"""A request on its way through the scheduler, and how urgent its work is."""

import time
from collections import deque
from collections.abc import Generator
from dataclasses import dataclass, field

import torch

from ..codec.windowed import CodeWindows, Decoded, HostCopy
from ..devices.workers import Job, Urgency, Workers
from .call import Call
from .chunking import ChunkSchedule, Window
from .request import Request

# Audio that a stream has emitted beyond what its player has taken, from which on it can wait.
AHEAD_SECONDS = 0.5
MAX_HELD_SECONDS = 2.0  # the longest that a window waits for windows that are more urgent


class Prefill:
    """Pieces of work that fill a slot's caches: run between decode steps, or by a worker beside them."""

    def __init__(self, pieces: Generator[int, None, None]):
        """`pieces` yields the multiplications of each piece before it is run."""
        self._pieces = pieces
        self._job: Job[None] | None = None
        self._has_begun = self._ended = False

    @property
    def is_handed_over(self) -> bool:
        """Whether a worker runs it."""
        return self._job is not None

    def hand_over(self, workers: Workers, urgency: Urgency) -> None:
        """Have a worker run what is left of it."""
        if not self._has_begun:
            self.run_piece()  # what comes before the first piece
        self._job = workers.submit(self._pieces, urgency)

    def has_ended(self) -> bool:
        """Whether no piece is left; raises what a piece has raised in a worker."""
        if self._job is not None and self._job.ready():
            self._job.wait()
            self._ended = True
        return self._ended

    def run_piece(self) -> int:
        """Run the next piece here -> the multiplications of the one that follows, 0 if that was the last. The first
        call runs what comes before the first piece."""
        self._has_begun = True
        try:
            return next(self._pieces)
        except StopIteration:
            self._ended = True
            return 0

    def stop(self) -> None:
        """Give it up; when this returns, nobody writes to the slot's caches any more."""
        if self._job is not None:
            self._job.cancel()
            self._job.join()


@dataclass(eq=False)
class Sequence:
    """A request on its way through the scheduler.

    Attributes:
        request: what is to be generated.
        index: of the request in its call.
        call: where its results go, and whether anybody still wants them.
        schedule: the request's windows.
        decoder: what makes chunks of them.
        arrived: when it was added, in seconds of `time.perf_counter`.
        slot: -1 while it waits.
        prefill: what fills the slot's caches.
        first_launch: the first launch that it takes part in; 0 before its prefill is done.
        steps: decode steps that have been launched for it.
        windows: not yet decoded, in order, each with the time at which it became complete.
        pending: decoded windows on their way to the host.
        first_emitted: when the first chunk was emitted, in seconds of `time.perf_counter`.
    """

    request: Request
    index: int
    call: Call
    schedule: ChunkSchedule
    decoder: CodeWindows
    arrived: float = field(default_factory=time.perf_counter)
    slot: int = -1
    prefill: Prefill = field(default_factory=lambda: Prefill(piece for piece in list[int]()))
    first_launch: int = 0
    steps: int = 0
    end_row: int = 0
    windows: deque[tuple[Window, float]] = field(default_factory=deque)
    pending: deque[tuple[Decoded, float]] = field(default_factory=deque)
    codes: tuple[torch.Tensor, HostCopy] | None = None
    emitted_seconds: float = 0.0
    first_emitted: float = 0.0

    @property
    def prompt_frames(self) -> int:
        return len(self.request.prompt_codes)

    @property
    def heard(self) -> bool:
        """Whether the first chunk has been emitted or is on its way."""
        return bool(self.first_emitted or self.pending)

    @property
    def is_awaited(self) -> bool:
        """Whether a listener waits for the first chunk."""
        return self.call.streaming and not self.heard

    @property
    def is_ahead(self) -> bool:
        """Whether a stream has emitted so much more than its player has taken that it can wait."""
        if not self.call.streaming or not self.first_emitted:
            return False
        return self.emitted_seconds - (time.perf_counter() - self.first_emitted) > AHEAD_SECONDS

    @property
    def window_can_wait(self) -> bool:
        """Whether the next window may give way to another stream's first chunk."""
        _, since = self.windows[0]
        if time.perf_counter() - since > MAX_HELD_SECONDS:
            return False
        return not self.call.streaming or self.is_ahead

    def cancel_jobs(self) -> None:
        """Nobody waits for what is being computed; when this returns, nothing of it writes to the slot any more."""
        for chunk, _ in self.pending:
            chunk.cancel()
        self.prefill.stop()


def urgency(sequence: Sequence) -> tuple[bool, bool, float]:
    """Sorts sequences with windows: new streams, then streams by when their players run dry, then other requests."""
    _, since = sequence.windows[0]
    dry = sequence.first_emitted + sequence.emitted_seconds
    return not sequence.call.streaming, sequence.heard, dry if sequence.call.streaming else since


def prefill_urgency(sequence: Sequence) -> Urgency:
    """Prefills go before all windows that are not overdue: steps wait for them."""
    return Urgency(is_later=not sequence.call.streaming, seconds=sequence.arrived)


def window_urgency(sequence: Sequence, window: Window, since: float, frames_per_second: float) -> Urgency:
    """How urgent a window is that is complete since then: a stream's first goes before all others, a later one should
    be decoded before its player runs dry, and no window waits for more urgent ones for longer than MAX_HELD_SECONDS."""
    latest = since + MAX_HELD_SECONDS
    if not sequence.call.streaming:
        return Urgency(True, latest)
    if not window.first:
        return Urgency(False, sequence.arrived)
    return Urgency(True, min(latest, (sequence.first_emitted or since) + window.first / frames_per_second))
