"""Speaks one script: its pieces run side by side in the engine's slots, its sound is given out in their order.

A thread for each script decides what is generated next and whether it is good; the engine's own thread does
all that computes. What comes out does not depend on timing: a piece depends on its anchor and its own seed alone, and
is judged by the pieces before it.
"""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ..longform_settings import LongFormSettings
from ..results import Generation, PieceResult, Progress
from ..runtime.call import Call, Chunk
from ..runtime.chunking import ChunkSizes
from ..runtime.request import Request
from .assembly import Assembler
from .calls import PieceCall, ScriptCall
from .checks import MOST_TRIES, Pace, best, guard_frames, is_good
from .options import SpeechOptions
from .planning.plan import Piece, derived_seed
from .planning.source import PieceSource

UNREAD_SECONDS = 60.0  # of sound that is not decoded, or of a stream not read, beyond which no piece is begun
QUEUED = 2  # pieces that wait for a slot, so that one that ends is followed at once
POLL_SECONDS = 0.05


@dataclass(frozen=True)
class SpeakerContext:
    """What a script is spoken with.

    Attributes:
        submit: hands a request to the engine's thread.
        make_assembler: for one script.
        encode: text -> ids [S] int64.
        settings: of the model.
        frames_per_second: of the codec.
        max_rows, max_delay: of the model.
        slots: requests that run at the same time.
    """

    submit: Callable[[list[Request], Call, ChunkSizes], None]
    make_assembler: Callable[[ChunkSizes, SpeechOptions], Assembler]
    encode: Callable[[str], torch.Tensor]
    settings: LongFormSettings
    frames_per_second: float
    max_rows: int
    max_delay: int
    slots: int


class ScriptSpeaker:
    """One script on its way to a call's reader."""

    def __init__(
        self,
        base: Request,
        index: int,
        call: ScriptCall,
        source: PieceSource,
        options: SpeechOptions,
        sizes: ChunkSizes,
        context: SpeakerContext,
        *,
        is_split: bool,
    ):
        """
        Args:
            base: the caller's prompt and parameters.
            index: of the script in the call.
            is_split: whether the script is planned, and not one piece as it is.
        """
        self._base, self._index, self._call, self._source = base, index, call, source
        self._options, self._sizes, self._context, self._is_split = options, sizes, context, is_split
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._assembler = context.make_assembler(sizes, options)
        self._pace = Pace(context.settings.frames_per_byte)
        self._trims = options.trim_cut_end if options.trim_cut_end is not None else is_split
        self._pieces: dict[int, Piece] = {}  # that have been taken and not given out
        self._calls: dict[int, PieceCall] = {}
        self._tries: dict[int, list[Generation]] = {}
        self._anchors: dict[int, np.ndarray] = {}
        self._codes: list[np.ndarray] = []
        self._results: list[PieceResult] = []
        self._expected = 0.0  # seconds of those, as the plan had them
        self._taken = 0
        self._outgoing: deque[tuple[int, Progress | None]] = deque()  # frames to decode up to, and what is then told
        self._is_heard = False
        self._live = 0  # frames of the first piece that have been added while it is made
        self._next_chunk = 0  # frames of it before its next chunk
        call.on_abort.append(lambda: self._inbox.put(None))

    def start(self) -> None:
        """Begin, in the background.

        Raises:
            RuntimeError: the engine is closed.
        """
        self._take(most=1)  # the others can wait until that one runs
        if 0 in self._pieces:
            self._submit(0)
        threading.Thread(target=self._main, name="dia-engine script", daemon=True).start()

    def wake(self, work: Callable[[], Any] | None = None) -> None:
        """Look for new pieces, after some work in the script's thread. From any thread."""
        self._inbox.put(work)

    def fail(self, error: BaseException) -> None:
        """End with an error. From any thread."""

        def work() -> None:
            raise error

        self._inbox.put(work)

    def _main(self) -> None:
        try:
            while not self._call.aborted:
                self._deliver()
                self._submit_ready()
                # Window by window, so that slots which become free meanwhile get their next pieces.
                if self._emit_next():
                    self._handle_all()
                    continue
                if self._source.is_complete and not self._pieces:
                    self._finish()
                    return
                if self._emit_so_far():
                    continue
                self._handle(self._wait())
        except BaseException as error:
            self._call.fail(error)
        finally:
            self._assembler.close()
            for call in self._calls.values():
                call.aborted = True

    def _wait(self) -> Any:
        """The next message; None where it is time to look for a reader."""
        throttled = self._call.streaming and self._call.unread > 0
        with suppress(queue.Empty):
            return self._inbox.get(timeout=POLL_SECONDS if throttled else None)

    def _handle_all(self) -> None:
        """Take in what has happened."""
        with suppress(queue.Empty):
            while True:
                self._handle(self._inbox.get_nowait())

    def _handle(self, item: Any) -> None:
        """Take in a message."""
        if item is None:
            return
        if callable(item):
            item()
            return
        call: PieceCall
        call, message = item
        opened = call.take_in(message)
        if isinstance(opened, Chunk):
            self._add_live(opened.audio)
        elif call.results[0] is not None and self._calls.get(call.piece) is call:
            self._tries.setdefault(call.piece, []).append(call.results[0])
            del self._calls[call.piece]

    # What is generated

    def _take(self, most: int | None = None) -> None:
        """Pieces from the source, as many as may be under way."""
        while len(self._pieces) < (most or 2 * self._context.slots):
            piece = self._source.take(idle=not self._pieces)
            if piece is None:
                return
            self._pieces[self._taken] = piece
            self._taken += 1

    def _submit_ready(self) -> None:
        unread = self._call.unread * self._chunk_seconds if self._call.streaming else 0.0
        # A chunk may be longer than that: it needs all of its frames.
        if unread + self._assembler.undecoded_seconds > UNREAD_SECONDS + self._chunk_seconds:
            return
        self._take()
        # A listener has heard little yet: the pieces that follow had better come soon than many at once.
        starting = self._call.streaming and len(self._results) < 3
        for index, piece in self._pieces.items():
            if len(self._calls) >= (2 if starting else self._context.slots + QUEUED):
                return
            ready = index not in self._calls and not self._tries.get(index)
            first_is_heard = index == 0 or not self._call.streaming or self._is_heard or 0 not in self._pieces
            if ready and first_is_heard and all(anchor in self._anchors for anchor in piece.anchor_pieces):
                self._submit(index)

    @property
    def _chunk_seconds(self) -> float:
        frames, _ = self._sizes.frames(self._assembler.receptive_field)
        return frames / self._context.frames_per_second

    def _submit(self, index: int) -> None:
        live = index == 0 and self._call.streaming
        call = PieceCall(index, self._inbox, self._call, streaming=live, on_steps=self._count_steps)
        request = self._request(index, len(self._tries.get(index, ())))
        self._context.submit([request], call, self._sizes)
        self._calls[index] = call

    def _count_steps(self, steps: int) -> None:
        self._call.count_steps(steps)

    def _request(self, index: int, attempt: int) -> Request:
        """The request of a try of a piece."""
        piece, params = self._pieces[index], self._base.params
        if not self._is_split:
            return replace(self._base, text_ids=self._context.encode(piece.sent), seed=piece.seed)
        sent, prompt = piece.sent, self._base.prompt_codes
        if piece.anchor_pieces:
            prompt = torch.from_numpy(np.concatenate([self._anchors[anchor] for anchor in piece.anchor_pieces]))
        room = params.rows(self._context.max_rows, 0, self._context.max_delay) - 2 - self._context.max_delay
        if piece.anchor_pieces and 2 * len(prompt) > room:  # an anchor that went wrong helps nobody
            sent, prompt = piece.text, prompt[:0]
        frames_per_byte = self._pace.expected if attempt else self._pace.prior
        guard = min(guard_frames(piece, frames_per_byte), room - len(prompt))
        return Request(
            text_ids=self._context.encode(sent),
            prompt=prompt,
            params=replace(params, min_tokens=max(params.min_tokens, guard)),
            seed=piece.seed if not attempt else derived_seed(self._base.seed, index, attempt),
        )

    # What is given out

    def _add_live(self, codes: np.ndarray) -> None:
        """Frames of the first piece while it is made. A chunk begins where the frames wanted by the one before end, and
        holds those that its sound depends on besides."""
        new = codes[self._live - self._next_chunk :]
        self._next_chunk += len(codes) - self._assembler.receptive_field.after
        self._live += len(new)
        self._assembler.add(new)
        self._outgoing.append((self._assembler.frames, None))

    def _deliver(self) -> None:
        """Give out the pieces that are there, in their order; make those again that are not good."""
        while self._pieces:
            index = next(iter(self._pieces))
            if index not in self._tries or index in self._calls:
                return
            piece, tries = self._pieces[index], self._tries[index]
            is_checked = index > 0 and self._is_split
            if (
                is_checked
                and len(tries) < MOST_TRIES
                and not is_good(piece, tries[-1], self._pace, self._context.settings)
            ):
                self._submit(index)
                return
            kept = best(piece, tries, self._pace) if is_checked else tries[0]
            self._give_out(index, kept, len(tries))

    def _give_out(self, index: int, kept: Generation, tries: int) -> None:
        piece = self._pieces.pop(index)
        del self._tries[index]
        is_cut = kept.finish_reason == "length"
        codes = kept.codes
        sounding = codes[: max(0, len(codes) - self._context.max_delay)] if is_cut and self._trims else codes
        if self._source.is_anchor(index):
            self._anchors[index] = sounding
        if kept.frames and self._is_split:
            self._pace = self._pace.after(piece, kept)
        if index and piece.opens_turn:
            self._assembler.pause(self._options.pause)
        start = self._assembler.seconds if index else 0.0
        self._assembler.add(sounding[self._live if index == 0 else 0 :])
        end = self._assembler.seconds
        if is_cut and self._trims:
            self._assembler.fade_out()
        self._codes.append(codes.astype(np.int16))
        result = PieceResult(piece.text, kept.seed, tries, kept.finish_reason, start, end)
        self._results.append(result)
        self._expected += piece.expected_seconds
        self._outgoing.append((self._assembler.frames, self._progress() if self._is_split else None))

    def _progress(self) -> Progress:
        seconds, elapsed, left = self._assembler.seconds, time.perf_counter() - self._call.started, None
        if self._source.expected_seconds is not None:
            # What is left is spoken as those pieces were: in length for its bytes, and in time for its length.
            left = elapsed * max(0.0, self._source.expected_seconds / self._expected - 1)
        return Progress(
            self._index, len(self._results), self._source.total, seconds, elapsed, left, self._results[-1]
        )  # fmt: skip

    def _emit_next(self) -> bool:
        """Give out the next chunk that is complete; whether there was one. A piece is done when none of it is left."""
        while self._outgoing:
            frames, progress = self._outgoing[0]
            chunk = next(self._assembler.sound(frames), None)
            if chunk is not None:
                self._call.emit(self._index, chunk)
                self._is_heard = True
                return True
            self._outgoing.popleft()
            if progress is not None:
                self._call.tell_progress(progress)
        return False

    def _emit_so_far(self) -> bool:
        """While nothing is being made, for lack of text, give out what fills no chunk; whether there was any."""
        if self._pieces or not self._call.streaming:
            return False
        chunk = next(self._assembler.sound_so_far(to_the_end=self._source.is_flushed), None)
        if chunk is None:
            return False
        self._call.emit(self._index, chunk)
        return True

    def _finish(self) -> None:
        for chunk in self._assembler.sound(self._assembler.frames, ended=True):
            self._call.emit(self._index, chunk)
        channels = self._base.prompt_codes.shape[1]
        codes = np.concatenate([np.zeros((0, channels), np.int64), *self._codes])
        cut = any(result.finish_reason == "length" for result in self._results)
        self._call.finish(
            self._index,
            Generation(
                audio=None,
                codes=codes,
                finish_reason="length" if cut else "stop",
                seed=self._base.seed,
                frames=len(codes),
                duration=self._assembler.seconds + self._options.tail_silence,
                pieces=tuple(self._results),
            ),
        )
