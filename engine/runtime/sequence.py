"""The state of a request in the scheduler, and the urgency of its prefill and windows."""

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

# A stream that has emitted this much more audio than its player has played can wait.
AHEAD_SECONDS = 0.5
MAX_HELD_SECONDS = 2.0  # a complete window is decoded after this time, even if others are more urgent


class Prefill:
    """The prefill of a slot, in pieces of work that run between decode steps or concurrently in a worker."""

    def __init__(self, pieces: Generator[int, None, None]):
        """`pieces` runs the prefill and yields, before each piece, how many multiplications that piece takes."""
        self._pieces = pieces
        self._job: Job[None] | None = None
        self._has_begun = self._ended = False

    @property
    def is_handed_over(self) -> bool:
        """Whether it was submitted to the workers."""
        return self._job is not None

    def hand_over(self, workers: Workers, urgency: Urgency) -> None:
        """Submit the remaining pieces to the workers."""
        if not self._has_begun:
            self.run_piece()  # what comes before the first piece
        self._job = workers.submit(self._pieces, urgency)

    def has_ended(self) -> bool:
        """Whether all pieces have run. Raises the error of a piece that failed in a worker."""
        if self._job is not None and self._job.ready():
            self._job.wait()
            self._ended = True
        return self._ended

    def run_piece(self) -> int:
        """Run the next piece in this thread. The first call only does the setup before the first piece.

        Returns:
            multiplications of the piece after it, 0 if there is none.
        """
        self._has_begun = True
        try:
            return next(self._pieces)
        except StopIteration:
            self._ended = True
            return 0

    def stop(self) -> None:
        """Cancel it. When this returns, no thread writes to the slot's caches any more."""
        if self._job is not None:
            self._job.cancel()
            self._job.join()


@dataclass(eq=False)
class Sequence:
    """The state of a request in the scheduler. Times are those of `time.perf_counter`.

    Attributes:
        request: what to generate.
        index: index of the request in its call.
        call: receives the results; tells whether the caller has aborted.
        schedule: yields the request's windows.
        decoder: decodes windows to chunks.
        arrived: when the request was added.
        slot: -1 while the request waits, and after its slot was freed.
        prefill: the prefill of the slot.
        first_launch: number of the first launch that includes the request; 0 until its prefill is done.
        steps: decode steps launched for it.
        end_row: grid row of EOS; 0 until the request has ended.
        windows: complete but not yet decoded windows in order, each with the time at which it became complete.
        pending: chunks that are being decoded or copied to the host, in order, each with its length in seconds.
        codes: all codes [T, C] on the device and their copy to the host; None until the request has ended.
        emitted_seconds: seconds of audio emitted.
        first_emitted: when the first chunk was emitted; 0.0 before.
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
        """Whether a stream waits for its first chunk."""
        return self.call.streaming and not self.heard

    @property
    def is_ahead(self) -> bool:
        """Whether a stream is more than AHEAD_SECONDS ahead of a player that started with its first chunk."""
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
        """Cancel the prefill and pending chunks. When this returns, no thread writes to the slot any more."""
        for chunk, _ in self.pending:
            chunk.cancel()
        self.prefill.stop()


def urgency(sequence: Sequence) -> tuple[bool, bool, float]:
    """Sort key: new streams first, then streams by the time at which their players run out, then other requests."""
    _, since = sequence.windows[0]
    dry = sequence.first_emitted + sequence.emitted_seconds
    return not sequence.call.streaming, sequence.heard, dry if sequence.call.streaming else since


def prefill_urgency(sequence: Sequence) -> Urgency:
    """Urgency of a prefill: before all windows that are not overdue, as it delays the first chunk most."""
    return Urgency(is_later=not sequence.call.streaming, seconds=sequence.arrived)


def window_urgency(sequence: Sequence, window: Window, since: float, frames_per_second: float) -> Urgency:
    """Urgency of a window that became complete at `since`: a stream's first window comes before all others; later ones
    are due when the player runs out of audio; every window is due after MAX_HELD_SECONDS."""
    latest = since + MAX_HELD_SECONDS
    if not sequence.call.streaming:
        return Urgency(True, latest)
    if not window.first:
        return Urgency(False, sequence.arrived)
    return Urgency(True, min(latest, (sequence.first_emitted or since) + window.first / frames_per_second))
