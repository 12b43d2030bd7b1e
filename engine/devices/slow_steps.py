"""A warning for a user whose decode steps wait for cores that other processes keep busy.

It is for several OpenMP threads, which wait for each other. One thread shares its core fairly, and nothing can be done.
"""

import logging
import statistics
from collections import defaultdict, deque

import torch

logger = logging.getLogger(__name__)

WINDOW = 64  # steps whose median a step is compared with
FEWEST = 16  # steps before any is judged
SLOW = 10  # times the median


class SlowSteps:
    """Watches the times of an engine's decode steps on a CPU and warns once of a very slow one.

    Steps are compared with earlier ones of as many slots: a batch of 32 may well take ten times as long as one request.
    """

    def __init__(self) -> None:
        self._warned = False
        self._recent: dict[int, deque[float]] = defaultdict(lambda: deque(maxlen=WINDOW))

    def record(self, seconds: float, slots: int = 1) -> None:
        """Note a step of `slots` slots; the first that takes SLOW times the median of those before is logged."""
        threads = torch.get_num_threads()
        if self._warned or threads == 1:
            return
        recent = self._recent[slots]
        if len(recent) >= FEWEST:
            median = statistics.median(recent)
            if seconds >= SLOW * median:
                self._warned = True
                self._recent.clear()
                logger.warning("%s", _message(seconds, median, threads))
                return
        recent.append(seconds)


def _message(seconds: float, median: float, threads: int) -> str:
    return (
        f"a decode step took {1000 * seconds:.0f} ms, {seconds / median:.0f} times the median: other processes "
        f"probably keep the CPU busy, and {threads} OpenMP threads wait for each other; set OMP_WAIT_POLICY=PASSIVE "
        "before Python starts, or use fewer threads (OMP_NUM_THREADS, or torch.set_num_threads)"
    )
