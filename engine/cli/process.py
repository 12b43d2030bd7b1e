"""The process of a command: threads, caches, standard streams and descriptors, signals."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

EXIT_TERMINATED = 143


def limit_primitive_cache() -> None:
    """At most 256 of oneDNN's compiled primitives, unless the user says otherwise; before its first one.

    Sounds have any length, each of which takes some tens of primitives where a CPU's codec is not compiled. oneDNN's
    own limit of 1024 keeps several hundred MB of those that may never be needed again; 256 hold what streams repeat.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")


def reserve_standard_descriptors() -> None:
    """Point closed standard descriptors to nowhere: else the next file that is opened takes the number of one, and gets
    what libraries print."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one


def silence(stream: TextIO | None) -> None:
    """Send what is still in the buffer of a standard stream nowhere."""
    if stream is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def show(text: str, stream: TextIO | None) -> None:
    """Print a line, what the stream's encoding lacks as an escape; nothing where the stream is closed."""
    if stream is not None:
        encoding = stream.encoding or "utf-8"
        try:
            print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)
        except BrokenPipeError:
            raise
        except OSError as error:
            if stream is sys.stdout:
                silence(stream)  # or the interpreter tries again when it exits
            raise OSError(error.errno, error.strerror, "standard output or error") from error


@contextmanager
def cleaning_up_on_sigterm() -> Iterator[None]:
    """Turn SIGTERM into an exception, so that what is half written is removed before the process ends."""

    def leave(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not interrupt the removal
        raise SystemExit(EXIT_TERMINATED)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
