"""The codes of consecutive pieces as one sound: decoded in windows that reach across their joins, then edited."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from ..audio.stretch import SHIFTED_SECONDS, TimeStretch
from ..codec.receptive_field import ReceptiveField
from ..codec.windowed import Decoded
from ..runtime.chunking import ChunkSchedule, ChunkSizes, Window
from .options import FADE_SECONDS, SILENT_SECONDS, SpeechOptions

# Codes [W, C] of a window, and the frames [first, last) of it that are wanted, to the end if last is None -> its
# samples, in the making.
Decode = Callable[[np.ndarray, int, int | None], Decoded]


@dataclass
class _Edit:
    """An edit at the end of a piece: its audio fades out, and the audio of the next piece fades in.

    Attributes:
        place: index of the first sample of the next piece.
        silent: number of samples before it that are silent, after the fade-out.
        silence: number of samples of silence to insert between the two; 0 once inserted.
    """

    place: int
    silent: int
    silence: int


class Assembler:
    """Takes frames and joins as they come, gives out sound [samples] float32; or codes, without a codec."""

    def __init__(
        self,
        decode: Decode,
        samples: Callable[[Decoded], np.ndarray],
        receptive_field: ReceptiveField,
        sizes: ChunkSizes,
        options: SpeechOptions,
        *,
        hop: int,
        frames_per_second: float,
        sample_rate: int | None,
        windows_at_once: int = 1,
    ):
        """
        Args:
            decode: begins to decode a window.
            samples: waits for those of one; raises what is wrong with them.
            hop: samples per frame.
            sample_rate: None without a codec.
            windows_at_once: how many are being decoded at most, where there are cores for it.
        """
        self._decode, self._samples, self._hop, self.receptive_field = decode, samples, hop, receptive_field
        self._windows_at_once = windows_at_once
        self._begun: deque[tuple[Window, Decoded]] = deque()  # windows that are being decoded, in order
        self._schedule = ChunkSchedule(sizes, receptive_field)
        self._frames_per_second = frames_per_second
        self._codes: np.ndarray | None = None
        self._dropped = 0  # frames before `_codes`
        self._frames = self._decoded = self._emitted = 0
        self._edits: deque[_Edit] = deque()
        self._inserted = 0
        self._speed, self._rate = options.speed, sample_rate
        self._fade = round(FADE_SECONDS * sample_rate) if sample_rate else 0
        silent = SILENT_SECONDS if options.speed == 1 else SILENT_SECONDS * options.speed + SHIFTED_SECONDS
        self._silent = round(silent * sample_rate) if sample_rate else 0
        self._held_back = max(0, self._fade + self._silent - receptive_field.after * hop)
        self._held = np.zeros(0, np.float32)
        self._stretch = TimeStretch(options.speed, sample_rate) if sample_rate and options.speed != 1 else None
        self._tail = round(options.tail_silence * sample_rate) if sample_rate else 0

    @property
    def seconds(self) -> float:
        """The end of what has been added, in seconds of what is given out."""
        silence = self._inserted / self._rate if self._rate else 0.0
        return (self._frames / self._frames_per_second + silence) / self._speed

    def add(self, codes: np.ndarray) -> None:
        """More frames [n, C]."""
        self._codes = codes if self._codes is None else np.concatenate([self._codes, codes])
        self._frames += len(codes)

    def fade_out(self) -> None:
        """What has been added ends in a fade and a moment of silence, because it was cut."""
        if self._rate:
            self._edits.append(_Edit(self._frames * self._hop, self._silent, 0))

    def pause(self, seconds: float) -> None:
        """Insert silence after the frames added so far, with a fade-out. Does nothing before the first frame."""
        samples = round(seconds * self._speed * self._rate) if self._rate else 0
        if samples and self._frames:
            place = self._frames * self._hop
            if not self._edits or self._edits[-1].place < place:  # else it was cut there, and fades already
                self._edits.append(_Edit(place, 0, 0))
            self._edits[-1].silence += samples
            self._inserted += samples

    @property
    def frames(self) -> int:
        """That have been added."""
        return self._frames

    @property
    def undecoded_seconds(self) -> float:
        """Of what has been added, before any edit."""
        return (self._frames - self._decoded) / self._frames_per_second

    def sound(self, frames: int, ended: bool = False) -> Iterator[np.ndarray]:
        """The chunks that are complete with the first `frames`, none of them empty; `ended`: no more will be added."""
        yield from self._chunks(frames, ended)
        if ended:
            rest = [self._finished(self._held[:0], True)] if len(self._held) else []
            rest += [self._stretch.finish()] if self._stretch else []
            rest += [np.zeros(self._tail, np.float32)] if self._tail else []
            yield from (each for each in rest if len(each))

    def sound_so_far(self, to_the_end: bool) -> Iterator[np.ndarray]:
        """The audio that does not fill a chunk, for when it may take long until more frames are added: everything that
        does not depend on later frames, or everything `to_the_end`, as if no frames followed."""
        up_to = self._frames if to_the_end else max(0, self._frames - self.receptive_field.after)
        yield from self._chunks(self._frames, ended=False, up_to=up_to)

    def _chunks(self, frames: int, ended: bool, up_to: int = 0) -> Iterator[np.ndarray]:
        while self._begin_windows(ended, up_to) and (ended or self._begun[0][0].stop <= frames):
            window, decoded = self._begun.popleft()
            samples = self._samples(decoded)
            self._decoded = window.last
            chunk = self._finished(samples, window.ends or window.last == up_to)
            if len(chunk):
                yield chunk

    def close(self) -> None:
        """Nobody waits for the windows that are being decoded."""
        while self._begun:
            self._begun.popleft()[1].cancel()

    def _begin_windows(self, ended: bool, up_to: int) -> bool:
        """Begin to decode as many windows as there may be; whether any is being decoded."""
        while len(self._begun) < self._windows_at_once:
            window = self._schedule.next(self._frames, ended, up_to)
            if window is None:
                break
            assert self._codes is not None
            codes = self._codes[window.start - self._dropped : window.stop - self._dropped]
            last = None if window.ends else window.last - window.start
            self._begun.append((window, self._decode(codes, window.first - window.start, last)))
            keep = max(0, window.last - self.receptive_field.before)
            self._codes, self._dropped = self._codes[keep - self._dropped :], keep
        return bool(self._begun)

    def _finished(self, chunk: np.ndarray, ends: bool) -> np.ndarray:
        """A chunk with fades and silence where pieces end, at the speed that was asked for."""
        if self._rate is None:
            return chunk
        chunk = np.concatenate([self._held, chunk]) if len(self._held) else chunk
        held = 0 if ends else min(self._held_back, len(chunk))
        self._held, chunk = chunk[len(chunk) - held :], chunk[: len(chunk) - held]
        chunk = self._edited(chunk)
        return self._stretch.push(chunk) if self._stretch else chunk

    def _edited(self, chunk: np.ndarray) -> np.ndarray:
        start, stop = self._emitted, self._emitted + len(chunk)
        self._emitted = stop
        parts, taken = [], 0
        for edit in self._edits:
            chunk = self._faded(chunk, start, edit)
            if start <= edit.place <= stop and edit.silence:
                parts += [chunk[taken : edit.place - start], np.zeros(edit.silence, np.float32)]
                taken, edit.silence = edit.place - start, 0
        while self._edits and self._edits[0].place + self._fade <= stop:
            self._edits.popleft()
        return np.concatenate([*parts, chunk[taken:]]) if parts else chunk

    def _faded(self, chunk: np.ndarray, start: int, edit: _Edit) -> np.ndarray:
        """Apply the fades of an edit to a chunk, whose first sample has the index `start`."""
        fade, place = self._fade, edit.place
        fades = place - edit.silent - fade
        first, last = max(fades, start), min(place + fade, start + len(chunk))
        if first >= last:
            return chunk
        chunk = chunk.copy() if not chunk.flags.writeable else chunk
        samples = np.arange(first, last)
        steps = np.minimum(np.where(samples < place, samples + 1 - fades, place + fade - samples), fade)
        gain = 0.5 + 0.5 * np.cos(np.pi * steps / fade)
        chunk[first - start : last - start] *= gain.astype(np.float32)
        return chunk
