"""A small engine, what tests of the runtime wait with, and a scheduler over a runner that is only arithmetic."""

import time
from collections import deque
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from dia_engine import Engine
from dia_engine.codec.windowed import CodeWindows
from dia_engine.devices.workers import Workers
from dia_engine.kernels.advance import RUNNING
from dia_engine.runtime.call import Call
from dia_engine.runtime.chunking import ChunkSizes
from dia_engine.runtime.request import Request
from dia_engine.runtime.runner import SlotStatus
from dia_engine.runtime.scheduler import Scheduler
from dia_engine.sampling_params import ResolvedSamplingParams

HANGS = 120  # seconds after which a test that waits gives up
MAX_DELAY = 3
SIZES = ChunkSizes(4, 2)
TEXT = "[S1] Hello there. [S2] Hi! (laughs)"
LONG = {"max_tokens": 3072, "seed": 2}  # this seed does not end by itself


def load(**limits) -> Engine:
    """An engine of random weights without a codec."""
    return Engine.load("synthetic:tiny", device="cpu", load_dac=False, **limits)


def wait_until(condition) -> None:
    for _ in range(HANGS * 200):
        if condition():
            return
        time.sleep(0.005)
    pytest.fail("it does not happen")


def request(frames: int, seed: int = 0) -> Request:
    """A request that ends after so many frames."""
    params = ResolvedSamplingParams(max_tokens=frames + 1 + MAX_DELAY)
    return Request(torch.zeros(1, dtype=torch.int64), torch.zeros((0, 2), dtype=torch.int64), params, seed)


class ArithmeticRunner:
    """A runner whose slots count their rows. `depth` 2 is that of a GPU: a status is read one launch late."""

    max_rows = 1000
    prefill_budget = 10

    def __init__(self, max_slots: int = 2, depth: int = 1, sizes=(1,)):
        self.max_slots, self.max_in_flight, self.sizes = max_slots, depth, sizes
        self.launches, self.log = 0, []
        self.slots = [SlotStatus(0, 0, 0)] * max_slots
        self.ends, self.seeds = [0] * max_slots, [0] * max_slots
        self.flight = deque()

    def ensure_slot(self, slot):
        return True

    def prefill(self, slot, request):
        for _ in range(3):
            yield 4

    def activate(self, slot, request):
        self.slots[slot] = SlotStatus(0, RUNNING, 0)
        self.ends[slot], self.seeds[slot] = request.params.max_tokens - 1 - MAX_DELAY, request.seed
        self.log.append(("start", slot))

    def decode(self, slots, most):
        steps = next(size for size in self.sizes if size <= most)
        for _ in range(steps):
            for slot in slots:
                self.slots[slot] = self._next(self.slots[slot], self.ends[slot])
        self.launches += 1
        self.log.append(("launch", slots.stop, steps))
        self.flight.append((self.launches, list(self.slots)))
        return steps

    @staticmethod
    def _next(status, end):
        if status.countdown == 0:
            return status
        row = status.position + 1
        if status.countdown == RUNNING and row > end:
            status = SlotStatus(status.position, MAX_DELAY + 1, row)
        countdown = status.countdown - (status.countdown > 0)
        return SlotStatus(status.position + (countdown != 0), countdown, status.end_row)

    @property
    def in_flight(self):
        return len(self.flight)

    def status_ready(self):
        return True

    def lend_threads(self, count):
        self.lent = count

    def read_status(self):
        return self.flight.popleft()

    def codes(self, slot, first, frames):
        return torch.arange(first, first + frames)[:, None] + 1000 * self.seeds[slot]

    def release(self, slot):
        self.slots[slot] = SlotStatus(0, 0, 0)
        self.log.append(("release", slot))

    def forget_launches(self):
        self.flight.clear()


def scheduler_over(runner) -> Scheduler:
    return Scheduler(runner, CodeWindows(torch.device("cpu")), max_delay=MAX_DELAY, frames_per_second=86)


class IdleWorkers(Workers):
    """Workers that do nothing by themselves: a test runs pieces with `help`, when it likes."""

    def _start_thread(self):
        pass


def scheduler_with_workers(runner, workers: Workers) -> Scheduler:
    return Scheduler(
        runner, CodeWindows(torch.device("cpu")), max_delay=MAX_DELAY, frames_per_second=86, workers=workers
    )  # fmt: skip


def scheduler_by_hand(runner, workers: int = 9) -> Scheduler:
    """With so many workers that do nothing by themselves."""
    return scheduler_with_workers(runner, IdleWorkers(workers, nullcontext))


def add_streams(scheduler: Scheduler, count: int, frames: int) -> list[Call]:
    """Streams of one request each, whose seeds are 0, 1, ..."""
    calls = [Call(1, streaming=True) for _ in range(count)]
    for seed, call in enumerate(calls):
        scheduler.add(request(frames, seed), 0, call, SIZES)
    return calls


def second_of_three_fails(scheduler: Scheduler, match: str) -> None:
    """Run three streams, of which the one with seed 1 fails and the others do not."""
    calls = add_streams(scheduler, 3, frames=9)
    run(scheduler)
    with pytest.raises(ValueError, match=match):
        list(calls[1])
    assert len(chunks_of(calls[0])) == len(chunks_of(calls[2])) == 9


def run(scheduler: Scheduler) -> None:
    for _ in range(10_000):
        if not scheduler.unfinished:
            return
        scheduler.step()
    pytest.fail("it does not end")


def chunks_of(call: Call, index: int = 0) -> np.ndarray:
    return np.concatenate([chunk.audio[:, 0] for chunk in call if chunk.index == index])
