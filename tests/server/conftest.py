"""A server of the talker in this process, for all tests of a module."""

import importlib.util

import pytest

NEEDED = ("av", "fastapi", "httpx", "prometheus_client", "uvicorn", "websockets")
if any(importlib.util.find_spec(name) is None for name in NEEDED):
    collect_ignore_glob = ["test_*.py"]  # the packages of the extra `serve` are not there
else:
    from tests.server.helpers import Server

    @pytest.fixture(scope="session")
    def talker():
        """An engine of four slots."""
        from dia_engine import Engine

        return Engine.load("talker", device="cpu", max_slots=4)

    @pytest.fixture(scope="session")
    def voices(tmp_path_factory):
        """A folder of voices: what one server has made, the next finds."""
        return tmp_path_factory.mktemp("voices")

    @pytest.fixture(scope="module")
    def server(talker, voices):
        """A running server."""
        with Server(talker, voices=str(voices)) as running:
            yield running
