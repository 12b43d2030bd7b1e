"""Calls whose requests are spoken in pieces, and those of single pieces."""

import queue
from collections.abc import Callable
from typing import Any

import numpy as np

from ..results import Generation
from ..runtime.call import Call, Chunk


class ScriptCall(Call):
    """A call with scripts that are generated in pieces."""

    def __init__(self, requests: int, *, streaming: bool, **options: Any):
        super().__init__(requests, streaming=streaming, **options)
        self.on_abort: list[Callable[[], Any]] = []
        self.unread = 0  # chunks that the reader has not taken

    def emit(self, index: int, audio: np.ndarray) -> None:
        self.unread += 1
        super().emit(index, audio)

    def abort(self) -> None:
        super().abort()
        for wake in self.on_abort:
            wake()

    def _unpack(self, item: Any) -> Any:
        if isinstance(item, Chunk):
            self.unread -= 1
        return super()._unpack(item)


class PieceCall(Call):
    """One attempt at a piece. Puts (self, message) into the inbox of its `ScriptTask`."""

    def __init__(
        self, piece: int, inbox: "queue.SimpleQueue[tuple[PieceCall, Any] | None]", script: Call, **options: Any
    ):
        self._script = script
        super().__init__(1, wants_codes=True, group=script, **options)
        self.piece, self._inbox = piece, inbox

    @property
    def started(self) -> float:
        """When the script's first piece got a slot."""
        return self._script.started

    @started.setter
    def started(self, when: float) -> None:
        self._script.started = self._script.started or when

    def receive(self, message: Any) -> Any:
        """Process a message in the script's thread. Returns a chunk, or None for other messages.

        Raises:
            Exception: the error of a request that has failed.
        """
        return self._unpack(message)

    def _note_result(self, index: int, generation: Generation) -> bool:
        self.results[index] = generation  # without a warning: the whole call gives one
        return False  # it has no end of its own

    def _put(self, item: Any) -> None:
        self._inbox.put((self, item))
