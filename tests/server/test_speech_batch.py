"""Several scripts in one request."""

import base64
import contextlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import numpy as np
import pytest

from dia_engine.server.speech.request import Speech
from tests.server.helpers import LONG, TEXT, Server, body, close, raw, until

BATCH = "/v1/audio/speech/batch"
SHARED = {name: value for name, value in body().items() if name != "input"}


def ask(server, items, **shared):
    return server.client.post(BATCH, json={**SHARED, **shared, "items": items})


def test_items_are_what_they_are_alone_and_a_bad_one_fails_alone(server, talker):
    items = [{"input": TEXT, "seed": seed} for seed in range(6)]
    items[2] = {"input": TEXT, "voice": "nobody"}
    items[4] = {"input": "[S1] Hello.", "response_format": "wav"}
    answer = ask(server, [*items, {"input": 3}, {}, {"input": " "}])
    assert answer.status_code == 200, answer.text
    content = answer.json()
    assert (content["total"], content["succeeded"], content["failed"]) == (9, 5, 4)
    assert content["id"] == answer.headers["x-request-id"]
    results = content["results"]
    assert [each["index"] for each in results] == list(range(9))
    for index in (0, 1, 3, 5):
        assert results[index]["status"] == "success" and results[index]["seed"] == index
        assert close(base64.b64decode(results[index]["audio_data"]), talker.generate(TEXT, seed=index))
    assert (
        base64.b64decode(results[4]["audio_data"])
        == server.speak("[S1] Hello.", response_format="wav", stream=False).content
    )
    assert results[4]["media_type"] == "audio/wav" and results[4]["sample_rate"] == 16_000
    told = [results[index]["error"] for index in (2, 6, 7, 8)]
    assert [each["param"] for each in told] == ["voice", "input", "input", "input"]
    assert all(results[index]["status"] == "error" for index in (2, 6, 7, 8))
    server.idle()
    until(lambda: server.metric("dia_buffered_bytes") == 0)


def test_the_seed_of_a_result_is_that_of_the_try_that_spoke(server, monkeypatch):
    """A script for which the model says nothing is tried with another seed."""
    another, seeds = Speech.with_another_seed, []

    def sounding(speech):
        seeds.append(speech.seed)
        return replace(another(speech), text=TEXT, given_seed=5)

    monkeypatch.setattr(Speech, "with_another_seed", sounding)
    (result,) = ask(server, [{"input": "@", "voice": "alloy"}], seed=None).json()["results"]
    assert len(seeds) == 1 and result["status"] == "success" and result["seed"] == 5


@pytest.mark.parametrize(
    "content, words",
    [
        ({}, "items"),
        ({"items": []}, "at least 1"),
        ({"items": [{"input": "x"}] * 33}, "at most 32"),
        ({"items": [{"input": "x" * 4000}] * 6}, "at most 20000 characters"),
        ({"items": ["x"]}, "items.0"),
        ({"items": [{"input": "x"}], "seed": "x"}, "seed"),
    ],
)
def test_a_batch_that_cannot_be_is_refused_whole(server, content, words):
    answer = server.client.post(BATCH, json=content)
    assert answer.status_code == 400 and words in answer.json()["error"]["message"], answer.text


def test_a_batch_takes_the_places_that_are_free_and_waits_for_itself(talker, voices):
    """More items than may run and wait are no flood, for they wait in the batch."""
    long = body(LONG * 30)
    with Server(talker, voices=str(voices), max_waiting=0) as server, ThreadPoolExecutor(1) as pool:
        with contextlib.closing(raw(server, long)):
            until(lambda: server.metric("dia_requests_running") == 1)
            answer = pool.submit(ask, server, [{"input": LONG}] * 5)
            until(lambda: server.metric("dia_requests_running") == 4)
            refused = server.speak()
            assert refused.status_code == 429 and refused.headers["retry-after"]
        assert answer.result().json()["succeeded"] == 5
        with contextlib.ExitStack() as stack:
            for _ in range(4):
                stack.enter_context(contextlib.closing(raw(server, long)))
            until(lambda: server.metric("dia_requests_running") == 4)
            refused = ask(server, [{"input": "[S1] Hello."}])
            assert refused.status_code == 429 and refused.json()["error"]["code"] == "queue_full"
        server.idle()


def test_a_batch_keeps_to_the_share_of_its_key(talker, voices):
    headers = {"Authorization": "Bearer one"}
    with Server(talker, voices=str(voices), api_key=("one",), max_per_key=2) as server:
        assert ask(server, [{"input": "x"}]).status_code == 401
        service, counts = server.app.state.service, []
        begin = service.begin

        def counted(*arguments, **options):
            session = begin(*arguments, **options)
            counts.append(sum(each.generating for each in service.sessions))
            return session

        service.begin = counted
        content = {**SHARED, "items": [{"input": "[S1] Hello."}] * 5}
        answer = server.client.post(BATCH, json=content, headers=headers)
        assert answer.json()["succeeded"] == 5 and len(counts) == 5 and max(counts) <= 2
        server.idle()


def test_a_client_that_leaves_frees_all_of_its_slots(server):
    items = [{"input": LONG}] * 12
    with pytest.raises(httpx.ReadTimeout):
        server.client.post(BATCH, json={**SHARED, "items": items}, timeout=0.2)
    server.idle()
    assert not server.app.state.service._reservations and not server.app.state.service.sessions
    assert np.any(np.frombuffer(server.speak().content, "<i2"))


def test_audio_that_waits_for_the_rest_counts_as_buffered(talker, voices):
    """Beyond the limit the largest is dropped, whoever waits for it."""
    with Server(talker, voices=str(voices), max_buffered_mb=1) as server:
        results = ask(server, [{"input": LONG}] * 4, sample_rate=96_000).json()["results"]
        codes = [each["error"]["code"] for each in results if each["status"] == "error"]
        assert codes and set(codes) == {"too_slow"}
        whole = server.speak(LONG * 2, sample_rate=96_000, stream=False)
        assert whole.status_code == 503 and whole.json()["error"]["code"] == "too_slow"
        server.idle()
        until(lambda: server.metric("dia_buffered_bytes") == 0)
