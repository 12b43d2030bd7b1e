"""Decodes the windows of running requests to audio, in order of urgency.

On a GPU, and on a CPU without workers, the scheduler's thread calls the codec; with workers it submits jobs to them.
"""

import time
from collections.abc import Collection, Iterator
from typing import Protocol

import torch

from ..codec.windowed import CodeWindows, ContextCodes, Decoded
from ..devices.workers import Urgency, Workers
from .sequence import Sequence, urgency, window_urgency


class CodeReader(Protocol):
    """What is asked of a `ModelRunner` here."""

    def codes(self, slot: int, first: int, frames: int) -> torch.Tensor: ...


class WindowDecoding:
    """Decodes queued windows (`Sequence.windows`) into pending chunks (`Sequence.pending`). Used by one thread."""

    def __init__(self, runner: CodeReader, decoder: CodeWindows, workers: Workers | None, frames_per_second: float):
        """
        Args:
            runner: reads the codes of a slot.
            decoder: decodes windows, unless a sequence has another decoder.
            workers: decode concurrently with decode steps; None if the calling thread decodes.
            frames_per_second: frame rate of the codec.
        """
        self.context_codes = ContextCodes(decoder)
        self._runner, self._decoder, self._workers = runner, decoder, workers
        self._frames_per_second = frames_per_second

    def run(self, sequences: Collection[Sequence]) -> list[tuple[Sequence, Exception]]:
        """Decode the complete windows of these sequences, or submit them to the workers.

        Returns:
            the sequences that have failed, each with its error.
        """
        failures = self._decode_in_order(sequences) if self._workers is None else self._submit(sequences)
        return list(failures)

    def decode_now(self, codes: torch.Tensor, first: int, last: int | None, *, inline: bool) -> Decoded:
        """Decode a window for a caller that waits for it; arguments as for `CodeWindows.decode`. With workers it comes
        after the first chunks of streams, unless `inline` decodes it in this thread."""
        with self._decoder.on_stream():
            if self._workers is None or inline:
                return self._decoder.decode(codes, first, last)
            return self._workers.submit(self._decoder.pieces(codes, first, last), Urgency(True, time.perf_counter()))

    def _decode_in_order(self, sequences: Collection[Sequence]) -> Iterator[tuple[Sequence, Exception]]:
        """Decode windows, most urgent first.

        While a stream waits for its first chunk, windows that can wait are left for later, so that its decode steps go
        on. Where decoding blocks the steps, at most one window that can wait is decoded per call: a request that
        arrives meanwhile is not held up by more.
        """
        hold_back = any(sequence.is_awaited for sequence in sequences if sequence.slot >= 0)
        for sequence in sorted((each for each in sequences if each.windows), key=urgency):
            while sequence.windows:
                can_wait = sequence.window_can_wait
                if hold_back and can_wait:
                    break
                hold_back = hold_back or (can_wait and self._decoder.holds_up_steps)
                try:
                    self._decode_next(sequence, None)
                    if self._decoder.holds_up_steps:
                        emit_pending(sequence)  # now, not after the windows of other requests
                except Exception as error:
                    yield sequence, error
                    break

    def _submit(self, sequences: Collection[Sequence]) -> Iterator[tuple[Sequence, Exception]]:
        """Submit windows to the workers. If only one stream waits for its first chunk, decode its first window here:
        a worker would take longer, as it competes with the Python code of the steps."""
        awaited = [sequence for sequence in sequences if sequence.is_awaited]
        alone = awaited[0] if len(awaited) == 1 else None
        for sequence in sequences:
            try:
                while sequence.windows:
                    inline = sequence is alone and not sequence.heard
                    self._decode_next(sequence, None if inline else self._workers)
            except Exception as error:
                yield sequence, error

    def _decode_next(self, sequence: Sequence, workers: Workers | None) -> None:
        """Decode a sequence's next window and append the chunk to `sequence.pending`."""
        window, since = sequence.windows.popleft()
        decoder = sequence.decoder
        start = decoder.widened(window.start, window.stop)
        with decoder.on_stream():
            if sequence.codes is None:
                # The rows are written, as the status that completed the window has been read: no need to wait.
                codes = self._runner.codes(sequence.slot, sequence.prompt_frames + start, window.stop - start)
            else:
                codes = sequence.codes[0][start : window.stop]
            first, last = window.first - start, None if window.ends else window.last - start
            if workers is None or decoder is self.context_codes:
                chunk: Decoded = decoder.decode(codes, first, last)
            else:
                due = window_urgency(sequence, window, since, self._frames_per_second)
                chunk = workers.submit(decoder.pieces(codes, first, last), due)
        sequence.pending.append((chunk, (window.last - window.first) / self._frames_per_second))


def emit_pending(sequence: Sequence) -> None:
    """Emit the pending chunks of a sequence that are ready, in order."""
    while sequence.pending and sequence.pending[0][0].ready():
        chunk, seconds = sequence.pending.popleft()
        audio = sequence.decoder.samples(chunk)
        sequence.first_emitted = sequence.first_emitted or time.perf_counter()
        sequence.emitted_seconds += seconds
        if len(audio):  # a codec with odd strides drops samples, possibly a whole frame
            sequence.call.emit(sequence.index, audio)
