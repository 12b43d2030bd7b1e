"""Generates one script: its pieces run concurrently in the engine's slots, its audio is emitted in script order.

Each script has a thread that decides which piece is generated next and whether a result is acceptable; the engine's
own thread runs the model. The output does not depend on timing: a piece depends on its anchor and its seed only, and is
accepted or retried by comparison with the pieces before it.
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

UNREAD_SECONDS = 60.0  # of audio not yet decoded or not yet read by the caller; beyond it no new piece is submitted
QUEUED = 2  # pieces that wait for a slot, so that a free slot is reused at once
POLL_SECONDS = 0.05


@dataclass(frozen=True)
class ScriptContext:
    """What a script task needs of the engine.

    Attributes:
        submit: queues requests in the engine's thread.
        make_assembler: returns a new `Assembler`, one per script.
        encode: text -> ids [S] int64.
        settings: the model's long-form settings.
        frames_per_second: frame rate of the codec.
        max_rows, max_delay: decoder rows per slot and largest channel delay of the model.
        slots: number of requests that run concurrently.
    """

    submit: Callable[[list[Request], Call, ChunkSizes], None]
    make_assembler: Callable[[ChunkSizes, SpeechOptions], Assembler]
    encode: Callable[[str], torch.Tensor]
    settings: LongFormSettings
    frames_per_second: float
    max_rows: int
    max_delay: int
    slots: int


class ScriptTask:
    """The generation of one script, from its pieces to the chunks of its call."""

    def __init__(
        self,
        base: Request,
        index: int,
        call: ScriptCall,
        source: PieceSource,
        options: SpeechOptions,
        sizes: ChunkSizes,
        context: ScriptContext,
        *,
        is_split: bool,
    ):
        """
        Args:
            base: request with the caller's prompt and sampling parameters; its text is not used.
            index: index of the script in the call.
            is_split: whether the script was planned into pieces; otherwise it is one piece, generated as written.
        """
        self._base, self._index, self._call, self._source = base, index, call, source
        self._options, self._sizes, self._context, self._is_split = options, sizes, context, is_split
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._assembler = context.make_assembler(sizes, options)
        self._pace = Pace(context.settings.frames_per_byte)
        self._trims = options.trim_cut_end if options.trim_cut_end is not None else is_split
        self._pieces: dict[int, Piece] = {}  # taken from the source and not yet delivered, in order
        self._calls: dict[int, PieceCall] = {}
        self._tries: dict[int, list[Generation]] = {}
        self._anchors: dict[int, np.ndarray] = {}
        self._codes: list[np.ndarray] = []
        self._results: list[PieceResult] = []
        self._expected = 0.0  # seconds of the delivered pieces, as planned
        self._taken = 0
        self._outgoing: deque[tuple[int, Progress | None]] = deque()  # frames to decode, then progress to report
        self._has_emitted = False
        self._streamed = 0  # frames of the first piece that were added while it was generated
        self._chunk_start = 0  # first frame of the first piece's next chunk
        call.on_abort.append(lambda: self._inbox.put(None))

    def start(self) -> None:
        """Submit the first piece and start the script's thread.

        Raises:
            RuntimeError: the engine is closed.
        """
        self._take_pieces(most=1)  # the others can wait until that one runs
        if 0 in self._pieces:
            self._submit(0)
        threading.Thread(target=self._main, name="dia-engine script", daemon=True).start()

    def wake(self, work: Callable[[], Any] | None = None) -> None:
        """Run `work` in the script's thread, then look for new pieces. May be called from any thread."""
        self._inbox.put(work)

    def fail(self, error: BaseException) -> None:
        """End the script with an error. May be called from any thread."""

        def work() -> None:
            raise error

        self._inbox.put(work)

    def _main(self) -> None:
        try:
            while not self._call.aborted:
                self._deliver_ready()
                self._submit_ready()
                # One window at a time, so that slots that become free in between get new pieces.
                if self._emit_next_chunk():
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
        """The next message; None after POLL_SECONDS while the reader is slow."""
        throttled = self._call.streaming and self._call.unread > 0
        with suppress(queue.Empty):
            return self._inbox.get(timeout=POLL_SECONDS if throttled else None)

    def _handle_all(self) -> None:
        """Handle all messages that have arrived."""
        with suppress(queue.Empty):
            while True:
                self._handle(self._inbox.get_nowait())

    def _handle(self, item: Any) -> None:
        """Handle one message: a callable to run, or a `PieceCall` and its message."""
        if item is None:
            return
        if callable(item):
            item()
            return
        call: PieceCall
        call, message = item
        opened = call.receive(message)
        if isinstance(opened, Chunk):
            self._add_streamed(opened.audio)
        elif call.results[0] is not None and self._calls.get(call.piece) is call:
            self._tries.setdefault(call.piece, []).append(call.results[0])
            del self._calls[call.piece]

    # Generating pieces

    def _take_pieces(self, most: int | None = None) -> None:
        """Take pieces from the source, up to the number that may be in progress."""
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
        self._take_pieces()
        # Early in a stream the latency of the next piece matters more than throughput.
        starting = self._call.streaming and len(self._results) < 3
        for index, piece in self._pieces.items():
            if len(self._calls) >= (2 if starting else self._context.slots + QUEUED):
                return
            ready = index not in self._calls and not self._tries.get(index)
            first_is_emitted = index == 0 or not self._call.streaming or self._has_emitted or 0 not in self._pieces
            if ready and first_is_emitted and all(anchor in self._anchors for anchor in piece.anchor_pieces):
                self._submit(index)

    @property
    def _chunk_seconds(self) -> float:
        frames, _ = self._sizes.frames(self._assembler.receptive_field)
        return frames / self._context.frames_per_second

    def _submit(self, index: int) -> None:
        live = index == 0 and self._call.streaming
        call = PieceCall(index, self._inbox, self._call, streaming=live, on_steps=self._call.count_steps)
        request = self._request(index, len(self._tries.get(index, ())))
        self._context.submit([request], call, self._sizes)
        self._calls[index] = call

    def _request(self, index: int, attempt: int) -> Request:
        """The request for one attempt at a piece."""
        piece, params = self._pieces[index], self._base.params
        if not self._is_split:
            return replace(self._base, text_ids=self._context.encode(piece.sent), seed=piece.seed)
        sent, prompt = piece.sent, self._base.prompt_codes
        if piece.anchor_pieces:
            prompt = torch.from_numpy(np.concatenate([self._anchors[anchor] for anchor in piece.anchor_pieces]))
        room = params.rows(self._context.max_rows, 0, self._context.max_delay) - 2 - self._context.max_delay
        if piece.anchor_pieces and 2 * len(prompt) > room:  # the anchor came out far too long
            sent, prompt = piece.text, prompt[:0]
        frames_per_byte = self._pace.expected if attempt else self._pace.prior
        guard = min(guard_frames(piece, frames_per_byte), room - len(prompt))
        return Request(
            text_ids=self._context.encode(sent),
            prompt=prompt,
            params=replace(params, min_tokens=max(params.min_tokens, guard)),
            seed=piece.seed if not attempt else derived_seed(self._base.seed, index, attempt),
        )

    # Delivering pieces

    def _add_streamed(self, codes: np.ndarray) -> None:
        """Add frames [n, C] of the first piece while it is generated.

        Chunks overlap: each also holds the codec's context behind its own frames (see `ContextCodes`).
        """
        new = codes[self._streamed - self._chunk_start :]
        self._chunk_start += len(codes) - self._assembler.receptive_field.after
        self._streamed += len(new)
        self._assembler.add(new)
        self._outgoing.append((self._assembler.frames, None))

    def _deliver_ready(self) -> None:
        """Deliver finished pieces in order; resubmit the next one with another seed if its result is not acceptable."""
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
            self._deliver_piece(index, kept, len(tries))

    def _deliver_piece(self, index: int, kept: Generation, tries: int) -> None:
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
        self._assembler.add(sounding[self._streamed if index == 0 else 0 :])
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
            # Assumes that the remaining pieces take as long per planned second as the delivered ones.
            left = elapsed * max(0.0, self._source.expected_seconds / self._expected - 1)
        return Progress(
            self._index, len(self._results), self._source.total, seconds, elapsed, left, self._results[-1]
        )  # fmt: skip

    def _emit_next_chunk(self) -> bool:
        """Emit the next complete chunk; False if there is none. Reports progress after the last chunk of a piece."""
        while self._outgoing:
            frames, progress = self._outgoing[0]
            chunk = next(self._assembler.sound(frames), None)
            if chunk is not None:
                self._call.emit(self._index, chunk)
                self._has_emitted = True
                return True
            self._outgoing.popleft()
            if progress is not None:
                self._call.tell_progress(progress)
        return False

    def _emit_so_far(self) -> bool:
        """Emit what does not fill a chunk, while the script waits for more text; False if there is nothing left."""
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
