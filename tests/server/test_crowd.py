"""A crowd for a while: audio is right, slots come back, memory does not grow."""

import contextlib
import gc
import resource
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.server.helpers import LONG, Server

CROWD, ROUNDS = 24, 4
BYTES_PER_SECOND = 32_000


def resident():
    """Bytes of this process that are in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


@pytest.mark.slow
def test_a_crowd_of_24_where_half_leave_and_a_quarter_read_at_real_time(talker, voices):
    with Server(talker, voices=str(voices), max_waiting=CROWD) as server:
        alone = {seed: server.speak(LONG, seed=seed).content for seed in range(3)}

        def one(index):
            """A client: every second leaves, before or after its first bytes; every fourth reads at real time."""
            seed = index % 3
            with contextlib.suppress(httpx.HTTPError), server.stream(LONG, seed=seed) as answer:
                if index % 2:
                    if index % 4 == 1:
                        next(answer.iter_raw())
                    return True
                data = b""
                for chunk in answer.iter_raw(3200):
                    data += chunk
                    if index % 4 == 2:
                        time.sleep(len(chunk) / BYTES_PER_SECOND / 4)
                return data == alone[seed]
            return index % 2 == 1

        sizes = []
        for _ in range(ROUNDS):
            with ThreadPoolExecutor(CROWD) as pool:
                assert all(pool.map(one, range(CROWD)))
            server.idle()
            gc.collect()
            sizes.append(resident())
        assert server.metric("dia_buffered_bytes") == 0
        assert not server.app.state.service.sessions
        assert sizes[-1] - sizes[1] < 20e6, sizes  # the first round warms up
