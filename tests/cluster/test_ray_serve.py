"""Two replicas of the talker on a cluster of two cores: whose bytes, how many at once, and what a death costs whom."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.cluster.helpers import workers
from tests.helpers import ROOT
from tests.server.clients.run import free_port

pytestmark = pytest.mark.ray

SPEECH = {
    "input": "[S1] Can you count? [S2] Five six seven eight nine. " * 2, "voice": "default", "response_format": "pcm",
}  # fmt: skip
REPLACED_SECONDS, HANGS = 30, 120
SERVE = [sys.executable, "-c", "import sys; from ray.serve.scripts import cli; sys.exit(cli())"]
TALKER = ["model=talker", "quant=int8", "max_slots=8", "max_wait=600"]  # on a busy machine nobody is sent away


def serve_run(cluster, *arguments):
    """`serve run`, until the replicas take requests."""
    command = [*SERVE, "run", "--non-blocking", "--address", cluster, "dia_engine.cluster:app", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=HANGS)


@pytest.fixture(scope="module")
def url(cluster, tmp_path_factory):
    """The address of Serve, with two replicas."""
    from ray import serve

    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    done = serve_run(cluster, *TALKER, "replicas=2", f"voices={tmp_path_factory.mktemp('voices')}")
    assert done.returncode == 0, done.stderr
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


async def speak(client, seed, begun=None):
    """A status, the replica, and bytes; status 0 for an answer without an end. The set `begun` gets the replica as soon
    as its answer begins."""
    status, replica, content = 0, None, b""
    try:
        async with client.stream("POST", "/v1/audio/speech", json={**SPEECH, "seed": seed}) as response:
            replica = response.headers.get("x-replica")
            if begun is not None:
                begun.add(replica)
            content = b"".join([chunk async for chunk in response.aiter_bytes()])
            status = response.status_code
    except (httpx.RemoteProtocolError, httpx.ReadError):
        pass
    return status, replica, content


def with_client(url, use):
    async def main():
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=url, timeout=HANGS, limits=limits) as client:
            return await use(client)

    return asyncio.run(main())


async def replicas(client):
    """The replicas that answer, asked often enough to meet two."""
    answers = await asyncio.gather(*(client.get("/health") for _ in range(12)))
    return {answer.headers.get("x-replica") for answer in answers if answer.status_code == 200}


@pytest.fixture(scope="module")
def expected(url):
    """The bytes of four seeds, which both replicas have made and which are the same."""

    async def ask(client):
        found = {}
        while len(found) < 8:
            answers = await asyncio.gather(*(speak(client, seed) for seed in range(4) for _ in range(3)))
            for seed, (status, replica, content) in zip([s for s in range(4) for _ in range(3)], answers, strict=True):
                assert status == 200 and found.setdefault((seed, replica), content) == content
        return found

    found = with_client(url, ask)
    by_seed = {seed: {content for (other, _), content in found.items() if other == seed} for seed in range(4)}
    assert all(len(contents) == 1 for contents in by_seed.values())
    return {seed: contents.pop() for seed, contents in by_seed.items()}


def test_both_replicas_give_what_the_plain_server_gives(expected, tmp_path):
    from dia_engine import Engine
    from tests.server.helpers import Server

    with Engine.load("talker", quant="int8", device="cpu") as engine, Server(engine, voices=str(tmp_path)) as server:
        alone = {seed: server.client.post("/v1/audio/speech", json={**SPEECH, "seed": seed}) for seed in expected}
    assert {seed: answer.content for seed, answer in alone.items()} == expected
    assert all(len(content) > 50_000 for content in expected.values())


def test_an_answer_streams_and_has_one_request_id(url):
    with httpx.stream("POST", f"{url}/v1/audio/speech", json={**SPEECH, "seed": 1}, timeout=HANGS) as response:
        assert sum(1 for _ in response.iter_raw()) > 3
    assert len(response.headers.get_list("x-request-id")) == 1


def test_who_comes_to_a_full_server_gets_our_answer(url):
    """Two replicas of 8 slots and 32 places to wait: Serve lets 16 more through, to be told when to come back."""

    async def flood(client):
        return await asyncio.gather(*(client.post("/v1/audio/speech", json=SPEECH) for _ in range(104)))

    answers = with_client(url, flood)
    refused = [answer for answer in answers if answer.status_code != 200]
    assert len(refused) >= 24, "104 came, there is room for 80"
    for answer in refused:
        assert answer.status_code == 429 and 1 <= int(answer.headers["retry-after"]) <= 30
        assert answer.json()["error"]["code"] == "queue_full"


def test_a_replica_that_is_killed_takes_only_its_own_requests_and_comes_back(url, expected):
    async def use(client):
        before = await replicas(client)
        assert len(before) == 2
        begun = set()
        tasks = [asyncio.create_task(speak(client, number % 4, begun)) for number in range(12)]
        while len(begun) < 2:
            assert not all(task.done() for task in tasks)
            await asyncio.sleep(0.005)
        os.kill(workers("ray::ServeReplica")[0], signal.SIGKILL)
        killed = time.monotonic()
        tasks += [asyncio.create_task(speak(client, number % 4)) for number in range(8)]
        answers = await asyncio.gather(*tasks)
        while len(now := await replicas(client)) < 2:
            assert time.monotonic() < killed + REPLACED_SECONDS
            await asyncio.sleep(0.2)
        (survivor,) = before & now
        return survivor, answers

    survivor, answers = with_client(url, use)
    failed = 0
    for number, (status, replica, content) in enumerate(answers):
        seed = (number if number < 12 else number - 12) % 4
        if replica == survivor or status == 200:
            assert status == 200 and content == expected[seed]
        else:  # no end of the bytes that were sent, or a status where there were none
            assert (status, replica) == (500, None) or status == 0
            failed += 1
    assert failed


def test_websockets_of_a_killed_replica_are_closed(url):
    address = f"{url.replace('http', 'ws')}/v1/text-to-dialogue/multi-stream-input"
    with ExitStack() as stack:
        sockets = [stack.enter_context(connect(address, open_timeout=HANGS)) for _ in range(8)]
        os.kill(workers("ray::ServeReplica")[0], signal.SIGKILL)
        closed = [is_closed(socket) for socket in sockets]
    assert any(closed) and not all(closed)


def is_closed(socket):
    try:
        socket.recv(timeout=3)
    except ConnectionClosed:
        return True
    except TimeoutError:
        return False


def test_requests_in_flight_are_whole_when_replicas_go(cluster, url, expected):
    async def use(client):
        while len(await replicas(client)) < 2:
            await asyncio.sleep(0.2)
        tasks = [asyncio.create_task(speak(client, number % 4)) for number in range(12)]
        await asyncio.sleep(0.1)
        done = await asyncio.to_thread(serve_run, cluster, *TALKER, "replicas=1")
        assert done.returncode == 0, done.stderr
        return await asyncio.gather(*tasks)

    answers = with_client(url, use)
    assert [(status, content) for status, _, content in answers] == [(200, expected[each % 4]) for each in range(12)]


def test_a_wrong_argument_is_one_line(cluster):
    done = serve_run(cluster, "model=talker", "quant=int9")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == "Error: quant must be one of int8, nf4, nf4-all, 4bit, 8bit, got 'int9'"


@pytest.mark.skipif(not os.environ.get("BARS"), reason="make test-ray BARS=folder")
def test_the_official_openai_client(cluster, url):
    done = serve_run(cluster, *TALKER, "replicas=2")
    assert done.returncode == 0, done.stderr
    command = [os.environ["CLIENTS"], f"{os.environ['BARS']}/bar_openai.py", url, "--model", "talker"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
