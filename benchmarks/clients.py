"""Clients that listen to streams, each in a thread of its own, and what they listen to.

Imports nothing of the engine but its public class: `load` runs this on other versions of it too.
"""

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Protocol

import numpy as np

from .player import Heard, heard


@dataclass(frozen=True)
class Script:
    """What one request asks for."""

    text: str
    seed: int
    max_tokens: int | None = None


class Target(Protocol):
    """What is measured: an engine in this process, or a server."""

    sample_rate: int

    def stream(self, script: Script) -> Iterator[np.ndarray]:
        """Chunks [n] float32 of a request, as they come. It may be given up by closing the iterator."""
        ...


class InProcess:
    """An engine in this process. As many streams at a time as it runs."""

    def __init__(self, engine):
        self._engine, self.sample_rate = engine, engine.sample_rate

    def stream(self, script: Script) -> Iterator[np.ndarray]:
        with self._engine.stream(**asdict(script)) as chunks:
            yield from chunks


class OneAtATime:
    """One stream at a time, the others wait for a lock: what a server around a runtime without batching does."""

    def __init__(self, target: Target):
        self._target, self.sample_rate, self._lock = target, target.sample_rate, threading.Lock()

    def stream(self, script: Script) -> Iterator[np.ndarray]:
        with self._lock, closing(self._target.stream(script)) as chunks:
            yield from chunks


def listen(target: Target, script: Script, due: float) -> Heard:
    """Read a stream to its end; `due` is when the request was to be made, by `time.perf_counter`."""
    chunks, error = [], ""
    try:
        for samples in target.stream(script):
            chunks.append((time.perf_counter() - due, samples))
    except Exception as failure:
        error = f"{type(failure).__name__}: {failure}"
    return heard(chunks, target.sample_rate, time.perf_counter() - due, error)


def open_loop(target: Target, scripts: Sequence[Script], arrivals: Sequence[float]) -> list[Heard]:
    """Make each request at its time, whatever has become of those before it, and listen to all to their ends.

    Args:
        arrivals: of each script's request, in seconds from now, ascending.
    """
    results: list[Heard | None] = [None] * len(scripts)

    def client(index: int, due: float) -> None:
        results[index] = listen(target, scripts[index], due)

    clients, start = [], time.perf_counter()
    for index, arrival in enumerate(arrivals):
        time.sleep(max(0.0, start + arrival - time.perf_counter()))
        clients.append(threading.Thread(target=client, args=(index, start + arrival), daemon=True))
        clients[-1].start()
    for thread in clients:
        thread.join()
    return [result for result in results if result is not None]


def wait_until_idle(engine) -> None:
    """Streams that were given up end with the launch in progress, beside which nothing else is to be measured."""
    while engine.active_requests:
        time.sleep(0.01)


def quiet_logs() -> None:
    """No warning for each request that `max_tokens` cuts: it is there to do that."""
    logging.getLogger("dia_engine").setLevel(logging.ERROR)


def poisson_arrivals(rate: float, count: int, seed: int = 0) -> list[float]:
    """Arrival times in seconds of `count` requests, independent of each other, `rate` per second; the first at 0."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, count)
    gaps[0] = 0.0
    return np.cumsum(gaps).tolist()
