"""Who gets a slot: floods, leavers, slow readers, keys, the end of a server."""

import asyncio
import contextlib
import logging
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from dia_engine.server.app import build_app
from dia_engine.server.audio.formats import AudioFormat
from dia_engine.server.errors import ApiError
from dia_engine.server.listener import Listener
from dia_engine.server.settings import Settings
from dia_engine.server.speech.request import Speech
from dia_engine.server.speech.session import Session
from tests.server.helpers import HANGS, LONG, TEXT, Server, body, raw, samples, until


def test_a_flood_gets_429_and_those_admitted_are_served(talker, voices):
    with Server(talker, voices=str(voices), max_waiting=3) as server, ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda seed: server.speak("[S1] Hello.", seed=seed), range(20)))
        admitted = [answer for answer in answers if answer.status_code == 200]
        refused = [answer for answer in answers if answer.status_code == 429]
        assert len(admitted) + len(refused) == 20 and 7 <= len(admitted) < 20
        for answer in refused:
            error = answer.json()["error"]
            assert (error["type"], error["code"]) == ("rate_limit_error", "queue_full")
            assert 1 <= int(answer.headers["retry-after"]) <= 30
        assert all(len(answer.content) > 10_000 for answer in admitted)
        server.idle()
        until(lambda: server.metric("dia_requests_total") == 20)
        assert server.client.get("/health").json()["slots"] == 4


def test_a_request_in_a_crowd_where_half_leave_is_what_it_is_alone(server):
    alone = {seed: server.speak(seed=seed).content for seed in (0, 2)}

    def one(index):
        if index % 2:
            with contextlib.suppress(httpx.HTTPError), server.stream(LONG, seed=index) as answer:
                if index % 4 == 1:
                    next(answer.iter_raw())
            return None
        return index % 4, server.speak(seed=index % 4).content

    with ThreadPoolExecutor(8) as pool:
        for result in pool.map(one, range(8)):
            if result is not None:
                assert result[1] == alone[result[0]]
    server.idle()


def test_a_client_that_leaves_frees_its_slot_whenever_it_leaves(server, talker):
    for wait in (0.0, 0.02, 0.1):  # before the first byte, around it
        connection = raw(server, body(LONG))
        time.sleep(wait)
        connection.close()
        server.idle()
    running = [raw(server, body(LONG)) for _ in range(4)]
    until(lambda: server.metric("dia_requests_running") == 4)
    connection = raw(server, body(LONG))  # waits for a slot
    until(lambda: server.metric("dia_requests_waiting") == 1)
    connection.close()
    until(lambda: not server.metric("dia_requests_waiting"))
    assert server.metric("dia_requests_running")
    for connection in running:
        connection.close()
    server.idle()


def test_a_client_that_leaves_is_noticed_though_it_has_sent_another_request(server, monkeypatch):
    """The slot is free again before the whole is made, which is what the response would wait for."""
    noted, note = [], Session._report
    monkeypatch.setattr(Session, "_report", lambda session, outcome: (noted.append(outcome), note(session, outcome)))
    for first in (b"", b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"):
        connection = raw(server, body(LONG * 30, stream=False), first)
        until(lambda: server.metric("dia_requests_running") == 1)
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" * 2)
        received = server.metric("dia_requests_total")
        connection.close()
        server.idle()
        until(lambda received=received: server.metric("dia_requests_total") == received + 1)
    assert noted == ["aborted"] * 2


def test_a_half_open_connection_is_one_that_has_left(server):
    connection = raw(server, body(LONG))
    connection.shutdown(socket.SHUT_WR)
    server.idle()
    connection.close()


def test_a_slow_reader_does_not_hold_a_slot(server):
    with server.stream(LONG) as answer:
        chunks = answer.iter_raw()
        first = next(chunks)
        server.idle()  # the slot is free, though most has not been read
        data = first + b"".join(chunks)
    assert data == server.speak(LONG).content


def test_readers_that_stand_still_are_dropped_beyond_the_limit(talker, voices):
    with Server(talker, voices=str(voices), max_buffered_mb=1) as server:
        connections = [raw(server, body(LONG, sample_rate=96_000, response_format="pcm")) for _ in range(4)]
        server.idle()
        until(lambda: server.metric("dia_buffered_bytes") <= 1e6)
        assert len(server.speak().content) > 16_000
        for connection in connections:
            connection.close()
        until(lambda: server.metric("dia_buffered_bytes") == 0)


def test_a_request_that_waits_too_long_gets_503(talker, voices):
    with Server(talker, voices=str(voices), max_wait=0.05) as server, ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda seed: server.speak(seed=seed), range(12)))
        waited = [answer for answer in answers if answer.status_code == 503]
        assert waited and any(answer.status_code == 200 for answer in answers)
        assert {answer.json()["error"]["code"] for answer in waited} == {"waited_too_long"}
        assert all(answer.headers["retry-after"].isdigit() for answer in waited)
        server.idle()


def test_one_key_cannot_take_all_slots(talker, voices):
    keys = {"Authorization": "Bearer one"}, {"xi-api-key": "two"}
    with Server(talker, voices=str(voices), api_key=("one", "two"), max_per_key=1) as server:
        with server.client.stream("POST", "/v1/audio/speech", json=body(LONG), headers=keys[0]) as first:
            assert first.status_code == 200
            answers = [server.client.post("/v1/audio/speech", json=body(), headers=each) for each in keys]
        assert [answer.status_code for answer in answers] == [429, 200]
        assert answers[0].json()["error"]["code"] == "key_limit"
        server.idle()


def test_items_of_a_batch_take_the_places_that_it_reserved_and_no_more(talker, voices):
    app = build_app(Settings(model="talker", max_waiting=0, voices=str(voices)), talker)
    service, speech, pcm = app.state.service, Speech("[S1] Hi.", given_seed=1), AudioFormat("pcm", 16_000)

    async def run() -> None:
        service.ready(talker)
        with service.reserve(2, 0) as reservation:
            for each in (reservation, reservation, None, None):
                service.begin(speech, pcm, reservation=each)
            with pytest.raises(ApiError) as refused:
                service.begin(speech, pcm)
        assert (refused.value.status, refused.value.code) == (429, "queue_full")
        service.close()

    asyncio.run(run())


def test_without_a_valid_key_only_what_is_open_answers(talker, voices):
    with Server(talker, voices=str(voices), api_key=("secret",)) as server:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic x"}, {"xi-api-key": "sécret"}):
            raw_headers = {name: value.encode() for name, value in headers.items()}
            answer = server.client.post("/v1/audio/speech", json=body(), headers=raw_headers)
            assert answer.status_code == 401 and answer.json()["error"]["type"] == "authentication_error"
        assert server.client.post("/v1/audio/voices", data={"name": "x"}).status_code == 401
        assert server.client.delete("/v1/audio/voices/x").status_code == 401
        for path in ("/", "/health", "/metrics", "/v1/audio/voices", "/v1/audio/models", "/v1/models"):
            assert server.client.get(path).status_code == 200
        listed = server.client.get("/v1/audio/voices").json()["voices"]
        assert listed and not any("ref_text" in voice for voice in listed)


def test_a_key_is_asked_for_before_a_body_is_read(talker, voices):
    """To parse a large one takes time, in which nobody else is answered."""
    paths = ("/v1/audio/speech", "/v1/audio/speech/batch", "/v1/audio/voices", "/v1/text-to-dialogue")
    with Server(talker, voices=str(voices), api_key=("secret",), body_timeout=0.5) as server:
        for path in (*paths, "/v1/text-to-dialogue/stream", "/v1/text-to-speech/x", "/v1/text-to-speech/x/stream"):
            for kind in ("application/json", "multipart/form-data; boundary=x"):
                with socket.create_connection(server.socket.getsockname(), timeout=HANGS) as connection:
                    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: 9999\r\n\r\n"
                    connection.sendall(head.encode() + b"{")  # the rest does not come
                    answer = connection.recv(65_536)
                assert answer.startswith(b"HTTP/1.1 401 ") and b'"code": "invalid_api_key"' in answer, (path, answer)


def test_audio_that_requests_bring_does_not_hold_up_running_streams(talker, voices, monkeypatch):
    over = threading.Event()

    def slow(data, name):
        over.wait(HANGS)
        raise ValueError(f"{name} is of no use")

    monkeypatch.setattr("dia_engine.server.routes.speech.decode_audio", slow)
    brought = {"ref_audio": "data:audio/wav;base64,AAAA", "ref_text": TEXT}
    with Server(talker, voices=str(voices), max_waiting=2) as server, ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(server.speak, **brought) for _ in range(4)]
        try:
            until(lambda: server.app.state.service._decoding == len(waiting))
            assert server.speak().status_code == 200
            refused = server.speak(**brought)
            assert refused.status_code == 429 and refused.json()["error"]["code"] == "queue_full"
            assert refused.headers["retry-after"].isdigit()
        finally:
            over.set()
        assert {each.result().json()["error"]["message"] for each in waiting} == {"audio of ref_audio is of no use"}
        service = server.app.state.service
        assert service._decoding == 0
    for closed in (service._pool, service._decoders, service.voices._pool):
        with pytest.raises(RuntimeError, match="after shutdown"):
            closed.submit(print)


def test_bodies_are_held_to_size_and_time(talker, voices, caplog):
    limits = {"max_body_mb": 0.01, "max_upload_mb": 0.1, "body_timeout": 0.3, "header_timeout": 0.3}
    with Server(talker, voices=str(voices), **limits) as server:
        large = {"inputs": [{"text": "x" * 20_000, "voice_id": "default"}]}
        assert server.client.post("/v1/text-to-dialogue", json=large).status_code == 413
        assert server.client.post("/v1/text-to-dialogue", content=iter([b"x" * 9000] * 2)).status_code == 413
        assert (
            server.client.post("/v1/audio/speech", content=b"x" * 200_000).json()["error"]["code"] == "body_too_large"
        )
        slow = socket.create_connection(server.socket.getsockname())
        slow.sendall(
            b"POST /v1/audio/speech HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n"
        )
        slow.settimeout(10)
        assert b" 408 " in slow.recv(100)
        for start in (b"", b"GET / HTTP/1.1\r\nHost:"):  # headers that never end
            silent = socket.create_connection(server.socket.getsockname())
            silent.sendall(start)
            silent.settimeout(10)
            assert silent.recv(100) == b""
        endless = socket.create_connection(server.socket.getsockname())
        endless.sendall(b"GET / HTTP/1.1\r\nA: " + b"x" * 66_000)
        endless.settimeout(10)
        assert b" 431 " in endless.recv(100)
        assert server.status() == 200
    assert "could not be kept" not in caplog.text


def test_what_was_sent_before_an_interruption_is_counted_and_logged(server, caplog):
    before = server.metric("dia_sent_audio_seconds_total")
    logger = logging.getLogger("dia_engine.server.speech.session")
    lines = []
    handler = logging.Handler()
    handler.emit = lines.append
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        with server.stream(LONG) as answer:
            data = next(answer.iter_raw())
        until(lambda: any(line.fields.get("outcome") == "aborted" for line in lines))
    finally:
        logger.removeHandler(handler)
    fields = next(line.fields for line in lines if line.fields["outcome"] == "aborted")
    assert fields["sent_seconds"] >= len(data) / 2 / 16_000 - 1e-3
    assert server.metric("dia_sent_audio_seconds_total") == pytest.approx(before + fields["sent_seconds"], abs=1e-3)
    assert TEXT not in str(fields)


def test_a_drain_finishes_what_runs_and_refuses_the_rest(talker, voices):
    with Server(talker, voices=str(voices)) as server:
        whole = server.speak(LONG).content
        with server.stream(LONG) as answer:
            chunks = answer.iter_raw()
            first = next(chunks)
            server.listener.handle_exit(15, None)
            late = server.speak()
            assert late.status_code == 503 and late.json()["error"]["code"] == "draining"
            assert late.headers["retry-after"]
            assert server.client.get("/health").json()["status"] == "draining"
            assert first + b"".join(chunks) == whole
        server.thread.join(20)
        assert not server.thread.is_alive()


@pytest.mark.parametrize("is_read", [True, False])
def test_a_drain_without_time_counts_what_it_cuts_off(talker, caplog, is_read):
    """A request of which all was handed to its connection is not cut off, though its end was not noted yet."""

    settings = Settings(model="talker", drain_seconds=0)
    app = build_app(settings, talker)

    async def run() -> None:
        app.state.service.ready(talker)
        session = app.state.service.begin(Speech("[S1] Hi.", given_seed=1), AudioFormat("pcm", 44_100))
        if is_read:
            assert await session.read_all()
        await Listener(app, settings)._drain()
        session.close()

    with caplog.at_level("WARNING"):
        asyncio.run(run())
    assert ("1 requests were cut off" in caplog.text) is not is_read


def test_a_failed_engine_does_not_look_alive(voices):
    from dia_engine import Engine

    with Engine.load("talker", device="cpu", max_slots=1) as engine, Server(engine, voices=str(voices)) as server:
        assert server.status() == 200
        engine.close()
        assert server.client.get("/health").json()["status"] == "failed" and server.status() == 503
        assert server.speak().status_code == 503


def test_audio_is_not_silent(server):
    assert abs(samples(server.speak().content)).max() > 0.05
