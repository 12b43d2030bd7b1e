"""Answers that are sent once all of their audio is made: what they hold until a client has it."""

import asyncio

import pytest

from dia_engine.server.speech.response import PART, WholeResponse
from tests.server.helpers import LONG, Server, body, raw, until

CONTENT = bytes(range(256)) * (PART // 256) * 2 + b"end"


class FakeSession:
    """One that is read to its end, and may be dropped."""

    def __init__(self):
        self.dropped, self.closed = asyncio.Event(), 0

    async def failure(self):
        await self.dropped.wait()

    def close(self):
        self.closed += 1


class Client:
    """Reads so many parts of a body, then stands still; leaves when it is told to."""

    def __init__(self, parts=1000):
        self.parts, self.body, self.ended, self.left = parts, [], False, asyncio.Event()
        self.still = asyncio.Event()

    async def send(self, message):
        if message["type"] == "http.response.start":
            return
        if len(self.body) == self.parts:
            self.still.set()
            await asyncio.Event().wait()
        self.body.append(message["body"])
        self.ended = not message["more_body"]

    async def receive(self):
        await self.left.wait()
        return {"type": "http.disconnect"}


async def answered(client, sessions):
    await WholeResponse(sessions, CONTENT)({"type": "http"}, client.receive, client.send)


def test_sessions_are_held_until_all_is_sent():
    async def run():
        sessions, client = [FakeSession(), FakeSession()], Client()
        await answered(client, sessions)
        assert b"".join(client.body) == CONTENT and client.ended and max(map(len, client.body)) <= PART
        assert [session.closed for session in sessions] == [1, 1]

    asyncio.run(run())


@pytest.mark.parametrize("end", ["dropped", "left"])
def test_a_client_that_stands_still_holds_them_until_it_leaves_or_is_dropped(end):
    async def run():
        sessions, client = [FakeSession(), FakeSession()], Client(parts=1)
        answering = asyncio.ensure_future(answered(client, sessions))
        await client.still.wait()
        assert not any(session.closed for session in sessions)
        (sessions[1].dropped if end == "dropped" else client.left).set()
        await answering
        assert [session.closed for session in sessions] == [1, 1] and not client.ended

    asyncio.run(run())


def test_they_count_as_waiting_and_are_dropped_beyond_the_limit(talker, voices):
    with Server(talker, voices=str(voices), max_buffered_mb=4) as server:
        # More than a connection's own buffers take: a client that does not read holds it back.
        long = body(LONG * 24, sample_rate=96_000, response_format="pcm", stream=False)
        connections = [raw(server, long) for _ in range(3)]
        server.idle()
        until(lambda: server.metric("dia_buffered_bytes") <= 4e6)
        assert server.metric(r'dia_requests_total\{outcome="finished"\}') == 0
        for connection in connections:
            connection.close()
        until(lambda: server.metric("dia_buffered_bytes") == 0 and not server.app.state.service.sessions)
