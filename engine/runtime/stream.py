"""A generator read with `for` or `async for`, which can run ahead of its reader in a thread of its own."""

import asyncio
import queue
import threading
import weakref
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, closing, suppress
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
Mapped = TypeVar("Mapped")
END = object()


class Stream(Generic[Item]):
    """The items of a generator, for one reader with `for` or `async for`.

    `async for` and `ahead` run the generator in a thread, which does not wait for the reader: what is not read is kept.
    Otherwise the reader's thread runs it. It starts when the first item is asked for. It is stopped where it next
    yields (None included), and closed, by `close` and `aclose`, by Ctrl-C or a cancelled task while its reader waits,
    when nobody holds the stream any more (as when an exception leaves the reader's loop), and when the interpreter
    exits. Its errors are raised to the reader, after it is closed.
    """

    def __init__(self, make: Callable[[], Generator[Item | None, None, None]], ahead: bool):
        """`make` is called where the generator will run. Of its items None are not passed on."""
        self._make, self._ahead = make, ahead
        self._worker: _Here | _Thread | None = None
        self._stop = lambda: None
        self._closed = False

    def map(self, function: Callable[[Item], Mapped]) -> "Stream[Mapped]":
        """A stream of what `function` makes of each item, in place of this one."""
        make = self._make

        def mapped() -> Generator[Mapped | None, None, None]:
            with closing(make()) as source:
                for item in source:
                    yield None if item is None else function(item)

        return Stream(mapped, self._ahead)

    def __reduce__(self):
        raise TypeError("a stream cannot be copied or pickled: there is one generator behind it; read it where it is")

    def close(self) -> None:
        """Stop, and wait until the generator is closed. There are no items after that."""
        self._closed = True
        self._stop()

    def __enter__(self) -> "Stream[Item]":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def __iter__(self) -> "Stream[Item]":
        return self

    def __next__(self) -> Item:
        try:
            item: Any = END if self._closed else self._started(self._ahead).take()
        except KeyboardInterrupt:
            self.close()
            raise
        if item is END or self._closed:
            raise StopIteration
        return item

    async def aclose(self) -> None:
        """`close`, without holding up the event loop."""
        self._closed = True
        if self._worker is not None:
            await self._worker.stop_async()

    def __aiter__(self) -> "Stream[Item]":
        return self

    async def __anext__(self) -> Item:
        try:
            item: Any = END if self._closed else await self._started(ahead=True).take_async()
        except asyncio.CancelledError:
            self._closed = True
            if self._worker is not None:
                self._worker.cancel()
            raise
        if item is END or self._closed:
            raise StopAsyncIteration
        return item

    def _started(self, ahead: bool) -> "_Here | _Thread":
        if self._worker is None:
            self._worker = _Thread(self._make) if ahead else _Here(self._make)
            # Neither must know this stream, or it would never be collected.
            self._stop = weakref.finalize(self, self._worker.stop)
        return self._worker


def each_step_in(
    context: Callable[[], AbstractContextManager], source: Generator[Item, None, None]
) -> Generator[Item, None, None]:
    """The items of a generator whose code runs in a context that its reader does not see between the items."""
    try:
        while True:
            with context():
                try:
                    item = next(source)
                except StopIteration:
                    return
            yield item
    finally:
        with context():
            source.close()


class _Here:
    """The generator, run by whoever takes its items."""

    def __init__(self, make: Callable[[], Generator]):
        self._source, self._cancelled = make(), False

    def take(self) -> Any:
        for item in self._source:
            if self._cancelled:
                break
            if item is not None:
                return item
        self._source.close()
        return END

    async def take_async(self) -> Any:
        raise RuntimeError("this stream was begun with `for` and cannot go on with `async for`")

    async def stop_async(self) -> None:
        self.stop()

    def cancel(self) -> None:
        self._cancelled = True

    def stop(self) -> None:
        self.cancel()
        with suppress(ValueError):  # it is running in another thread, which will see that it is cancelled
            self._source.close()


class _Failure:
    def __init__(self, error: BaseException):
        self.error = error


class _Thread:
    """The generator in a thread that hands over items, perhaps a _Failure, then END, which stays."""

    def __init__(self, make: Callable[[], Generator]):
        self._make = make
        self._items: queue.SimpleQueue = queue.SimpleQueue()
        self._cancelled = threading.Event()
        self._waiting: set[Callable[[], Any]] = set()  # wake up those who wait in an event loop
        # A daemon, because what it makes has no reader once the interpreter wants to exit; `stop` ends it then.
        self._thread = threading.Thread(target=self._run, name="dia-engine stream", daemon=True)
        self._thread.start()

    def take(self) -> Any:
        return self._unpacked(self._items.get())

    async def take_async(self) -> Any:
        return self._unpacked(await self._next())

    def cancel(self) -> None:
        self._cancelled.set()

    def stop(self) -> None:
        self.cancel()
        if self._thread is not threading.current_thread():  # where a collection can come to this
            self._thread.join()

    async def stop_async(self) -> None:
        self.cancel()
        while await self._next() is not END:
            pass
        self._items.put(END)

    def _run(self) -> None:
        try:
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

    def _unpacked(self, item: Any) -> Any:
        if item is END:
            self._items.put(END)
        if isinstance(item, _Failure):
            raise item.error
        return item
