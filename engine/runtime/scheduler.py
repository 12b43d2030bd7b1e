"""Continuous batching: who runs when. Plain Python over a `ModelRunner` and a decoder of windows.

Each `Scheduler.step` admits waiting requests to free slots, runs pieces of their prefill, launches decode steps of all
running slots at once (of a small model on a CPU without those that can wait), hands windows of complete frames to the
codec, and emits the audio that is ready. A request joins at the launch after its prefill, and its slot is free at the
launch after its end. Its result does not depend on other requests: every sum in the model is a slot's own, prefill is
cut at fixed rows, windows follow from its own chunk sizes.

On a GPU the status of a launch is read while the next one runs:

    GPU    launch 1  launch 2  launch 3  ...
    host   | queue 1, 2 | read 1, queue 3 | read 2, queue 4 |

so a slot's status can be older than the request that has the slot now: those before its first launch do not count.
On a CPU worker threads can run prefills and decode windows, beside the steps.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator
from heapq import heappop, heappush
from typing import Protocol

import torch

from ..codec.windowed import CodeWindows, ContextCodes, Decoded, HostCopy
from ..devices.workers import Urgency, Workers
from ..results import Generation
from .call import Call
from .chunking import ChunkSchedule, ChunkSizes, Window, complete_frames, window_lengths
from .request import Request
from .runner import SlotStatus
from .sequence import Prefill, Sequence, prefill_urgency, urgency, window_urgency

POLL_SECONDS = 1e-4
# Requests at a time from which on a small model's step uses idle cores: with 4 it takes 2/3 of the time on two of them
# (Zen 5), while with one a busy neighbor there would cost more than there is to gain.
SHARED_SLOTS = 4


class Runner(Protocol):
    """What the scheduler asks of a `ModelRunner`."""

    max_slots: int
    max_rows: int
    launches: int

    @property
    def max_in_flight(self) -> int: ...
    @property
    def prefill_budget(self) -> int: ...
    @property
    def in_flight(self) -> int: ...
    def prepare(self, slots: int) -> None: ...
    def ensure_slot(self, slot: int) -> bool: ...
    def prefill(self, slot: int, request: Request) -> Generator[int, None, None]: ...
    def activate(self, slot: int, request: Request) -> None: ...
    def decode(self, slots: range, most: int) -> int: ...
    def lend_threads(self, count: int) -> None: ...
    def status_ready(self) -> bool: ...
    def read_status(self) -> tuple[int, list[SlotStatus]]: ...
    def codes(self, slot: int, first: int, frames: int) -> torch.Tensor: ...
    def release(self, slot: int) -> None: ...
    def non_finite_error(self, row: int) -> RuntimeError: ...
    def forget_launches(self) -> None: ...


class Scheduler:
    """Runs requests to their ends. Used by one thread; others may abort its calls."""

    def __init__(
        self,
        runner: Runner,
        decoder: CodeWindows,
        *,
        max_delay: int,
        frames_per_second: float,
        workers: Workers | None = None,
    ):
        """`max_delay` is the model's; `workers` run prefills and decode the windows of a `decoder` on a CPU."""
        self.runner, self.decoder, self._codes = runner, decoder, ContextCodes(decoder)
        self.workers = workers
        self.max_delay, self.frames_per_second = max_delay, frames_per_second
        self.waiting: deque[Sequence] = deque()
        self.prefilling: deque[Sequence] = deque()
        self.running: dict[int, Sequence] = {}  # by slot
        self.finishing: list[Sequence] = []  # without a slot, windows still on their way
        self.ended = 0  # requests that are finished, aborted or failed
        # Told after each launch: decode steps, requests that took part, seconds since the launch before it.
        self.on_launch: Callable[[int, int, float], None] | None = None
        self._last_launch = 0.0  # when it was queued; 0.0 if nothing has run since
        self._free = list(range(runner.max_slots))  # a heap

    @property
    def unfinished(self) -> bool:
        """Whether there is anything left to do."""
        return bool(self.waiting or self.prefilling or self.running or self.finishing)

    def prepare(self, slots: int) -> None:
        """Allocate and capture now what up to `slots` requests will use, and streams in chunks of the default sizes."""
        self.runner.prepare(slots)
        context = self.decoder.receptive_field
        self.decoder.prepare(window_lengths(ChunkSizes().with_defaults(context), context))

    def add(self, request: Request, index: int, call: Call, sizes: ChunkSizes) -> Sequence:
        """Put a request at the end of the queue."""
        if call.streaming:
            self.decoder.prepare(window_lengths(sizes, self.decoder.receptive_field))
        decoder = self._codes if call.wants_codes else self.decoder
        sequence = Sequence(request, index, call, ChunkSchedule(sizes, decoder.receptive_field), decoder)
        self.waiting.append(sequence)
        return sequence

    def step(self) -> None:
        """One turn: admit, prefill, decode, hand windows over, emit."""
        self._drop_aborted()
        self._admit()
        self._run_prefills()
        if self.running:
            self._decode()
        else:
            self._last_launch = 0.0
        while self.runner.in_flight >= self.runner.max_in_flight or (self.runner.in_flight and not self.running):
            self._read_status()
        if self.workers is None:
            self._decode_windows()
        else:
            self._hand_over_windows()
            # Prefills and first windows that no worker has in hand are worth more than steps.
            if self._due_jobs() > self.workers.count:
                self.workers.help(until=Urgency(True, time.perf_counter()))
        self._emit()
        if self.unfinished and not self.running and all(each.prefill.is_handed_over for each in self.prefilling):
            self._wait()

    def help(self) -> bool:
        """Run a piece of the workers' most urgent job; whether there was one."""
        return self.workers is not None and self.workers.help()

    def _wait(self) -> None:
        """Nothing is left to do but for the workers."""
        if not self.help():
            time.sleep(POLL_SECONDS)

    @property
    def worker_threads(self) -> list[threading.Thread]:
        """The workers that have been started."""
        return [] if self.workers is None else self.workers.threads

    def close(self) -> None:
        """End the workers."""
        if self.workers is not None:
            self.workers.close()

    def fail_all(self, error: BaseException) -> None:
        """End every request with an error, for good: the device may have failed, nothing is asked of it any more."""
        sequences = self._all()
        self.ended += len(sequences)
        self.waiting, self.prefilling, self.running, self.finishing = deque(), deque(), {}, []
        for sequence in sequences:
            sequence.cancel_jobs()
            sequence.call.fail(error)

    def _all(self) -> list[Sequence]:
        return [*self.waiting, *self.prefilling, *self.running.values(), *self.finishing]

    def _drop_aborted(self) -> None:
        for sequence in self._all():
            if sequence.call.aborted:
                self._remove(sequence)

    def _remove(self, sequence: Sequence) -> None:
        """Forget a sequence, wherever it is, and free its slot."""
        sequence.cancel_jobs()
        self._free_slot(sequence)
        self.ended += 1
        for queue in (self.waiting, self.prefilling, self.finishing):
            if sequence in queue:
                queue.remove(sequence)

    def _free_slot(self, sequence: Sequence) -> None:
        if sequence.slot < 0:
            return
        self.runner.release(sequence.slot)  # first: if the device has failed, `fail_all` must find the sequence
        slot, sequence.slot = sequence.slot, -1
        self.running.pop(slot, None)
        heappush(self._free, slot)

    def _fail(self, sequence: Sequence, error: BaseException) -> None:
        self._remove(sequence)
        sequence.call.fail(error)

    def _next_waiting(self) -> Sequence | None:
        """The first of the queue; while others wait too, of a group that does not have its share of the slots yet: half
        of them, rounded up, so that two groups leave none unused."""
        groups = {sequence.call.group or sequence.call for sequence in self.waiting}
        if len(groups) < 2:
            return self.waiting[0] if self.waiting else None
        share = (self.runner.max_slots + 1) // 2
        taken = Counter(sequence.call.group for sequence in [*self.prefilling, *self.running.values()])
        for sequence in self.waiting:
            if sequence.call.group is None or taken[sequence.call.group] < share:
                return sequence
        return None

    def _may_admit(self) -> bool:
        # Steps can run ahead of the codec: how many requests have windows left bounds by how much.
        return bool(self._free) and len(self.finishing) < self.runner.max_slots

    def _admit(self) -> None:
        while self._may_admit() and (sequence := self._next_waiting()) is not None:
            try:
                if not self.runner.ensure_slot(self._free[0]):
                    return
                self.waiting.remove(sequence)
                sequence.slot = heappop(self._free)  # the lowest: few slots make a small launch
                sequence.prefill = Prefill(self.runner.prefill(sequence.slot, sequence.request))
                self.prefilling.append(sequence)
                sequence.call.started = sequence.call.started or time.perf_counter()
            except Exception as error:
                self._fail(sequence, error)

    def _run_prefills(self) -> None:
        """Prefill in the order of arrival, no more between two launches than the budget allows if any request runs, nor
        between two looks at what has arrived if workers could begin with that."""
        if self.workers is not None:
            self._hand_over_prefills(self.workers)
        done = 0
        for sequence in list(self.prefilling):
            try:
                while not (sequence.prefill.is_handed_over or sequence.prefill.has_ended()):
                    if done >= self.runner.prefill_budget and (self.running or self.workers is not None):
                        return
                    done += sequence.prefill.run_piece()
                if sequence.prefill.has_ended():
                    self._start_decoding(sequence)
            except Exception as error:
                self._fail(sequence, error)

    def _hand_over_prefills(self, workers: Workers) -> None:
        """Let workers prefill, but for one request where this thread has nothing else to do."""
        mine = [sequence for sequence in self.prefilling if not sequence.prefill.is_handed_over]
        for sequence in mine if self.running else mine[1:]:
            try:
                sequence.prefill.hand_over(workers, prefill_urgency(sequence))
            except Exception as error:
                self._fail(sequence, error)

    def _start_decoding(self, sequence: Sequence) -> None:
        """Include a prefilled sequence in decode steps from the next launch on."""
        self.runner.activate(sequence.slot, sequence.request)
        self.prefilling.remove(sequence)
        sequence.first_launch = self.runner.launches + 1
        self.running[sequence.slot] = sequence

    def _decode(self) -> None:
        slots = self._slots_to_decode()
        taking_part = [sequence for slot, sequence in self.running.items() if slot in slots]
        if self.workers is not None:
            self.runner.lend_threads(self.workers.idle if len(slots) >= SHARED_SLOTS else 0)
        try:
            steps = self.runner.decode(slots, max(1, self._steps_to_next_window(taking_part)))
        except Exception as error:
            self._fail_launch(taking_part, error)
            return
        for call in {sequence.call for sequence in taking_part}:
            call.count_steps(steps)
        for sequence in taking_part:
            sequence.steps += steps
        self._report_launch(steps, len(taking_part))

    def _slots_to_decode(self) -> range:
        """Those in use. The step of a small model, which one with workers is, costs by the slot: there streams that are
        ahead of their players wait while somebody waits for a first chunk."""
        slots = list(self.running)
        if self.workers is None:
            return range(max(slots) + 1)
        if any(each.is_awaited for each in self.running.values()):
            slots = [slot for slot, sequence in self.running.items() if not sequence.is_ahead]
        return range(min(slots), max(slots) + 1)

    def _report_launch(self, steps: int, requests: int) -> None:
        now = time.perf_counter()
        if self.on_launch is not None and self._last_launch:
            self.on_launch(steps, requests, now - self._last_launch)
        self._last_launch = now

    def _steps_to_next_window(self, sequences: list[Sequence]) -> int:
        """Steps until the next window of one of these requests becomes complete: launches end there."""
        left = (self.max_delay + sequence.schedule.wanted() - sequence.steps for sequence in sequences)
        return min((steps for steps in left if steps > 0), default=1)

    def _fail_launch(self, sequences: list[Sequence], error: Exception) -> None:
        """A launch has failed, that of these requests."""
        self.runner.forget_launches()
        for sequence in sequences:
            self._fail(sequence, error)

    def _read_status(self) -> None:
        while not self.runner.status_ready() and any(sequence.pending for sequence in self._all()):
            time.sleep(POLL_SECONDS)
            self._emit()
        launch, statuses = self.runner.read_status()
        for slot, sequence in list(self.running.items()):
            if launch >= sequence.first_launch:
                self._update(sequence, statuses[slot])

    def _update(self, sequence: Sequence, status: SlotStatus) -> None:
        """Queue the windows that are complete; a stopped slot is free from the next launch on."""
        if status.broken:
            self._fail(sequence, self.runner.non_finite_error(status.position + 1))
            return
        frames, ended = complete_frames(
            status.position, status.countdown, status.end_row, sequence.prompt_frames, self.max_delay
        )
        now = time.perf_counter()
        # Rows behind the end are forced: which frames they damage is known once the reason for the end is.
        call = sequence.call
        while (not call.wants_codes or (call.streaming and status.running)) and (
            window := sequence.schedule.next(frames, ended)
        ):
            sequence.windows.append((window, now))
        if ended:
            sequence.end_row = status.end_row
            self._finish(sequence, frames)

    def _finish(self, sequence: Sequence, frames: int) -> None:
        # What is still to be decoded is read from the slot now, before another request has it.
        try:
            with self.decoder.on_stream():
                codes = self.runner.codes(sequence.slot, sequence.prompt_frames, frames)
                sequence.codes = (codes, self.decoder.to_host(codes))
        except Exception as error:
            self._fail(sequence, error)
            return
        self._free_slot(sequence)
        self.finishing.append(sequence)

    def _decode_windows(self) -> None:
        """Hand complete windows to the codec, first those that a listener waits for. As long as a stream has not made
        its first chunk, the windows of others that can wait give way to its decode steps. Where the codec holds up the
        steps, only one window that could wait is decoded between two launches: a request that comes meanwhile waits for
        no more of them."""
        sequences = [sequence for sequence in self._all() if sequence.windows]
        wait = any(sequence.is_awaited for sequence in self._all() if sequence.slot >= 0)
        for sequence in sorted(sequences, key=urgency):
            while sequence.windows:
                can_wait = sequence.window_can_wait
                if wait and can_wait:
                    break
                wait = wait or (can_wait and self.decoder.holds_up_steps)
                window, since = sequence.windows.popleft()
                try:
                    self._decode_window(sequence, window, since)
                    if self.decoder.holds_up_steps:
                        self._emit_pending(sequence)  # its listener does not wait for the windows of others
                except Exception as error:
                    self._fail(sequence, error)
                    break

    def _hand_over_windows(self) -> None:
        """Give complete windows to the workers, but for the first one of a stream that alone waits for its first chunk:
        a worker, beside the Python code of the steps, would take longer than this thread without them."""
        unheard = [each for each in self._all() if each.is_awaited]
        alone = unheard[0] if len(unheard) == 1 else None
        for sequence in self._all():
            while sequence.windows:
                self._try_window(sequence, None if sequence is alone and not sequence.heard else self.workers)

    def _try_window(self, sequence: Sequence, workers: Workers | None) -> None:
        """Decode the next window, by workers if there are any; a sequence whose window fails has none left."""
        try:
            self._decode_window(sequence, *sequence.windows.popleft(), workers)
        except Exception as error:
            sequence.windows.clear()
            self._fail(sequence, error)

    def _due_jobs(self) -> int:
        """Prefills and first windows of streams that are handed over."""
        every = [*self.running.values(), *self.finishing]
        windows = sum(bool(each.call.streaming and each.pending and not each.first_emitted) for each in every)
        return windows + sum(each.prefill.is_handed_over for each in self.prefilling)

    def decode_now(self, codes: torch.Tensor, first: int, last: int | None) -> Decoded:
        """Decode a window for a listener who waits for it, behind the first chunks of streams; see
        `CodeWindows.decode`. Called in the scheduler's thread, the result can be awaited in any other one."""
        with self.decoder.on_stream():
            # The first window is sooner made here, as in `_hand_over_windows`.
            if self.workers is None or (first == 0 and not self._due_jobs()):
                return self.decoder.decode(codes, first, last)
            return self.workers.submit(self.decoder.pieces(codes, first, last), Urgency(True, time.perf_counter()))

    def _decode_window(self, sequence: Sequence, window: Window, since: float, workers: Workers | None = None) -> None:
        """By workers if there are any."""
        decoder = sequence.decoder
        start = decoder.widened(window.start, window.stop)
        with decoder.on_stream():
            if sequence.codes is None:
                # Its status has been read: the rows are there, and the stream of the codec need not wait for the steps.
                codes = self.runner.codes(sequence.slot, sequence.prompt_frames + start, window.stop - start)
            else:
                codes = sequence.codes[0][start : window.stop]
            last = None if window.ends else window.last - start
            first = window.first - start
            if workers is None or decoder is self._codes:
                chunk: Decoded = decoder.decode(codes, first, last)
            else:
                due = window_urgency(sequence, window, since, self.frames_per_second)
                chunk = workers.submit(decoder.pieces(codes, first, last), due)
        sequence.pending.append((chunk, (window.last - window.first) / self.frames_per_second))

    def _emit(self) -> None:
        """Give the callers what has arrived on the host."""
        for sequence in [*self.running.values(), *self.finishing]:
            try:
                self._emit_pending(sequence)
                if sequence.codes is not None and not (sequence.windows or sequence.pending):
                    self._complete(sequence, sequence.codes[1])
            except Exception as error:
                self._fail(sequence, error)

    @staticmethod
    def _emit_pending(sequence: Sequence) -> None:
        while sequence.pending and sequence.pending[0][0].ready():
            chunk, seconds = sequence.pending.popleft()
            audio = sequence.decoder.samples(chunk)
            sequence.first_emitted = sequence.first_emitted or time.perf_counter()
            sequence.emitted_seconds += seconds
            if len(audio):  # the samples that a codec of odd strides drops can be a whole frame's
                sequence.call.emit(sequence.index, audio)

    def _complete(self, sequence: Sequence, copy: HostCopy) -> None:
        if not copy.ready():
            return
        self.finishing.remove(sequence)
        self.ended += 1
        codes = copy.wait().numpy().copy()
        request = sequence.request
        rows = request.params.rows(self.runner.max_rows, sequence.prompt_frames, self.max_delay)
        sequence.call.finish(
            sequence.index,
            Generation(
                audio=None,
                codes=codes,
                finish_reason="length" if sequence.end_row >= rows - self.max_delay else "stop",
                seed=request.seed,
                frames=len(codes),
                duration=len(codes) / self.frames_per_second,
            ),
        )
