"""Hundreds of malformed requests to all routes: each is told what is wrong with it, and the server goes on."""

import gzip
import http.client
import json
import random
import re
import socket
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from tests.server.helpers import HANGS, Server, body

SPEECH, DIALOGUE, TEXT = "/v1/audio/speech", "/v1/text-to-dialogue", "/v1/text-to-speech/default"
BATCH, STREAM = f"{SPEECH}/batch", f"{SPEECH}/stream"
VOICES = "/v1/audio/voices"
TURN = {"text": "Hello.", "voice_id": "default"}
GOOD = {
    SPEECH: body("[S1] Hello.", max_tokens=40),
    DIALOGUE: {"inputs": [TURN]},
    f"{DIALOGUE}/stream": {"inputs": [TURN]},
    BATCH: {"items": [{"input": "Hello."}], "voice": "default"},
    TEXT: {"text": "Hello."},
    f"{TEXT}/stream": {"text": "Hello."},
}
# By the kind of a field: values that are none, as JSON. NaN is what Python writes and JSON has not.
NO_STRINGS = ("3", "1.5", "true", "[]", "{}", '["a"]', "null")
NO_NUMBERS = ('"3"', "[]", "{}", "[3]", '""', "NaN", "Infinity", "-1e999", "9" * 5000, "-1" + "0" * 400)
NO_INTEGERS = (*NO_NUMBERS, "0.5", "-7", "1e30")
NO_NAMES = (*NO_STRINGS[:-1], '"nobody"', '"../../etc/passwd"', '"\\ud800"', '"a\\u0000b"', '"' + "x" * 5000 + '"')
WRONG = {
    SPEECH: {
        "input": (*NO_STRINGS, '""', '" \\n"', '"' + "x" * 4097 + '"'),
        "model": NO_NAMES,
        "voice": (*NO_NAMES, "null", '{"id": 3}', '{"id": "nobody"}', '{"name": "alloy"}'),
        "response_format": (*NO_NAMES, '"mp4"', '"MP3"', "null"),
        "stream_format": (*NO_NAMES, '"json"', "null"),
        "stream": ('"yes"', "1", "[]", "{}", "0.0"),
        "speed": (*NO_NUMBERS, "0", "4.1", "-1", "null", "true"),
        "sample_rate": (*NO_INTEGERS, "0", "1", "7999", "10000000"),
        "seed": (*NO_INTEGERS, "true", "9223372036854775808"),
        "temperature": (*NO_NUMBERS, "-0.1", "true"),
        "top_p": (*NO_NUMBERS, "0", "1.1"),
        "cfg_scale": (*NO_NUMBERS, "1e9"),
        "cfg_filter_top_k": (*NO_INTEGERS, "0"),
        "max_tokens": (*NO_INTEGERS, "0", "1", "1000000"),
        "min_tokens": NO_INTEGERS,
        "pause": (*NO_NUMBERS, "-0.1", "61"),
        "chunk_frames": (*NO_INTEGERS, "0"),
        "first_chunk_frames": (*NO_INTEGERS, "0"),
        "ref_audio": (*NO_NAMES[:-1], '"data:audio/wav;base64,"', '"data:audio/wav;base64,AAAA"', '"data:,x"'),
    },
    DIALOGUE: {
        "inputs": (
            *NO_STRINGS, '"Hello."', '{"text": "x"}', '[{"text": "x"}]', '[{"voice_id": "s1"}]',
            '[{"text": 3, "voice_id": "s1"}]', '[{"text": "x", "voice_id": []}]', '[{"text": "", "voice_id": "s1"}]',
            '[{"text": "x", "voice_id": "../x"}]', "[null]", "[[]]",
            '[{"text": "' + "x" * 5001 + '", "voice_id": "s1"}]',
        ),
        "seed": NO_INTEGERS,
    },
    BATCH: {
        "items": (
            *NO_STRINGS, '"x"', '{"input": "x"}', '["x"]', "[null]", "[[]]", "[3]",
            "[" + '{"input": "x"},' * 40 + "{}]",
        ),
        "voice": NO_STRINGS[:-1],
        "seed": ('"3"', "[]", "0.5", "true", "NaN"),
        "response_format": NO_STRINGS,
    },
    TEXT: {"text": (*NO_STRINGS, '""', '" "', '"' + "x" * 5001 + '"'), "seed": NO_INTEGERS},
}  # fmt: skip
NO_JSON = (
    b"", b"{", b"[]", b"null", b"3", b'"text"', b"[" * 100_000, b'{"a":' * 50_000, b"{'input': 'x'}", b"\xff\xfe\0\0",
    b"\0" * 64, b"input=hello&voice=alloy", b'{"input": "\xc3\x28"}', b'{"input": "x"} trailing', b"<xml/>",
)  # fmt: skip
PATHS = ("..", "../..", "%2e%2e%2f%2e%2e%2fetc", "nobody", "a%00b", "%ff%fe", "x" * 3000, "%2fetc%2fpasswd", "~", "a;b")
FORMATS = ("mp3", "pcm_1", "", "../x", "mp3_44100_128_x", "x" * 3000, "%00", "pcm_24000 ", "MP3_44100_128")


@dataclass(frozen=True)
class Case:
    """A request over HTTP that is wrong; `statuses` it may get."""

    method: str
    path: str
    content: bytes = b""
    headers: dict[str, str] = field(default_factory=lambda: {"Content-Type": "application/json"})
    statuses: tuple[int, ...] = (400,)


def wrong_values() -> Iterator[Case]:
    """Every field with values that cannot be."""
    for path, wrong in WRONG.items():
        for name, values in wrong.items():
            for value in values:
                rest = json.dumps({key: each for key, each in GOOD[path].items() if key != name})
                content = f'{rest[:-1]}{", " if rest != "{}" else ""}"{name}": {value}}}'
                statuses = (400, 404) if name == "model" else (400,)
                yield Case("POST", path, content.encode(), statuses=statuses)


def wrong_bodies() -> Iterator[Case]:
    for path, good in GOOD.items():
        for content in NO_JSON:
            yield Case("POST", path, content)
        for kind in ("text/plain", "application/xml", "multipart/form-data; boundary=x", "application/json; charset=é"):
            yield Case(
                "POST",
                path,
                b"\x80" + json.dumps(good).encode(),
                {"Content-Type": kind},
            )
        yield Case("POST", path, b" " * 1_100_000 if path not in (SPEECH, BATCH) else b" " * 2_100_000, statuses=(413,))


def wrong_uploads() -> Iterator[Case]:
    """Forms that lack something, hold something else, or are none."""

    def form(parts: dict[str, bytes], boundary: str = "x", close: bytes = b"--x--\r\n") -> bytes:
        head = b'--x\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
        found = (
            head % (name.encode(), b'; filename="../../a.wav"' if name == "audio_sample" else b"", value)
            for name, value in parts.items()
        )
        return b"".join(found) + close

    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    good = {"name": b"me", "ref_text": b"[S1] Hello.", "consent": b"yes", "audio_sample": b""}
    broken = (
        b"", b"RIFF", b"RIFF\xff\xff\xff\xffWAVEfmt ", b"RIFF$\0\0\0WAVE" + b"\0" * 99, b"ID3\4\0\0\0\0\0\0",
        b"fLaC" + b"\0" * 64, b"OggS" + b"\0" * 200, b"#EXTM3U\nfile:///etc/passwd\n", b"\0" * 5000, b"<svg/>", wav(0),
        wav(10), wav(8000, rate=0), wav(8000, channels=0), wav(8000), wav(100_000, bits=7), wav(8000, size=2**31),
    )  # fmt: skip
    for audio in broken:
        yield Case("POST", VOICES, form({**good, "audio_sample": audio}), headers)
    for name in good:
        yield Case("POST", VOICES, form({key: value for key, value in good.items() if key != name}), headers)
    for name in ("name", "ref_text", "consent"):
        yield Case("POST", VOICES, form({**good, name: b" "}), headers)
        yield Case("POST", VOICES, form({**good, name: b"\xff\xfe"}), headers)
    yield Case("POST", VOICES, form(good, close=b""), headers)
    yield Case("POST", VOICES, b"--x\r\nContent-Disposition: form-data\r\n\r\n\r\n--x--\r\n", headers)
    yield Case("POST", VOICES, b"garbage", headers)
    yield Case("POST", VOICES, b"--x\r\n" * 5000, headers)
    yield Case("POST", VOICES, form(good), {"Content-Type": "multipart/form-data"})
    yield Case("POST", VOICES, form(good), {"Content-Type": "multipart/form-data; boundary=" + "y" * 500})
    yield Case("POST", VOICES, b"name=me&consent=yes", {"Content-Type": "application/x-www-form-urlencoded"})
    yield Case("POST", VOICES, b'{"name": "me"}')
    yield Case("POST", VOICES, form({**good, "audio_sample": b"\0" * 2_200_000}), headers, (413,))


def wav(samples: int, rate: int = 16_000, channels: int = 1, bits: int = 16, size: int | None = None) -> bytes:
    """A WAV file of silence, whose header may be wrong."""
    align = max(1, channels * bits // 8)
    head = struct.pack(
        "<4sI4s4sIHHIIHH", b"RIFF", 36, b"WAVE", b"fmt ", 16, 1, channels, rate, rate * align, align, bits
    )
    return head + struct.pack("<4sI", b"data", 2 * samples if size is None else size) + b"\0" * (2 * samples)


def wrong_addresses() -> Iterator[Case]:
    """Names and formats that are none, routes and methods that are not there."""
    for path in PATHS:
        yield Case("DELETE", f"{VOICES}/{path}", statuses=(400, 404, 405))
        yield Case("DELETE", f"/v1/voices/{path}", statuses=(400, 404, 405))
        yield Case("GET", f"/v1/models/{path}", statuses=(404,))
        yield Case("POST", f"/v1/text-to-speech/{path}", b'{"text": "Hello."}', statuses=(400, 404))
        yield Case("POST", f"/v1/text-to-speech/{path}/stream", b'{"text": "Hello."}', statuses=(400, 404))
        yield Case("GET", f"/{path}", statuses=(404,))
    for query in FORMATS:
        for path in (DIALOGUE, TEXT):
            yield Case("POST", f"{path}?output_format={query.replace(' ', '%20')}", json.dumps(GOOD[path]).encode())
    for path in (*GOOD, "/health", "/metrics", "/v1/models", "/v1/audio/models", "/v1/voices", "/", "/openapi.json"):
        yield Case("PATCH", path, statuses=(405,))
    for path in (*GOOD, "/v1/audio/voices/alloy"):
        yield Case("GET", path, statuses=(404, 405))


def all_cases() -> list[Case]:
    cases = [*wrong_values(), *wrong_bodies(), *wrong_uploads(), *wrong_addresses()]
    random.Random(16).shuffle(cases)
    return cases


@pytest.fixture(scope="module")
def strict(talker, voices):
    """A server that waits only a second for what does not come."""
    limits = {"header_timeout": 1.0, "body_timeout": 1.0, "idle_timeout": 1.0, "max_upload_mb": 2.0}
    with Server(talker, voices=str(voices), **limits) as server:
        yield server


def send(server: Server, case: Case) -> str:
    """Make a request -> what is wrong with the response; "" if nothing is."""
    connection = http.client.HTTPConnection(*server.socket.getsockname(), timeout=HANGS)
    try:
        connection.putrequest(case.method, case.path)
        for name, value in {**case.headers, "Content-Length": str(len(case.content))}.items():
            connection.putheader(name, value)
        with suppress(BrokenPipeError, ConnectionResetError):  # it has answered without reading all
            connection.endheaders(case.content)
        answer = connection.getresponse()
        return complaint(answer.status, dict(answer.getheaders()), answer.read(), case.statuses)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        connection.close()


def complaint(status: int, headers: dict[str, Any], content: bytes, statuses: tuple[int, ...]) -> str:
    if status not in statuses:
        return f"status {status}: {content[:200]!r}"
    if "x-request-id" not in {name.lower() for name in headers}:
        return "no request id"
    try:
        error = json.loads(content)["error"]
    except (ValueError, KeyError, TypeError):
        return f"no error of OpenAI's: {content[:200]!r}"
    if set(error) != {"message", "type", "param", "code"} or not 0 < len(error["message"]) < 600:
        return f"no error of OpenAI's: {error}"
    return f"tells too much: {error}" if re.search(r"Traceback|/engine/|/tmp/|site-packages", error["message"]) else ""


def test_malformed_requests_are_told_what_is_wrong_and_the_server_goes_on(strict):
    before = strict.speak().content
    half_open = [socket.create_connection(strict.socket.getsockname()) for _ in range(20)]
    for index, each in enumerate(half_open):  # they say no more, and stay
        each.sendall((b"", b"POST /v1/audio/speech HTTP/1.1\r\nHost: x\r\nContent-Len", b"GET")[index % 3])
    cases = all_cases()
    assert len(cases) > 300
    with ThreadPoolExecutor(8) as clients:
        complaints = list(clients.map(lambda case: send(strict, case), cases))
    wrong = [
        f"{case.method} {case.path[:80]} {case.content[-120:]!r} {case.headers}: {words}"
        for case, words in zip(cases, complaints, strict=True) if words
    ]  # fmt: skip
    assert not wrong, f"{len(wrong)} of {len(cases)}:\n" + "\n".join(wrong[:30])
    for each in half_open:
        each.close()
    strict.idle()
    assert strict.status() == 200 and strict.speak().content == before


def test_every_route_gets_malformed_requests(strict):
    """A new route is added to the cases above."""
    asked = {
        re.sub(r"/(default|voices|text-to-speech|models)/[^/]+", r"/\1/*", case.path.split("?")[0])
        for case in all_cases()
    }
    asked |= {re.sub(r"/text-to-speech/[^/]+", "/text-to-speech/*", path) for path in asked}
    routes = {re.sub(r"\{[^}]*\}", "*", path) for path in strict.client.get("/openapi.json").json()["paths"]}
    assert routes <= asked, routes - asked


RAW = [
    b"\r\n\r\n\r\n",
    b"\0" * 500,
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x11" * 64,  # TLS
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
    b"GET / HTTP/1.1\r\n: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nA: \0\r\n\r\n",
    b"POST /v1/audio/speech HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
    b"POST /v1/audio/speech HTTP/1.1\r\nHost: x\r\nContent-Length: abc\r\n\r\n",
    b"POST /v1/audio/speech HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n\r\n",
    b"POST /v1/audio/speech HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    b"POST /v1/audio/speech HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"POST /v1/audio/speech HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n\r\n",
    b"POST /v1/audio/speech HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nx",
    b"POST /v1/audio/speech HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n1\r\nx\r\n",
    b"POST /v1/audio/speech HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{",  # the rest never comes
    b"POST /v1/audio/voices HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\nExpect: 100-continue\r\n\r\n",
    b"GET /v1/text-to-dialogue/multi-stream-input HTTP/1.1\r\nHost: x\r\n"
    b"Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    b"GET /v1/text-to-dialogue/multi-stream-input HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET " + b"/x" * 40_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 20_000 + b"\r\n",
    *(random.Random(seed).randbytes(200) for seed in range(8)),
]


def exchange(server: Server, data: bytes) -> bytes:
    """What comes back for some bytes, until the server closes or says no more."""
    with socket.create_connection(server.socket.getsockname(), timeout=HANGS) as connection:
        found = b""
        try:
            connection.sendall(data)
            while part := connection.recv(65536):
                found += part
        except (BrokenPipeError, ConnectionResetError):
            pass
        return found


def test_bytes_that_are_no_request_end_their_connection(strict):
    """Within the limits of time that were set, or the test hangs; without one of status 5xx."""
    with ThreadPoolExecutor(len(RAW)) as clients:
        answers = list(clients.map(lambda data: exchange(strict, data), RAW))
    for data, answer in zip(RAW, answers, strict=True):
        assert not answer or re.match(rb"HTTP/1\.[01] (4|100 )", answer), (data[:80], answer[:200])
    strict.idle()
    assert strict.status() == 200 and strict.speak().status_code == 200


MESSAGES = [
    "", "{", "[]", "3", "null", '"text"', "[" * 50_000, '{"a":' * 50_000, "{'text': 'x'}", b"\xff\xfe", b"{}",
    '{"inputs": 3}', '{"inputs": {}}', '{"inputs": ""}', '{"inputs": [3]}', '{"inputs": [null]}',
    '{"inputs": [{"text": 3}]}', '{"inputs": [{"text": [1]}]}', '{"inputs": [{"text": "x", "voice_id": {}}]}',
    '{"inputs": [{"text": "x", "voice_id": "nobody"}], "flush": true}',
    '{"inputs": [{"text": "x", "voice_id": "../../etc"}], "flush": true}', '{"voices": "alloy"}', '{"voices": [3]}',
    '{"voices": {}}', '{"context_id": 3}', '{"context_id": []}', '{"context_id": {"a": 1}}',
    json.dumps({"context_id": "x" * 500}), json.dumps({"inputs": [{"text": "x" * 30_000}]}), "x" * 1_100_000,
]  # fmt: skip
SPOKEN = ['{"text": 3}', '{"text": []}', '{"text": {}, "flush": true}', '{"text": false}', '{"contextId": false}', "{"]
STREAMED = [
    f'{{"type": "session.config", {fields}}}'
    for fields in (
        '"voice": 3', '"voice": "../x"', '"voice": "\\ud800"', '"seed": -1', '"seed": "x"', '"session": []',
        '"speed": 9', '"speed": NaN', '"model": "nothing"', '"response_format": "ape"',
        '"stream_audio": 3', '"ref_audio": "x"',
    )
]  # fmt: skip
QUERIES = ("output_format=mp3", "output_format=", "seed=-1", "seed=x", "seed=%C2%B2", "seed=9" + "9" * 40)
MULTI = "multi-stream-input"


def converse(server: Server, path: str, message: str | bytes | None) -> dict[str, Any]:
    """What a WebSocket answers to a message, before it closes; {} if it says nothing."""
    with connect(server.url.replace("http", "ws") + path, open_timeout=HANGS) as client:
        try:
            if message is not None:
                client.send(message)
            return json.loads(client.recv(HANGS))
        except ConnectionClosed:
            return {}


def test_malformed_messages_of_sockets(strict):
    dialogue, spoken = f"/v1/text-to-dialogue/{MULTI}", f"/v1/text-to-speech/default/{MULTI}"
    cases: list[tuple[str, str | bytes | None]] = [(dialogue, message) for message in MESSAGES]
    cases += [(spoken, message) for message in SPOKEN]
    cases += [(f"{path}?{query}", None) for path in (dialogue, spoken) for query in QUERIES]
    cases += [(STREAM, message) for message in (*MESSAGES, *STREAMED)]
    cases += [
        (f"/v1/text-to-speech/{name}/{MULTI}", '{"text": "Hello.", "flush": true}') for name in ("nobody", "%2e%2e")
    ]
    random.Random(16).shuffle(cases)
    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(lambda case: converse(strict, *case), cases))
    for (path, message), answer in zip(cases, answers, strict=True):
        silent = len(message or "") > 2**20  # the protocol's own close says why
        told = answer.get("code", answer.get("type"))  # of ElevenLabs' sockets, of the other one
        assert (told in (400, "error") and answer["message"]) or (silent and not answer), (path, message, answer)
    with pytest.raises(InvalidStatus):
        connect(strict.url.replace("http", "ws") + "/v1/nothing", open_timeout=HANGS)
    strict.idle()
    assert strict.status() == 200 and strict.speak().status_code == 200
    assert not [each for each in threading.enumerate() if each.name == "dia-engine script"]


def test_odd_but_usual_requests(strict):
    for path in ("/", "/health", "/metrics", "/v1/models", "/v1/audio/voices", "/player.js"):
        head, found = strict.client.head(path), strict.client.get(path)
        assert head.status_code == 200 and not head.content, path
        assert head.headers["content-type"] == found.headers["content-type"]
    assert strict.client.head("/v1/audio/speech").status_code == 405
    for path in ("/v1/audio/speech/", "/health/"):  # a redirection would name the address behind a proxy
        assert strict.client.get(path, follow_redirects=False).status_code == 404
    packed = strict.client.post(SPEECH, content=gzip.compress(b"{}"), headers={"Content-Encoding": "gzip"})
    assert packed.status_code == 415 and "gzip" in packed.json()["error"]["message"]
    unseen = strict.speak("\u202e\u200b")
    assert unseen.status_code == 400 and unseen.json()["error"]["param"] == "input"


def test_a_client_that_leaves_in_its_body_is_no_bug(strict, caplog):
    for path in (SPEECH, VOICES):
        with socket.create_connection(strict.socket.getsockname()) as connection:
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{{"
            connection.sendall(head.encode())
    with socket.create_connection(strict.socket.getsockname()) as connection:
        connection.sendall(b"POST /v1/audio/speech HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n")
        with pytest.raises(OSError):
            for _ in range(1000):  # fields behind the body, without an end
                connection.sendall(b"a: b\r\n" * 10_000)
    assert strict.speak().status_code == 200
    assert not [line for line in caplog.records if line.exc_info]


def test_a_flood_of_pings_by_a_client_that_does_not_read_ends(strict):
    pings = struct.pack(">BB4x", 0x80 | 9, 0x80 | 125) + b"p" * 125
    with socket.create_connection(strict.socket.getsockname(), timeout=HANGS) as connection:
        connection.sendall(
            b"GET /v1/audio/speech/stream HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        assert b" 101 " in connection.recv(100)
        with pytest.raises(OSError):
            for _ in range(1000):
                connection.sendall(pings * 1000)
    assert strict.status() == 200
