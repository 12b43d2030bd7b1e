"""OpenAI's speech route: what a client gets is what `generate` makes, and mistakes are told in OpenAI's shape."""

import base64
import json
from dataclasses import replace

import numpy as np
import pytest
import soxr

from dia_engine.files.wav_stream import pcm16
from dia_engine.server.speech.request import Speech
from tests.helpers import wav_fields
from tests.server.helpers import LONG, TEXT, body


@pytest.fixture(scope="module")
def whole(talker):
    """The audio of the text with seed 3."""
    return talker.generate(TEXT, seed=3)


def close(data, expected):
    """Whether bytes are these samples, give or take one step of 16 bits: a stream decodes in windows."""
    found, wanted = np.frombuffer(data, "<i2").astype(int), np.frombuffer(expected, "<i2").astype(int)
    return len(found) == len(wanted) and np.abs(found - wanted).max() <= 1


def test_pcm_and_wav_are_what_generate_makes(server, whole):
    assert close(server.speak().content, pcm16(whole))
    wav = server.speak(response_format="wav").content
    unknown = 2**32 - 1  # sizes, in a stream
    assert wav_fields(wav) == (
        b"RIFF", unknown, b"WAVE", b"fmt ", 16, 1, 1, 16_000, 32_000, 2, 16, b"data", unknown
    )  # fmt: skip
    assert close(wav[44:], pcm16(whole))
    resampled = pcm16(soxr.resample(whole, 16_000, 24_000, quality="HQ"))
    answer = server.speak(sample_rate=None)
    assert close(answer.content, resampled)
    assert answer.headers["content-type"] == "audio/pcm;rate=24000;channels=1"
    headers = ("x-sample-rate", "x-channels", "x-bit-depth", "x-seed", "cache-control", "x-accel-buffering")
    assert [answer.headers[name] for name in headers] == ["24000", "1", "16", "3", "no-cache", "no"]
    assert answer.headers["x-request-id"].startswith("req_")


def test_a_seed_that_was_drawn_makes_the_same_audio_again(server):
    answer = server.speak(seed=None)
    assert server.speak(seed=int(answer.headers["x-seed"])).content == answer.content


def test_the_whole_at_once_has_its_length(server, whole):
    answer = server.speak(response_format="wav", stream=False)
    assert int(answer.headers["content-length"]) == len(answer.content)
    size = len(answer.content)
    assert wav_fields(answer.content) == (
        b"RIFF", size - 8, b"WAVE", b"fmt ", 16, 1, 1, 16_000, 32_000, 2, 16, b"data", size - 44
    )  # fmt: skip
    assert close(answer.content[44:], pcm16(whole))


def test_sampling_parameters_reach_the_engine(server, talker):
    fields = {"temperature": 0.9, "top_p": 0.8, "cfg_scale": 2.0, "cfg_filter_top_k": None, "max_tokens": 40}
    answer = server.client.post("/v1/audio/speech", json=body() | fields)
    assert close(answer.content, pcm16(talker.generate(TEXT, seed=3, **fields)))


@pytest.mark.parametrize("name", ["mp3", "opus", "aac", "flac", "wav", "pcm"])
def test_every_format_streams(server, name):
    with server.stream(LONG, response_format=name, sample_rate=None) as answer:
        sizes = [len(chunk) for chunk in answer.iter_raw()]
    assert len(sizes) > 4 and sum(sizes) > 4 * max(sizes[:2])


def events(answer):
    found = []
    for block in answer.text.strip().split("\n\n"):
        kind, data = block.split("\n")
        content = json.loads(data.removeprefix("data: "))
        assert kind == f"event: {content['type']}"
        found.append(content)
    return found


def test_server_sent_events_carry_the_same_bytes(server):
    answer = server.speak(stream_format="sse")
    *deltas, done = events(answer)
    assert answer.headers["content-type"] == "text/event-stream"
    assert b"".join(base64.b64decode(delta["audio"]) for delta in deltas) == server.speak().content
    usage = done["usage"]
    assert done["type"] == "speech.audio.done" and usage["input_tokens"] == len(TEXT)
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"] and usage["output_tokens"] > 20


def test_a_script_without_a_tag_is_the_first_speakers(server, talker):
    assert close(server.speak("Can you count?").content, pcm16(talker.generate("[S1] Can you count?", seed=3)))


SCRIPT = "[S1] Hello, my little robot. [S2] Can you count? [S1] Five six seven eight nine. [S2] Hello. " * 4


def test_a_long_script_is_planned_and_streams(server):
    """Over what the model reads at once; the first chunk comes while the rest is made."""
    assert len(SCRIPT) > 256
    with server.stream(SCRIPT) as answer:
        sizes = [len(chunk) for chunk in answer.iter_raw()]
    assert sum(sizes) / 32_000 > 12 and sizes[0] / 32_000 < 2
    voiced = server.speak(SCRIPT, voice="alloy")
    assert voiced.status_code == 200 and len(voiced.content) / 32_000 > 12


def test_speed_changes_the_length(server):
    plain, slow = (len(server.speak(speed=speed).content) for speed in (1.0, 0.8))
    assert slow / plain == pytest.approx(1.25, rel=0.03)


def test_a_voice_of_the_request_alone(server, talker, whole):
    wav = server.speak(response_format="wav", stream=False).content
    uri = "data:audio/wav;base64," + base64.b64encode(wav).decode()
    given = samples_of(wav)
    expected = talker.generate("Hello.", seed=3, audio_prompt=(given, 16_000), audio_prompt_text=TEXT)
    answer = server.speak("[S1] Hello.", ref_audio=uri, ref_text=TEXT)
    assert answer.status_code == 200, answer.text
    assert close(answer.content, pcm16(expected))


def samples_of(wav):
    return np.frombuffer(wav[44:], "<i2").astype(np.float32) / 32_768


MISTAKES = [
    ({"input": ""}, "input"),
    ({"input": "  \n"}, "input"),
    ({"input": "[S1] word. " * 2000}, "input"),
    ({"input": 12}, "input"),
    ({"input": None}, "input"),
    ({"input": ["a"]}, "input"),
    ({"input": "\ud800"}, "input"),
    ({"voice": "nobody"}, "voice"),
    ({"voice": "../../etc/passwd"}, "voice"),
    ({"voice": ""}, "voice"),
    ({"voice": {"id": "nobody"}}, "voice"),
    ({"voice": {"name": "alloy"}}, "voice"),
    ({"voice": 3}, "voice"),
    ({"response_format": "ape"}, "response_format"),
    ({"response_format": 1}, "response_format"),
    ({"stream_format": "xml"}, "stream_format"),
    ({"sample_rate": 1}, "sample_rate"),
    ({"sample_rate": 10**30}, "sample_rate"),
    ({"sample_rate": "16000"}, "sample_rate"),
    ({"response_format": "opus", "sample_rate": 44_100}, "sample_rate"),
    ({"speed": 9}, "speed"),
    ({"speed": float("nan")}, "speed"),
    ({"speed": "fast"}, "speed"),
    ({"seed": -1}, "seed"),
    ({"seed": 2**63}, "seed"),
    ({"seed": 1.5}, "seed"),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": -1}, "temperature"),
    ({"temperature": float("nan")}, "temperature"),
    ({"temperature": float("inf")}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": float("nan")}, "top_p"),
    ({"cfg_scale": 1e9}, "cfg_scale"),
    ({"cfg_filter_top_k": 0}, "cfg_filter_top_k"),
    ({"cfg_filter_top_k": 0.5}, "cfg_filter_top_k"),
    ({"max_tokens": 1}, "max_tokens"),
    ({"max_tokens": 10**9}, "max_tokens"),
    ({"max_tokens": 10**40}, "max_tokens"),
    ({"chunk_frames": 0}, "chunk_frames"),
    ({"min_tokens": -1}, "min_tokens"),
    ({"pause": -1}, "pause"),
    ({"chunk_frames": 4, "first_chunk_frames": 5}, "first_chunk_frames"),
    ({"ref_audio": "http://example.com/a.wav", "ref_text": "x"}, "ref_audio"),
    ({"ref_audio": "/etc/passwd", "ref_text": "x"}, "ref_audio"),
    ({"ref_audio": "data:audio/wav;base64,???", "ref_text": "x"}, "ref_audio"),
    ({"ref_audio": "data:audio/wav;base64,AAAA", "ref_text": "x"}, None),
    ({"stream": "yes"}, "stream"),
]


@pytest.mark.parametrize("fields, param", MISTAKES)
def test_a_mistake_is_a_400_that_names_the_field(server, fields, param):
    content = json.dumps(body() | fields)  # with NaN, which JSON has not and Python writes
    answer = server.client.post("/v1/audio/speech", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"
    assert len(error["message"]) < 500 and "\n" not in error["message"]
    assert param is None or error["param"] == param, error
    assert answer.headers["x-request-id"]


MALFORMED = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'"text"',
    b"[" * 100_000,
    b'{"input": ' + b"9" * 5000 + b"}",
    b'{"input": "\xff\xfe"}',
    b"\0" * 100,
    b'{"input": "x", "voice": {"id": {"id": {}}}}',
    b"input=hello",
]


@pytest.mark.parametrize("content", MALFORMED)
def test_a_malformed_body_is_a_400(server, content):
    for kind in ("application/json", "text/plain", ""):
        answer = server.client.post("/v1/audio/speech", content=content, headers={"Content-Type": kind})
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "content", [b"{", b"[" * 100_000, b'{"a":' * 50_000, b'{"a": "\xff"}', b'{"a": ' + b"9" * 5000 + b"}"]
)
def test_a_body_that_is_no_json_has_a_code(server, content):
    answer = server.client.post("/v1/audio/speech", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "invalid_json"


def test_unknown_models_routes_and_methods(server):
    assert server.speak(model="no-such-model").status_code == 404
    assert server.speak(model="no-such-model").json()["error"]["param"] == "model"
    for name in ("tts-1", "tts-1-hd", "gpt-4o-mini-tts", "talker"):
        assert server.client.get(f"/v1/models/{name}").json()["id"] == name
    assert server.client.get("/v1/models/other").status_code == 404
    listed = server.client.get("/v1/models").json()
    assert listed["object"] == "list" and listed["data"][0]["id"] == "talker"
    assert server.client.get("/v1/audio/models").json()["models"][0] == {"id": "talker"}
    for path in ("/v1/no-such-route", "/v1/test", "/v1/readyz", "/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd"):
        answer = server.client.get(path)
        assert answer.status_code == 404 and answer.json()["error"]["type"] == "not_found_error"
    assert server.client.put("/v1/audio/speech").status_code == 405


def test_a_request_keeps_its_id(server):
    for given in ("my-id.1", "bad id", "x" * 500):
        answer = server.client.get("/v1/models", headers={"X-Request-ID": given})
        assert (answer.headers["x-request-id"] == given) is (given == "my-id.1")


def test_documents_describe_the_routes(server):
    paths = server.client.get("/openapi.json").json()["paths"]
    assert {"/v1/audio/speech", "/v1/text-to-dialogue", "/health", "/metrics"} <= set(paths)
    assert server.client.get("/docs").status_code == 200


def test_what_the_model_says_nothing_for_is_tried_with_other_seeds(server, monkeypatch):
    """Unless the request has one: then another try would end as this one."""
    seeds, another = [], Speech.with_another_seed

    def sounding(speech):
        seeds.append(speech.seed)
        return replace(another(speech), text="[S1] Hello.")

    monkeypatch.setattr(Speech, "with_another_seed", sounding)
    answer = server.speak("@", voice="alloy", seed=1)
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "no_audio" and not seeds
    answer = server.speak("@", voice="alloy", seed=None)
    assert answer.status_code == 200 and len(seeds) == 1 and answer.headers["x-seed"] != str(seeds[0])
    monkeypatch.setattr(Speech, "with_another_seed", another)
    answer = server.speak("@", voice="alloy", seed=None)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "input"
