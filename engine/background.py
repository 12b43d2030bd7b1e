"""A generator run ahead in a thread of its own, read with `for` or `async for`."""

import asyncio
import queue
import threading
import weakref
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
END = object()


class Stream(Generic[Item]):
    """The items of a generator that runs ahead in a thread, for one reader with `for` or `async for`.

    The generator starts when the first item is asked for and does not wait for its reader; what is not read is kept.
    It is stopped where it next yields (None included), and closed, by `close` and `aclose`, by Ctrl-C or a cancelled
    task while its reader waits, when nobody holds the stream any more (as when an exception leaves the reader's loop),
    and when the interpreter exits. Its errors are raised to the reader, after it is closed.
    """

    def __init__(self, make: Callable[[], Generator[Item | None, None, None]]):
        """`make` is called in the thread. Of the generator's items None are not passed on."""
        self._worker = _Worker(make)  # which must not know this stream, or it would never be collected
        self._stop = weakref.finalize(self, self._worker.stop)

    def close(self) -> None:
        """Stop, and wait until the generator is closed. There are no items after that."""
        self._stop()

    def __enter__(self) -> "Stream[Item]":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def __iter__(self) -> "Stream[Item]":
        return self

    def __next__(self) -> Item:
        try:
            return self._worker.take(StopIteration)
        except KeyboardInterrupt:
            self.close()
            raise

    async def aclose(self) -> None:
        """`close`, without holding up the event loop."""
        await self._worker.stop_async()

    def __aiter__(self) -> "Stream[Item]":
        return self

    async def __anext__(self) -> Item:
        try:
            return await self._worker.take_async(StopAsyncIteration)
        except asyncio.CancelledError:
            self._worker.cancel()
            raise


class _Failure:
    def __init__(self, error: BaseException):
        self.error = error


class _Worker:
    """The thread and what it hands over: items, perhaps a _Failure, then END, which stays."""

    def __init__(self, make: Callable[[], Generator]):
        self._make = make
        self._items: queue.SimpleQueue = queue.SimpleQueue()
        self._cancelled = threading.Event()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._waiting: set[Callable[[], Any]] = set()  # wake up those who wait in an event loop

    def take(self, at_end: type[Exception]) -> Any:
        self._start()
        return self._unpacked(self._items.get(), at_end)

    async def take_async(self, at_end: type[Exception]) -> Any:
        self._start()
        return self._unpacked(await self._next(), at_end)

    def cancel(self) -> None:
        self._cancelled.set()

    def stop(self) -> None:
        self.cancel()
        # A collection can come to this in the thread itself.
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    async def stop_async(self) -> None:
        self.cancel()
        if self._thread is not None:
            while await self._next() is not END:
                pass
            self._items.put(END)

    def _start(self) -> None:
        with self._starting:
            if self._thread is None:
                # A daemon, because what it makes has no reader once the interpreter wants to exit; `stop` ends it then.
                self._thread = threading.Thread(target=self._run, name="dia-engine stream", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        try:
            if not self._cancelled.is_set():
                self._hand_over_all()
        except BaseException as error:  # whatever it is, it is the reader's
            self._put(_Failure(error))
        self._put(END)

    def _hand_over_all(self) -> None:
        with closing(self._make()) as source:
            for item in source:
                if self._cancelled.is_set():
                    return
                if item is not None:
                    self._put(item)

    def _put(self, item: Any) -> None:
        self._items.put(item)
        for wake in tuple(self._waiting):
            with suppress(RuntimeError):  # its event loop is closed
                wake()

    async def _next(self) -> Any:
        loop, arrived = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            loop.call_soon_threadsafe(arrived.set)

        self._waiting.add(wake)  # before the look into the queue: what comes after that look wakes us
        try:
            while True:
                with suppress(queue.Empty):
                    return self._items.get_nowait()
                await arrived.wait()
                arrived.clear()
        finally:
            self._waiting.discard(wake)

    def _unpacked(self, item: Any, at_end: type[Exception]) -> Any:
        if item is END:
            self._items.put(END)
        if item is END or self._cancelled.is_set():
            raise at_end
        if isinstance(item, _Failure):
            raise item.error
        return item
