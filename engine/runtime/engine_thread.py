"""The one thread that runs an engine's scheduler. It starts with the first call and sleeps while there is no work.

Callers only wait for their results, so Ctrl-C reaches them between two decode steps of others, what they have switched
on in their own threads (autocast, inference mode) does not reach the model, and a CPU has one pool of OpenMP threads at
work.
"""

import os
import queue
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from ..codec.windowed import CodeWindows
from ..devices.precision import full_float32
from ..devices.threads import worker_threads
from ..devices.workers import Workers
from ..model.dia import DiaModel
from .call import Call
from .chunking import ChunkSizes
from .limits import Limits
from .request import Request
from .runner import ModelRunner
from .scheduler import Scheduler

Result = TypeVar("Result")


class EngineFull(RuntimeError):
    """As many requests are running and waiting as the engine was told to take; see `max_waiting` of `Engine.load`."""


@dataclass(frozen=True)
class _Submission:
    requests: list[Request]
    call: Call
    sizes: ChunkSizes
    first_index: int = 0


class _Work:
    """A function to run between two steps, and its outcome."""

    def __init__(self, function: Callable[[], Any]):
        self.function = function
        self.outcome: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def run(self) -> None:
        try:
            self.outcome.put((self.function(), None))
        except BaseException as error:
            self.outcome.put((None, error))


class EngineThread:
    """Runs the requests of all callers of an engine."""

    def __init__(
        self,
        model: DiaModel,
        windows: CodeWindows,
        limits: Limits,
        modes: Callable[[], AbstractContextManager],
        *,
        graph: bool,
        frames_per_second: float,
        uses_workers: bool,
    ):
        """
        Args:
            windows: decodes the codes of a stream in windows.
            limits: of the engine.
            modes: a context for everything that is computed.
            graph: whether decode steps are captured in CUDA graphs.
            frames_per_second: of the codec.
            uses_workers: whether further threads prefill and decode windows beside the steps, where torch may use them.
                A large model uses all cores for its steps, and between them for the rest.
        """
        self._model, self._windows, self._limits, self._modes = model, windows, limits, modes
        self._graph, self._frames_per_second, self._uses_workers = graph, frames_per_second, uses_workers
        self._unusable = ""
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self.scheduler = self._new_scheduler()
        self._inbox: queue.SimpleQueue[_Submission | _Work | None] = queue.SimpleQueue()
        self._lock = threading.RLock()  # a collection inside it can come to `close`
        self._submitted = 0
        self._admitted: weakref.WeakSet[Call] = weakref.WeakSet()
        self._thread: threading.Thread | None = None

    def _new_scheduler(self) -> Scheduler:
        model, limits = self._model, self._limits
        threads = worker_threads() if self._uses_workers else 0
        return Scheduler(
            ModelRunner(model, graph=self._graph, max_slots=limits.max_slots, max_rows=limits.rows(model.config)),
            self._windows,
            max_delay=model.config.max_delay,
            frames_per_second=self._frames_per_second,
            workers=Workers(threads, self._modes) if threads else None,
        )

    @property
    def active(self) -> int:
        """Requests that run or wait in this process."""
        return 0 if self._pid != os.getpid() else self._submitted - self.scheduler.ended

    @property
    def usable(self) -> bool:
        """Whether calls are taken: not after `close`, nor after a failure of the device."""
        return not self._unusable

    def check_fits(self, requests: int) -> None:
        """Raises ValueError: a call of so many requests would be refused even by an idle engine."""
        most = self._most
        if most is not None and requests > most:
            raise ValueError(
                f"{requests} requests in one call are more than this engine takes, max_slots + max_waiting = {most}; "
                f"give fewer at a time, or load it with a larger max_waiting"
            )

    @property
    def _most(self) -> int | None:
        """Requests that may run and wait."""
        waiting = self._limits.max_waiting
        return None if waiting is None else self.scheduler.runner.max_slots + waiting

    def admit(self, call: Call) -> None:
        """Count a call's requests among those that run and wait, until each is finished, or the call failed or aborted.
        A script is one request, however many pieces of it are submitted.

        Raises:
            EngineFull: more would wait than may.
            RuntimeError: the engine is closed or unusable.
        """
        with self._running():
            taken, more, most = sum(each.unfinished for each in self._admitted), call.unfinished, self._most
            if most is not None and taken + more > most:
                raise EngineFull(
                    f"{taken} requests are running or waiting, and {more} more would exceed "
                    f"max_slots + max_waiting = {most}; try again later"
                )
            self._admitted.add(call)

    def submit(self, requests: list[Request], call: Call, sizes: ChunkSizes, first_index: int = 0) -> None:
        """Queue requests, whose prompts are codes; their results go to the call, from the index `first_index` on.

        Raises:
            RuntimeError: the engine is closed or unusable.
        """
        with self._running():
            self._submitted += len(requests)
            self._inbox.put(_Submission(requests, call, sizes, first_index))

    def run(self, function: Callable[[], Result]) -> Result:
        """Run a function in the thread, between two steps, and wait for its result or its error."""
        work = _Work(function)
        with self._running():
            self._inbox.put(work)
        result, error = work.outcome.get()
        if error is not None:
            raise error
        return result

    def close(self, reason: str = "this engine is closed") -> None:
        """Fail what is running and end the thread; calls after this raise RuntimeError with the reason."""
        if self._pid != os.getpid():  # forked, and not used since: there is no thread to end
            self._unusable = self._unusable or reason
            return
        with self._lock:
            self._unusable = self._unusable or reason
            thread = self._thread
            self._inbox.put(None)
        # A collection can come to this in the engine's own threads, which end without being waited for.
        if thread is not None and threading.current_thread() not in (thread, *self.scheduler.worker_threads):
            thread.join()

    def check_usable(self) -> None:
        """Raises RuntimeError: the engine is closed or unusable."""
        if self._unusable:
            raise RuntimeError(self._unusable)

    @contextmanager
    def _running(self) -> Iterator[None]:
        """Holds the lock under which the inbox is filled, with a thread that will empty it: what ends the thread takes
        the lock before it looks into the inbox for the last time."""
        if self._pid != os.getpid():  # threads do not survive a fork, and their locks may be held for ever
            self._begin()
        with self._lock:
            self.check_usable()
            if self._thread is None:
                # A daemon: `close` ends it when the interpreter exits.
                self._thread = threading.Thread(target=self._main, name="dia-engine", daemon=True)
                self._thread.start()
            yield

    def _main(self) -> None:
        try:
            with self._modes():
                while self._take(self._waiting_items()):
                    with full_float32():  # for one step: the setting is the whole process's
                        self.scheduler.step()
            error: BaseException = RuntimeError(self._unusable)
        except BaseException as failure:  # nothing that a request alone could be blamed for
            error = RuntimeError(
                f"the engine has failed and is unusable ({type(failure).__name__}: {failure}); load a new one"
            )
            error.__cause__ = failure
            self._unusable = str(error)
        self.scheduler.fail_all(error)
        self.scheduler.close()
        with self._lock, suppress(queue.Empty):
            while True:
                self._refuse(self._inbox.get_nowait(), error)

    def _waiting_items(self) -> Iterable[Any]:
        """What has come in; while there is nothing to do, waits for something and helps the workers."""
        if not self.scheduler.unfinished:
            while self._inbox.empty() and self.scheduler.help():
                pass
            yield self._inbox.get()
        with suppress(queue.Empty):
            while True:
                yield self._inbox.get_nowait()

    def _take(self, items: Iterable[Any]) -> bool:
        """Whether to go on."""
        for item in items:
            if item is None:
                return False
            if isinstance(item, _Work):
                with full_float32():
                    item.run()
            else:
                self._add(item)
        return True

    def _add(self, submission: _Submission) -> None:
        for index, request in enumerate(submission.requests):
            try:
                self.scheduler.add(request, submission.first_index + index, submission.call, submission.sizes)
            except Exception as error:  # of the graphs of the call's windows: its own fault, and nobody else's
                self.scheduler.ended += len(submission.requests) - index
                submission.call.fail(error)
                return

    def _refuse(self, item: Any, error: BaseException) -> None:
        if isinstance(item, _Work):
            item.outcome.put((None, error))
        elif item is not None:
            self.scheduler.ended += len(item.requests)
            item.call.fail(error)
