"""How many threads of a CPU a model computes with."""

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

# Bytes of weights up to which a model's products are too small to share: a second thread only waits at barriers, and
# where other processes keep the cores busy, each wait lasts until the system gives that thread its turn. 64 MB is far
# above the small models there are (12 MB) and far below the published Dia (3 GB).
SMALL = 64e6
# Threads that prefill and decode windows of a small model, beside the one that makes steps; fewer if torch has fewer.
MOST_WORKERS = 4


def is_small(weight_bytes: Iterable[int], device: torch.device) -> bool:
    """Whether a model with weights of these sizes computes on one thread of a CPU."""
    return device.type == "cpu" and sum(weight_bytes) <= SMALL


def worker_threads() -> int:
    """Threads beside the one that makes the steps of a small model: as many as torch may use more."""
    return min(torch.get_num_threads() - 1, MOST_WORKERS)


@contextmanager
def one_thread(wanted: bool = True) -> Iterator[None]:
    """Let torch compute in this thread alone, until the end of the context; nothing if not `wanted`.

    torch counts the threads per calling thread, and a new thread starts with the count that any thread set last: a
    program's own threads, also those that begin meanwhile, compute with as many as before. To see to that takes about
    50 microseconds: enter this around a loop and not around each of its steps.
    """
    before = torch.get_num_threads()
    if not wanted or before == 1:
        yield
        return
    torch.set_num_threads(1)
    _set_for_new_threads(before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _set_for_new_threads(count: int) -> None:
    thread = threading.Thread(target=torch.set_num_threads, args=(count,), name="dia-engine thread count")
    thread.start()
    thread.join()
