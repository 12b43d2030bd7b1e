"""The talker, for all tests of a module."""

import pytest

from dia_engine import Engine


@pytest.fixture(scope="module")
def talker():
    """An engine of four slots."""
    with Engine.load("talker", device="cpu", max_slots=4) as engine:
        yield engine
