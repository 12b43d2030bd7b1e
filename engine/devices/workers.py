"""A priority thread pool for prefills and codec windows, on a CPU, concurrently with decode steps.

A small model's step uses one core, and a prefill or a codec window takes as long as dozens of steps; workers run them
on the other cores. A job runs in pieces of a few milliseconds, and before each piece a worker picks the most urgent
job: the first chunk of a new stream does not wait for long windows of other requests. Results do not depend on which
thread runs a piece, or when.
"""

import threading
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from heapq import heappop, heappush
from itertools import count
from typing import Any, Generic, NamedTuple, TypeVar

from .precision import full_float32

Result = TypeVar("Result")
# A computation that can be interrupted: runs for a few milliseconds between two yields, and returns its result.
Pieces = Generator[object, None, Result]


class Urgency(NamedTuple):
    """Sort key of jobs; the smallest is the most urgent.

    Attributes:
        is_later: False for jobs of streams that have not emitted anything yet; they come first.
        seconds: deadline of the job or arrival of the request, by `time.perf_counter`.
    """

    is_later: bool
    seconds: float


class Job(Generic[Result]):
    """A computation that was submitted to the workers, and a future of its result. Same interface as `HostCopy`."""

    def __init__(self, pieces: Pieces[Result], urgency: Urgency, number: int):
        self._pieces: Pieces[Result] | None = pieces
        self.urgency, self._number = urgency, number
        self._done, self._running = threading.Event(), threading.Lock()
        self._result: Any = None
        self._error: BaseException | None = None

    def __lt__(self, other: "Job") -> bool:
        return (self.urgency, self._number) < (other.urgency, other._number)

    def ready(self) -> bool:
        return self._done.is_set()

    def wait(self) -> Result:
        """Wait for the result; raises the error of a failed job."""
        self._done.wait()
        if self._error is not None:
            raise self._error
        result: Result = self._result
        return result

    def cancel(self) -> None:
        """Run no further piece. `wait` raises then."""
        self.fail(RuntimeError("this job was cancelled"))

    def join(self) -> None:
        """Wait until no thread runs a piece of it."""
        with self._running:
            pass

    def fail(self, error: BaseException) -> None:
        """End the job with an error, unless it has ended already."""
        self._finish(None, error)

    def _finish(self, result: Result | None, error: BaseException | None = None) -> None:
        if not self._done.is_set():
            self._result, self._error = result, error
            self._pieces = None  # and what they hold
            self._done.set()

    def run_piece(self) -> None:
        """Run the next piece; the last one sets the result."""
        with self._running:
            pieces = self._pieces
            if pieces is None:
                return
            try:
                with full_float32():
                    next(pieces)
            except StopIteration as end:
                self._finish(end.value)
            except BaseException as error:  # whoever waits for the job must hear of it
                self.fail(error)


class Workers:
    """Threads that run jobs, the most urgent first. They start with the first job and sleep in between."""

    def __init__(self, threads: int, modes: Callable[[], AbstractContextManager[object]]):
        """
        Args:
            threads: how many, at least 1.
            modes: a context for everything that a thread computes.
        """
        self.count, self._modes = threads, modes
        self._jobs: list[Job] = []  # a heap
        self._in_hand = 0  # jobs of which a worker runs a piece at this moment
        self._numbers = count()
        self._changed = threading.Condition()
        self._closed = False
        self.threads: list[threading.Thread] = []

    @property
    def idle(self) -> int:
        """Number of workers without a job."""
        return max(0, self.count - self._in_hand - len(self._jobs))

    def submit(self, pieces: Pieces[Result], urgency: Urgency) -> Job[Result]:
        """Queue a job.

        Raises:
            RuntimeError: the workers are closed.
        """
        job = Job(pieces, urgency, next(self._numbers))
        with self._changed:
            if self._closed:
                raise RuntimeError("the engine's worker threads are closed")
            heappush(self._jobs, job)
            if len(self.threads) < self.count:
                self._start_thread()
            self._changed.notify()
        return job

    def _start_thread(self) -> None:
        self.threads.append(threading.Thread(target=self._main, name="dia-engine worker", daemon=True))
        self.threads[-1].start()

    def help(self, until: Urgency | None = None) -> bool:
        """Run a piece of the most urgent queued job in this thread, if it is at least as urgent as `until`. Returns
        whether there was one."""
        with self._changed:
            if not self._jobs or (until is not None and self._jobs[0].urgency > until):
                return False
            job = heappop(self._jobs)
        self._run_piece(job)
        return True

    def close(self) -> None:
        """End the threads after their current pieces. Unfinished jobs fail."""
        with self._changed:
            self._closed = True
            left, self._jobs = self._jobs, []
            self._changed.notify_all()
        for job in left:
            job.fail(RuntimeError("the engine was closed before this job was done"))
        for thread in self.threads:
            thread.join()

    def _main(self) -> None:
        with self._modes():
            while (job := self._next()) is not None:
                self._run_piece(job)
                del job  # a sleeping thread holds no sound
                with self._changed:
                    self._in_hand -= 1

    def _next(self) -> Job | None:
        with self._changed:
            while not self._jobs and not self._closed:
                self._changed.wait()
            if self._closed:
                return None
            self._in_hand += 1
            return heappop(self._jobs)

    def _run_piece(self, job: Job) -> None:
        job.run_piece()
        if job.ready():
            return
        with self._changed:
            if not self._closed:
                heappush(self._jobs, job)
                self._changed.notify()
                return
        job.fail(RuntimeError("the engine was closed before this job was done"))
