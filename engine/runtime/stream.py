"""Audio that is read while it is made."""

import asyncio
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, Generic, NoReturn, TypeVar

from ..results import Generation
from .call import Call, Chunk

Item = TypeVar("Item")


class AudioStream(Generic[Item]):
    """The chunks of a call, for `for` or `async for`.

    The work starts when the first chunk is asked for, and does not wait for the reader: chunks that are not read are
    kept. It is given up, and the slot free after the launch in progress, by `close` or `aclose`, at the end of a `with`
    or `async with` over the stream, by Ctrl-C or a cancelled task while its reader waits, when nobody holds the stream
    any more (as when an exception leaves the reader's loop), and when the interpreter exits. Its errors are raised to
    the reader. Several threads may read it, each chunk goes to one of them. A process forked from its own cannot:
    RuntimeError.
    """

    def __init__(self, start: Callable[[Callable[[], bool]], Call | None], batch: bool):
        """
        Args:
            start: begins the work. It is given a function that says whether the stream has been closed, and may then
                return None.
            batch: whether the call was given a list of texts; its chunks then come with the index of their text.
        """
        self._start, self._batch = start, batch
        self._starting = threading.Lock()
        self._pid = os.getpid()
        self._call: Call | None = None
        self._closed = False

    def __reduce__(self) -> NoReturn:
        raise TypeError("a stream cannot be copied or pickled: there is one generation behind it; read it where it is")

    @property
    def result(self) -> Generation | list[Generation]:
        """How the requests ended, once the stream has been read to its end: a `Generation` without `audio`, a list of
        them for a list of texts.

        Raises:
            RuntimeError: there are chunks to read, or the stream was closed or failed.
        """
        results = [] if self._call is None else self._call.results
        finished = [result for result in results if result is not None]
        if finished and len(finished) == len(results):
            return finished if self._batch else finished[0]
        if self._closed:
            raise RuntimeError("this stream was closed before it had been read to its end: it has no result")
        if self._call is not None and self._call.aborted:
            raise RuntimeError("this stream has failed: it has no result")
        raise RuntimeError("a stream has a result once it has been read to its end")

    @property
    def started(self) -> float:
        """When the first of its requests got a slot, in seconds of `time.perf_counter`; 0.0 while all of them wait."""
        return 0.0 if self._call is None else self._call.started

    def close(self) -> None:
        """Give the rest up. There are no chunks after that."""
        self._closed = True
        if self._call is not None:
            self._call.abort()

    async def aclose(self) -> None:
        """`close`, which does not wait either."""
        self.close()

    def __enter__(self) -> "AudioStream[Item]":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    async def __aenter__(self) -> "AudioStream[Item]":
        return self

    async def __aexit__(self, *error: object) -> None:
        self.close()

    def __iter__(self) -> "AudioStream[Item]":
        return self

    def __next__(self) -> Item:
        self._check_process()
        try:
            call = self._started()
            if call is None:
                raise StopIteration
            return self._item_of(next(call))
        except KeyboardInterrupt:
            self.close()
            raise

    def __aiter__(self) -> "AudioStream[Item]":
        return self

    async def __anext__(self) -> Item:
        self._check_process()
        try:
            # To encode an audio prompt takes seconds, in which the event loop must go on.
            call = self._call or await asyncio.to_thread(self._started)
            if call is None:
                raise StopAsyncIteration
            return self._item_of(await anext(call))
        except asyncio.CancelledError:
            self.close()
            raise

    def _item_of(self, chunk: Chunk) -> Any:
        """What the reader gets for a chunk."""
        return (chunk.index, chunk.audio) if self._batch else chunk.audio

    def _check_process(self) -> None:
        """Raises RuntimeError in a process forked from the stream's: nothing would ever come."""
        if self._pid != os.getpid():
            raise RuntimeError("this stream was made in the process that this one was forked from; read it there")

    def _started(self) -> Call | None:
        """The call, begun if need be; None for a stream that was closed before."""
        with self._starting:
            if self._call is None and not self._closed:
                call = self._start(lambda: self._closed)
                if call is not None:
                    # The call must not know this stream, or it would never be collected.
                    weakref.finalize(self, call.abort)
                    self._call = call
                    if self._closed:
                        call.abort()
            return self._call
