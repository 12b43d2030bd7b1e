"""One call of `Engine.generate` or `Engine.stream`: passes results from the engine's thread to the caller."""

import asyncio
import logging
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..results import Generation, Progress

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Chunk:
    """Audio [samples] float32 of the request `index`, or codes [n, C] int64 of an engine without a codec."""

    index: int
    audio: np.ndarray


@dataclass(frozen=True)
class _Finished:
    index: int
    generation: Generation


@dataclass(frozen=True)
class _Failed:
    error: BaseException


@dataclass(frozen=True)
class _Steps:
    count: int


_END = object()


def without_stop(error: BaseException, name: str) -> BaseException:
    """An error as it can be raised out of a reader's `for`: StopIteration and StopAsyncIteration would end that in
    silence, so they become the cause of a RuntimeError, as in a generator.

    Args:
        name: what raised it.
    """
    if not isinstance(error, (StopIteration, StopAsyncIteration)):
        return error
    told = RuntimeError(f"{name} raised {type(error).__name__}")
    told.__cause__ = error
    return told


class Call:
    """The chunks of a call's requests, for `for` and `async for`. Thread-safe; unread chunks are buffered.

    If one request fails, its error is raised to the reader and the other requests are aborted.

    Attributes:
        streaming: whether chunks are played as they come, so that latency matters.
        wants_codes: whether the chunks are codes, which the reader decodes (see `ContextCodes`). Such chunks come only
            with `streaming` and while the request runs; its `Generation` has all codes.
        group: calls of one group share one group's share of the slots while others wait; None is a group of its own.
        aborted: whether the reader has stopped.
        started: when the first request got a slot, by `time.perf_counter`; 0.0 before.
        results: a `Generation` for each finished request, by index; None for the others.
    """

    def __init__(
        self,
        requests: int,
        *,
        streaming: bool,
        wants_codes: bool = False,
        group: object | None = None,
        on_steps: Callable[[int], Any] | None = None,
        on_progress: Callable[[Progress], Any] | None = None,
        on_end: Callable[[], Any] = lambda: None,
        warn_of_cuts: bool = True,
    ):
        """`on_steps` is told, in the reader's thread, how many decode steps have been launched, `on_progress` of each
        piece of a planned script; `on_end` is called at the end, perhaps more than once. `warn_of_cuts` logs a warning
        for audio that `max_tokens` cut."""
        self.streaming, self.wants_codes, self.group = streaming, wants_codes, group
        self.aborted, self.started = False, 0.0
        self.results: list[Generation | None] = [None] * requests
        self._unfinished = self._left = requests  # in the engine, and for the reader
        self._on_steps, self._on_end = on_steps, on_end
        self._on_progress = on_progress
        self._warn_of_cuts = warn_of_cuts
        self._items: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._wakes: set[Callable[[], Any]] = set()  # of those who wait in an event loop
        self._noting = threading.Lock()  # several threads may read, and finish requests

    @property
    def unfinished(self) -> int:
        """Requests that the engine has still to do with; none once the call is aborted."""
        return 0 if self.aborted else self._unfinished

    def emit(self, index: int, audio: np.ndarray) -> None:
        """Called by the scheduler: a request's next chunk."""
        self._put(Chunk(index, audio))

    def finish(self, index: int, generation: Generation) -> None:
        """Called by the scheduler: a request has ended."""
        with self._noting:
            self._unfinished -= 1
        self._put(_Finished(index, generation))

    def fail(self, error: BaseException) -> None:
        """Called by the scheduler: a request has failed, and with it the call."""
        self._unfinished = 0
        self._put(_Failed(error))

    def count_steps(self, count: int) -> None:
        """Called by the scheduler: so many decode steps have been launched."""
        if self._on_steps is not None:
            self._put(_Steps(count))

    def tell_progress(self, progress: Progress) -> None:
        """Called for a planned script: another piece is done."""
        if self._on_progress is not None:
            self._put(progress)

    def abort(self) -> None:
        """End the call for its reader at once, and for its slots at the next launch."""
        self.aborted = True
        self._put(_END)

    def __iter__(self) -> "Call":
        return self

    def __next__(self) -> Chunk:
        while True:
            item = self._unpack(self._items.get())
            if item is _END:
                raise StopIteration
            if item is not None:
                return item

    def __aiter__(self) -> "Call":
        return self

    async def __anext__(self) -> Chunk:
        while True:
            item = self._unpack(await self._next())
            if item is _END:
                raise StopAsyncIteration
            if item is not None:
                return item

    def _unpack(self, item: Any) -> Any:
        """Process a queued item. Returns a chunk or _END for the reader, and None if the item is not for the reader."""
        if self.aborted:
            item = _END
        if item is _END:
            self._items.put(_END)
            self._on_end()
        elif isinstance(item, _Failed):
            self.abort()
            raise item.error
        elif isinstance(item, _Steps):
            if self._on_steps is not None:
                self._on_steps(item.count)
            return None
        elif isinstance(item, Progress):
            if self._on_progress is not None:
                try:
                    self._on_progress(item)
                except (StopIteration, StopAsyncIteration) as error:
                    raise without_stop(error, "on_progress") from error
            return None
        elif isinstance(item, _Finished):
            if self._note_result(item.index, item.generation):
                self._put(_END)
            return None
        return item

    def _note_result(self, index: int, generation: Generation) -> bool:
        """Store a result; returns whether it was the last one."""
        with self._noting:
            self.results[index] = generation
            self._left -= 1
            last = not self._left
        if self._warn_of_cuts and generation.finish_reason == "length":
            item = f"item {index}: " if len(self.results) > 1 else ""
            logger.warning("%sthe audio was cut by max_tokens after %.2f s", item, generation.duration)
        return last

    def _put(self, item: Any) -> None:
        self._items.put(item)
        for wake in tuple(self._wakes):
            with suppress(RuntimeError):  # its event loop is closed
                wake()

    async def _next(self) -> Any:
        loop, arrived = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            loop.call_soon_threadsafe(arrived.set)

        self._wakes.add(wake)  # before the first look into the queue: what comes after that look wakes us
        try:
            while True:
                with suppress(queue.Empty):
                    return self._items.get_nowait()
                await arrived.wait()
                arrived.clear()
        finally:
            self._wakes.discard(wake)
