"""Continuous batching. Plain Python over a `ModelRunner` and a window decoder.

Each `Scheduler.step` admits waiting requests to free slots, runs part of their prefill, launches decode steps for all
running slots (for a small model on a CPU, without streams that are ahead of their players), passes windows of complete
frames to the codec, and emits the audio that is ready. A request joins at the first launch after its prefill, and its
slot is free at the first launch after its end. A result does not depend on other requests: no sum in the model spans
slots, prefill is split at fixed rows, and windows follow from the request's own chunk sizes.

On a GPU the status of a launch is read while the next one runs:

    GPU    launch 1  launch 2  launch 3  ...
    host   | queue 1, 2 | read 1, queue 3 | read 2, queue 4 |

so a status can be older than the request that now occupies the slot; `Sequence.first_launch` tells. On a CPU worker
threads can run prefills and decode windows concurrently with the steps.
"""

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator
from heapq import heappop, heappush
from typing import Protocol

import torch

from ..codec.windowed import CodeWindows, Decoded, HostCopy
from ..devices.workers import Urgency, Workers
from ..results import Generation
from .call import Call
from .chunking import ChunkSchedule, ChunkSizes, complete_frames, window_lengths
from .request import Request
from .runner import SlotStatus
from .sequence import Prefill, Sequence, prefill_urgency
from .window_decoding import WindowDecoding, emit_pending

logger = logging.getLogger(__name__)

POLL_SECONDS = 1e-4
# Batch size from which a small model's step also uses the workers' idle cores. With 4 requests it then takes 2/3 of the
# time on two cores (Zen 5); with fewer, waiting for a core that another process keeps busy costs more than that gains.
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
    """Runs requests to completion. Used by one thread; other threads may abort its calls."""

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
        self.runner, self.decoder, self.workers = runner, decoder, workers
        self.windows = WindowDecoding(runner, decoder, workers, frames_per_second)
        self.max_delay, self.frames_per_second = max_delay, frames_per_second
        self.waiting: deque[Sequence] = deque()
        self.prefilling: deque[Sequence] = deque()
        self.running: dict[int, Sequence] = {}  # by slot
        self.finishing: list[Sequence] = []  # generated, without a slot; some windows are not emitted yet
        self.ended = 0  # requests that are finished, aborted or failed
        # Called after each launch with: decode steps, number of requests, seconds since the previous launch. One that
        # raises is dropped.
        self.on_launch: Callable[[int, int, float], None] | None = None
        self._last_launch = 0.0  # when it was queued; 0.0 after a step in which nothing ran
        self._free = list(range(runner.max_slots))  # a heap

    @property
    def unfinished(self) -> bool:
        """Whether any request is waiting or in progress."""
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
        decoder = self.windows.context_codes if call.wants_codes else self.decoder
        sequence = Sequence(request, index, call, ChunkSchedule(sizes, decoder.receptive_field), decoder)
        self.waiting.append(sequence)
        return sequence

    def step(self) -> None:
        """One iteration: admit, prefill, decode, pass windows to the codec, emit."""
        self._drop_aborted()
        self._admit()
        self._run_prefills()
        if self.running:
            self._decode()
        else:
            self._last_launch = 0.0
        while self.runner.in_flight >= self.runner.max_in_flight or (self.runner.in_flight and not self.running):
            self._read_status()
        for sequence, error in self.windows.run(self._all()):
            self._fail(sequence, error)
        # Urgent jobs that no worker is free for are worth more than decode steps.
        if self.workers is not None and self._urgent_jobs() > self.workers.count:
            self.workers.help(until=Urgency(True, time.perf_counter()))
        self._emit()
        if self.unfinished and not self.running and all(each.prefill.is_handed_over for each in self.prefilling):
            self._wait()

    def help(self) -> bool:
        """Run part of the workers' most urgent job; False if there is none."""
        return self.workers is not None and self.workers.help()

    def _wait(self) -> None:
        """Only the workers have something to do: help them, or sleep."""
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
        """The next request to admit: the first one, or while several groups wait, the first of a group that has less
        than its share: half of the slots, rounded up, so that two groups can use all of them."""
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
        # Bounds how far decode steps can run ahead of the codec.
        return bool(self._free) and len(self.finishing) < self.runner.max_slots

    def _admit(self) -> None:
        while self._may_admit() and (sequence := self._next_waiting()) is not None:
            try:
                if not self.runner.ensure_slot(self._free[0]):
                    return
                self.waiting.remove(sequence)
                sequence.slot = heappop(self._free)  # the lowest: a launch covers all slots up to the highest in use
                sequence.prefill = Prefill(self.runner.prefill(sequence.slot, sequence.request))
                self.prefilling.append(sequence)
                sequence.call.started = sequence.call.started or time.perf_counter()
            except Exception as error:
                self._fail(sequence, error)

    def _run_prefills(self) -> None:
        """Prefill in order of arrival. Stops at the budget if a launch or (with workers) new requests have to wait."""
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
        """Give prefills to the workers, except one if no request is decoding and this thread would be idle."""
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
        """The slots of the next launch. With workers (a small model) a step's cost grows with the number of slots, so
        streams that are ahead of their players are left out while another stream waits for its first chunk."""
        slots = list(self.running)
        if self.workers is None:
            return range(max(slots) + 1)
        if any(each.is_awaited for each in self.running.values()):
            slots = [slot for slot, sequence in self.running.items() if not sequence.is_ahead]
        return range(min(slots), max(slots) + 1)

    def _report_launch(self, steps: int, requests: int) -> None:
        now = time.perf_counter()
        if self.on_launch is not None and self._last_launch:
            try:
                self.on_launch(steps, requests, now - self._last_launch)
            except Exception:  # no request is to blame for it
                logger.exception("the observer of launches failed, and is told of no more")
                self.on_launch = None
        self._last_launch = now

    def _steps_to_next_window(self, sequences: list[Sequence]) -> int:
        """Decode steps until the next window of any of these requests is complete; a launch ends there."""
        left = (self.max_delay + sequence.schedule.wanted() - sequence.steps for sequence in sequences)
        return min((steps for steps in left if steps > 0), default=1)

    def _fail_launch(self, sequences: list[Sequence], error: Exception) -> None:
        """Fail the requests of a launch that raised."""
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
        """Queue complete windows; free the slot if the request has ended."""
        if status.broken:
            self._fail(sequence, self.runner.non_finite_error(status.position + 1))
            return
        frames, ended = complete_frames(
            status.position, status.countdown, status.end_row, sequence.prompt_frames, self.max_delay
        )
        now = time.perf_counter()
        # Codes wanted: only while the request runs. The last frames can be damaged by forced rows, see `finish_reason`.
        call = sequence.call
        while (not call.wants_codes or (call.streaming and status.running)) and (
            window := sequence.schedule.next(frames, ended)
        ):
            sequence.windows.append((window, now))
        if ended:
            sequence.end_row = status.end_row
            self._finish(sequence, frames)

    def _finish(self, sequence: Sequence, frames: int) -> None:
        # Copy all codes now: the slot may be given to another request at the next step.
        try:
            with self.decoder.on_stream():
                codes = self.runner.codes(sequence.slot, sequence.prompt_frames, frames)
                sequence.codes = (codes, self.decoder.to_host(codes))
        except Exception as error:
            self._fail(sequence, error)
            return
        self._free_slot(sequence)
        self.finishing.append(sequence)

    def _urgent_jobs(self) -> int:
        """Jobs of workers that delay the first chunk of a stream: prefills, and first windows not yet emitted."""
        sequences = [*self.running.values(), *self.finishing]
        windows = sum(bool(each.call.streaming and each.pending and not each.first_emitted) for each in sequences)
        return windows + sum(each.prefill.is_handed_over for each in self.prefilling)

    def decode_now(self, codes: torch.Tensor, first: int, last: int | None) -> Decoded:
        """Decode a window for a caller that waits for it, see `CodeWindows.decode`. Must be called in the scheduler's
        thread; the result may be awaited in any thread."""
        return self.windows.decode_now(codes, first, last, inline=first == 0 and not self._urgent_jobs())

    def _emit(self) -> None:
        """Emit the chunks that have arrived on the host, and finish requests that have none left."""
        for sequence in [*self.running.values(), *self.finishing]:
            try:
                emit_pending(sequence)
                if sequence.codes is not None and not (sequence.windows or sequence.pending):
                    self._complete(sequence, sequence.codes[1])
            except Exception as error:
                self._fail(sequence, error)

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
