"""What tests of the runtime wait with."""

import time

import pytest

HANGS = 120  # seconds after which a test that waits gives up


def wait_until(condition) -> None:
    for _ in range(HANGS * 200):
        if condition():
            return
        time.sleep(0.005)
    pytest.fail("it does not happen")
