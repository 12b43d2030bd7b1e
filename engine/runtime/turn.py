"""One batch at a time: who comes second waits, unless that would be for ever."""

import threading


class Turn:
    """A lock that refuses the thread that holds it already, instead of letting it wait for itself.

    A thread may hold it unawares: while it is reading a stream whose work is done in the reader's thread.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._holder: int | None = None

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Whether the lock is held now; arguments as for `threading.Lock`.

        Raises:
            RuntimeError: this thread holds it.
        """
        if self._holder == threading.get_ident():
            raise RuntimeError(
                "this thread is in the middle of a stream of this engine: read it to its end or close it first"
            )
        if not self._lock.acquire(blocking, timeout):
            return False
        self._holder = threading.get_ident()
        return True

    def release(self) -> None:
        self._holder = None
        self._lock.release()

    def locked(self) -> bool:
        return self._lock.locked()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *error) -> None:
        self.release()
