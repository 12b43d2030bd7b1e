"""When which frames of a request can be decoded to audio: chunk sizes, windows, complete frames.

A frame is complete when the row of its most delayed channel is written: frame t after P prompt frames in row
P + 1 + t + max(delay). Its audio is final when the frames in the codec's receptive field are complete too, or the end
has come. So each chunk is decoded in a window: its frames and the receptive field on both sides, as far as there are
frames.

    frames     0 1 2 3 4 5 6 7 8 9 ...
    chunk 1    [first][ after ]              what is in brackets is emitted, the rest is context
    chunk 2    before][  chunk_frames  ][ after ]
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from ..codec.receptive_field import ReceptiveField
from ..kernels.advance import RUNNING
from ..messages import shown
from ..sampling_params import require_integer

DEFAULT_CHUNK_FRAMES = 48
DEFAULT_FIRST_CHUNK_FRAMES = 8


@dataclass(frozen=True)
class ChunkSizes:
    """Frames per chunk: `first_chunk_frames`, then twice as many each time up to `chunk_frames`.

    A player that starts with the first chunk runs dry if the next takes longer to make than this one plays: doubling
    asks for twice real time at the start, and for real time from then on.

    Raises:
        TypeError: not an integer.
        ValueError: under 1, or a first chunk larger than the others.
    """

    chunk_frames: int | None = None
    first_chunk_frames: int | None = None

    def __post_init__(self) -> None:
        for name, frames in asdict(self).items():
            if frames is not None:
                require_integer(name, frames)
                if frames < 1:
                    raise ValueError(f"{name} must be at least 1, got {shown(frames)}")
        steady, first = self.chunk_frames, self.first_chunk_frames
        if steady is not None and first is not None and first > steady:
            raise ValueError(f"first_chunk_frames must be at most chunk_frames, {shown(steady)}, got {shown(first)}")

    def with_defaults(self, receptive_field: ReceptiveField) -> "ChunkSizes":
        """Both sizes as numbers, see `frames`."""
        return ChunkSizes(*self.frames(receptive_field))

    def frames(self, receptive_field: ReceptiveField) -> tuple[int, int]:
        """Both sizes in this order. The defaults keep the codec's work within 1.5 times that of the whole."""
        first, context = self.first_chunk_frames, receptive_field.before + receptive_field.after
        steady = self.chunk_frames or max(DEFAULT_CHUNK_FRAMES, 2 * context, first or 0)
        return steady, first or min(DEFAULT_FIRST_CHUNK_FRAMES, steady)


@dataclass(frozen=True)
class Window:
    """Frames [start, stop) to decode, of which [first, last) are emitted; to the very end of the audio if `ends`."""

    start: int
    stop: int
    first: int
    last: int
    ends: bool


class ChunkSchedule:
    """The windows of one request, in order."""

    def __init__(self, sizes: ChunkSizes, receptive_field: ReceptiveField):
        self._receptive_field = receptive_field
        self._steady, self._size = sizes.frames(receptive_field)
        self._emitted = 0

    def wanted(self) -> int:
        """Complete frames that the next window waits for, unless the end comes before."""
        return self._emitted + self._size + self._receptive_field.after

    def next(self, frames: int, ended: bool, up_to: int = 0) -> Window | None:
        """The next window that can be decoded, None if there is none yet or no more.

        Args:
            frames: how many are complete.
            ended: no more will be.
            up_to: frames that are wanted now, though the last of them fill no chunk.
        """
        first, last = self._emitted, self._emitted + self._size
        if self.wanted() > frames:
            last = min(last, frames if ended else up_to)
        if first >= last:
            return None
        self._emitted, self._size = last, min(2 * self._size, self._steady)
        stop = min(last + self._receptive_field.after, frames)
        return Window(max(0, first - self._receptive_field.before), stop, first, last, ends=ended and last == frames)


def full_windows(sizes: ChunkSizes, receptive_field: ReceptiveField) -> Iterator[Window]:
    """The windows of a request without end."""
    schedule = ChunkSchedule(sizes, receptive_field)
    while True:
        window = schedule.next(schedule.wanted(), ended=False)
        if window is not None:
            yield window


def window_lengths(sizes: ChunkSizes, receptive_field: ReceptiveField) -> set[int]:
    """Frames of every window but the last ones of a request."""
    lengths: set[int] = set()
    steady, _ = sizes.frames(receptive_field)
    for window in full_windows(sizes, receptive_field):
        lengths.add(window.stop - window.start)
        if window.last - window.first == steady and window.first >= receptive_field.before:
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
