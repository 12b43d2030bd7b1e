"""When which frames can be given out, and the loop that makes steps and sound in turn.

A frame is complete when the row of its most delayed channel is written: frame t after P prompt frames in row
P + 1 + t + max(delay). Its sound is final when the frames in the codec's reach are complete too, or the end has come.
So each chunk is decoded in a window: its frames and the reach on both sides, as far as there are frames.

    frames     0 1 2 3 4 5 6 7 8 9 ...
    chunk 1    [first][ after ]              what is in brackets is given out, the rest is context
    chunk 2    before][  chunk_frames  ][ after ]
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import numpy as np

from ..codec.receptive_field import Reach
from ..codec.windowed import CodeWindows, HostCopy
from ..kernels.advance import RUNNING
from ..messages import shown
from ..model.nonfinite import non_finite_logits
from ..model.state import DecodeState
from ..sampling_params import require_integer
from .generation import spoken_codes, start_requests
from .request import Request
from .runner import Stepper

DEFAULT_CHUNK_FRAMES = 48
DEFAULT_FIRST_CHUNK_FRAMES = 8
POLL_SECONDS = 1e-4
TURN_SECONDS = 0.02


@dataclass(frozen=True)
class ChunkSizes:
    """Frames a chunk: `first_chunk_frames`, then twice as many each time up to `chunk_frames`.

    A player that starts with the first chunk runs dry if the next takes longer to make than this one plays: doubling
    asks for twice real time at the start, and for real time from then on.

    Raises:
        TypeError: not an integer.
        ValueError: under 1, or a first chunk larger than the others.
    """

    chunk_frames: int | None = None
    first_chunk_frames: int | None = None

    def __post_init__(self):
        for name, frames in asdict(self).items():
            if frames is not None:
                require_integer(name, frames)
                if frames < 1:
                    raise ValueError(f"{name} must be at least 1, got {shown(frames)}")
        if None not in (self.chunk_frames, self.first_chunk_frames) and self.first_chunk_frames > self.chunk_frames:
            raise ValueError(
                f"first_chunk_frames must be at most chunk_frames, {shown(self.chunk_frames)}, "
                f"got {shown(self.first_chunk_frames)}"
            )

    def settled(self, reach: Reach) -> "ChunkSizes":
        """Both sizes, see `frames`."""
        return ChunkSizes(*self.frames(reach))

    def frames(self, reach: Reach) -> tuple[int, int]:
        """Both sizes in this order. The defaults keep the work for a codec of this reach within 1.5 times that of the
        whole."""
        first, context = self.first_chunk_frames, reach.before + reach.after
        steady = self.chunk_frames or max(DEFAULT_CHUNK_FRAMES, 2 * context, first or 0)
        return steady, first or min(DEFAULT_FIRST_CHUNK_FRAMES, steady)


@dataclass(frozen=True)
class Window:
    """Frames [start, stop) to decode, of which [first, last) are given out; to the very end of the sound if `ends`."""

    start: int
    stop: int
    first: int
    last: int
    ends: bool


class Schedule:
    """The windows of one sound, in order."""

    def __init__(self, sizes: ChunkSizes, reach: Reach):
        self._reach = reach
        self._steady, self._size = sizes.frames(reach)
        self._given = 0

    def wanted(self) -> int:
        """Complete frames that the next window waits for, unless the end comes before."""
        return self._given + self._size + self._reach.after

    def next(self, frames: int, ended: bool) -> Window | None:
        """The next window that can be decoded, None if there is none yet or no more.

        Args:
            frames: how many are complete.
            ended: no more will be.
        """
        if self.wanted() > frames and (not ended or self._given == frames):
            return None
        first, last = self._given, min(self._given + self._size, frames)
        self._given, self._size = last, min(2 * self._size, self._steady)
        stop = min(last + self._reach.after, frames)
        return Window(max(0, first - self._reach.before), stop, first, last, ends=ended and last == frames)


def full_windows(sizes: ChunkSizes, reach: Reach) -> Iterator[Window]:
    """The windows of a sound without end."""
    schedule = Schedule(sizes, reach)
    while True:
        window = schedule.next(schedule.wanted(), ended=False)
        if window is not None:
            yield window


def window_lengths(sizes: ChunkSizes, reach: Reach) -> set[int]:
    """Frames of every window but the last ones of a sound."""
    lengths: set[int] = set()
    steady, _ = sizes.frames(reach)
    for window in full_windows(sizes, reach):
        lengths.add(window.stop - window.start)
        if window.last - window.first == steady and window.first >= reach.before:
            break
    return lengths


def complete_frames(position: int, countdown: int, end_row: int, prompt: int, max_delay: int) -> tuple[int, bool]:
    """Frames of a slot that are complete, prompt excluded, and whether they are all that there will be.

    Every frame that is complete will be kept: an end that cuts frame t comes no later than its row for channel 0.

    Args:
        position, countdown, end_row: of the slot, see `DecodeState`.
        prompt: frames of the prompt.
        max_delay: the largest of the channels' delays.
    """
    if countdown == 0:
        return end_row - prompt - 1, True
    complete = max(0, position - prompt - max_delay)
    if countdown != RUNNING:
        complete = min(complete, end_row - prompt - 1)
    return complete, False


def speak(
    stepper: Stepper,
    requests: list[Request],
    windows: CodeWindows,
    sizes: ChunkSizes,
    progress: Callable[[int], None] | None = None,
) -> Iterator[tuple[int, np.ndarray] | None]:
    """Generate a batch and give out its sound as it is made.

    Holds the stepper's lock while it is open. The decoding of sound does not hold up the steps: on a GPU it runs beside
    them, on a CPU they take turns.

    Yields:
        (index of the request, what `windows` makes of its next frames); None when texts and prompts are read, after
        every launch of steps and while it waits for its turn, so that its user can stop it or look at the time.
    """
    while not stepper.lock.acquire(timeout=TURN_SECONDS):
        yield None
    try:
        windows.prepare(window_lengths(sizes, windows.reach))
        state = start_requests(stepper, requests)
        yield None
        yield from _Speech(stepper, state, requests, windows, sizes).chunks(progress)
    finally:
        try:
            windows.drain()  # what it reads belongs to the next request from here on
        finally:
            stepper.lock.release()


class _Speech:
    """One batch on its way."""

    def __init__(
        self, stepper: Stepper, state: DecodeState, requests: list[Request], windows: CodeWindows, sizes: ChunkSizes
    ):
        self.stepper, self.state, self.windows, self.sizes = stepper, state, windows, sizes
        self.prompts = [len(request.prompt_codes) for request in requests]
        self.schedules = [Schedule(sizes, windows.reach) for _ in requests]
        self.pending: deque[tuple[int, HostCopy]] = deque()

    def chunks(self, progress: Callable[[int], None] | None) -> Iterator[tuple[int, np.ndarray] | None]:
        max_delay = self.state.config.max_delay
        # A step completes a frame of every request, whatever its prompt: launches end where windows become ready.
        stops = (max_delay + window.stop for window in full_windows(self.sizes, self.windows.reach))
        for look in self.stepper.looks(self.state, progress, stops):
            while self.pending and not look.ready():
                time.sleep(POLL_SECONDS)
                yield from self._finished()
            look.wait()
            yield None
            for slot, prompt in enumerate(self.prompts):
                position, countdown, end_row = (
                    int(field[slot]) for field in (look.position, look.countdown, look.end_row)
                )
                if look.broken[slot]:
                    raise non_finite_logits(position + 1, self.stepper.model.dtype)
                frames, ended = complete_frames(position, countdown, end_row, prompt, max_delay)
                while window := self.schedules[slot].next(frames, ended):
                    self._start_decoding(slot, window)
                    yield from self._finished()
        while self.pending:
            yield from self._take()

    def _start_decoding(self, slot: int, window: Window) -> None:
        start = self.windows.widened(window.start, window.stop)
        prompt, grid = self.prompts[slot], self.state.grid[slot]
        # The look has waited for the rows that are read here, so that the stream of the windows need not.
        with self.windows.on_stream():
            codes = spoken_codes(grid, self.state.config, prompt + start, window.stop - start)
            last = None if window.ends else window.last - start
            self.pending.append((slot, self.windows.decode(codes, window.first - start, last)))

    def _finished(self) -> Iterator[tuple[int, np.ndarray]]:
        while self.pending and self.pending[0][1].ready():
            yield from self._take()

    def _take(self) -> Iterator[tuple[int, np.ndarray]]:
        slot, copy = self.pending.popleft()
        piece = copy.wait().numpy().copy()  # what it is a part of is larger, or pinned
        self.windows.check(piece)
        if len(piece):  # the samples that a codec of odd strides drops can be a whole frame's
            yield slot, piece
