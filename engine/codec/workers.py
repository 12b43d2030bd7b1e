"""Windows decoded in threads of their own, beside the decode steps.

On a CPU a small model's step keeps one core busy, and a window of its codec takes as long as dozens of steps. Workers
decode windows on the other cores meanwhile. A window is decoded in pieces of a few milliseconds; before each piece a
worker takes the most urgent window there is, so that the first chunk of a new stream does not wait for long windows of
others. Which thread runs a piece, and when, changes nothing about its numbers.
"""

import math
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from heapq import heappop, heappush
from itertools import count

import torch

from ..devices.precision import full_float32
from .tiles import Pieces


class WindowJob:
    """A window on its way through the workers; a `HostCopy` to whoever waits for it."""

    def __init__(self, pieces: Pieces, deadline: float, number: int):
        self._pieces: Pieces | None = pieces
        self.deadline, self._number = deadline, number
        self._done = threading.Event()
        self._outcome: torch.Tensor | BaseException = RuntimeError("this window is not decoded yet")

    def __lt__(self, other: "WindowJob") -> bool:
        return (self.deadline, self._number) < (other.deadline, other._number)

    def ready(self) -> bool:
        return self._done.is_set()

    def wait(self) -> torch.Tensor:
        """What the pieces return, on the CPU; raises what they raise."""
        self._done.wait()
        if isinstance(self._outcome, torch.Tensor):
            return self._outcome
        raise self._outcome

    def cancel(self) -> None:
        """Nobody waits for it any more: the piece in progress is the last."""
        self.finish(RuntimeError("this window was cancelled"))

    def finish(self, outcome: torch.Tensor | BaseException) -> None:
        """Set the outcome, unless there is one."""
        if not self._done.is_set():
            self._outcome = outcome
            self._pieces = None  # and the signals that it holds
            self._done.set()

    def run_piece(self) -> None:
        """Run the next piece, the last of which sets the outcome."""
        pieces = self._pieces
        if pieces is None:
            return
        try:
            with full_float32():
                next(pieces)
        except StopIteration as end:
            self.finish(end.value)
        except BaseException as error:  # whoever waits for the window must hear of it
            self.finish(error)


class DecodeWorkers:
    """Threads that decode windows, the most urgent first. They start with the first window and sleep in between."""

    def __init__(self, threads: int, modes: Callable[[], AbstractContextManager[object]]):
        """
        Args:
            threads: how many, at least 1.
            modes: a context for everything that a thread computes.
        """
        self.count, self._modes = threads, modes
        self._jobs: list[WindowJob] = []  # a heap
        self._in_hand = 0  # jobs of which a thread runs a piece
        self._numbers = count()
        self._changed = threading.Condition()
        self._closed = False
        self.threads: list[threading.Thread] = []

    @property
    def idle(self) -> int:
        """Threads that have nothing to do."""
        return max(0, self.count - self._in_hand - len(self._jobs))

    def submit(self, pieces: Pieces, deadline: float) -> WindowJob:
        """Have a window decoded.

        Args:
            pieces: computes a piece of the window between two yields, and returns its sound.
            deadline: windows with earlier ones go first, in seconds of `time.perf_counter`.

        Raises:
            RuntimeError: the workers are closed.
        """
        job = WindowJob(pieces, deadline, next(self._numbers))
        with self._changed:
            if self._closed:
                raise RuntimeError("the threads that decode windows are closed")
            heappush(self._jobs, job)
            if len(self.threads) < self.count:
                self._start_thread()
            self._changed.notify()
        return job

    def _start_thread(self) -> None:
        self.threads.append(threading.Thread(target=self._main, name="dia-engine codec", daemon=True))
        self.threads[-1].start()

    def help(self, until: float = math.inf) -> bool:
        """Run a piece of the most urgent window that no worker has in hand, if its deadline is at most `until`;
        whether there was one."""
        with self._changed:
            if not self._jobs or self._jobs[0].deadline > until:
                return False
            job = heappop(self._jobs)
        self._run_piece(job)
        return True

    def close(self) -> None:
        """End the threads, each behind the piece in progress. Windows that are not done fail."""
        with self._changed:
            self._closed = True
            left, self._jobs = self._jobs, []
            self._changed.notify_all()
        for job in left:
            job.finish(RuntimeError("the engine was closed before this window was decoded"))
        for thread in self.threads:
            thread.join()

    def _main(self) -> None:
        with self._modes():
            while (job := self._next()) is not None:
                self._run_piece(job)
                del job  # a sleeping thread holds no sound
                with self._changed:
                    self._in_hand -= 1

    def _next(self) -> WindowJob | None:
        with self._changed:
            while not self._jobs and not self._closed:
                self._changed.wait()
            if self._closed:
                return None
            self._in_hand += 1
            return heappop(self._jobs)

    def _run_piece(self, job: WindowJob) -> None:
        job.run_piece()
        if job.ready():
            return
        with self._changed:
            if not self._closed:
                heappush(self._jobs, job)
                self._changed.notify()
                return
        job.finish(RuntimeError("the engine was closed before this window was decoded"))
