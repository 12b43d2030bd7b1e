"""Text in pieces over the stream route."""

import json
import time

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from dia_engine import FLUSH
from tests.server.helpers import HANGS, LONG, SENTENCES, TEXT, Server, body, close, leave, raw, times_received, until

CONFIG = {"voice": "default", "sample_rate": 16_000, "seed": 3}


class Stream:
    """A client."""

    def __init__(self, server, **config):
        self.connecting = connect(server.url.replace("http", "ws") + "/v1/audio/speech/stream", open_timeout=HANGS)
        self.config = config or CONFIG

    def __enter__(self):
        self.connection = self.connecting.__enter__()
        self.send("session.config", **self.config)
        assert self.receive()["type"] == "session.configured"
        return self

    def __exit__(self, *error):
        self.connecting.__exit__(*error)

    def send(self, kind, **fields):
        self.connection.send(json.dumps({"type": kind, **fields}))

    def receive(self):
        data = self.connection.recv(HANGS)
        return data if isinstance(data, bytes) else json.loads(data)

    def text(self):
        """The audio of a text, and the messages around it."""
        audio, messages = b"", []
        while not messages or messages[-1]["type"] != "session.done":
            found = self.receive()
            if isinstance(found, bytes):
                audio += found
            else:
                messages.append(found)
        return audio, messages


def test_a_text_in_pieces_and_another_after_it(server, talker):
    with Stream(server) as client:
        assert client.connection.response.headers["x-request-id"]
        for _ in range(2):
            for piece in ("[S", "1] Can you ", "count?"):
                client.send("input.text", text=piece)
            client.send("input.done")
        for index in range(2):
            audio, messages = client.text()
            assert close(audio, talker.generate(TEXT, seed=3))
            start, done, ended = messages
            assert start == {
                "type": "audio.start", "sentence_index": index, "format": "pcm", "sample_rate": 16_000, "seed": 3,
            }  # fmt: skip
            assert done == {"type": "audio.done", "sentence_index": index, "total_bytes": len(audio), "error": False}
            assert ended == {"type": "session.done", "total_sentences": 1}
        client.send("session.close")
        with pytest.raises(ConnectionClosed) as closed:
            client.receive()
        assert closed.value.rcvd.code == 1000


def test_times_of_a_text_count_from_the_text(server, monkeypatch):
    """Not from the handshake, nor from the text before it."""
    times = times_received(server, monkeypatch)
    with Stream(server) as client:
        sent = []
        for _ in range(2):
            sent.append(time.perf_counter())
            client.send("input.text", text=TEXT)
            client.send("input.done")
            client.text()
    assert len(times) == 2 and sent[0] < times[0] < sent[1] < times[1]


def test_it_is_the_engines_stream_of_an_iterator(server, talker):
    """Speaking begins with the first sentence, and at a commit with what is there."""
    with Stream(server) as client:
        client.send("input.text", text=SENTENCES[0])
        assert client.receive()["type"] == "audio.start"
        first = client.receive()
        client.send("input.text", text=SENTENCES[1])
        client.send("input.done")
        rest, _ = client.text()
        client.send("input.text", text="Can you")
        client.send("input.commit")
        assert client.receive()["type"] == "audio.start"
        client.send("input.done")
        client.text()
    expected = list(talker.stream(iter([f"[S1] {SENTENCES[0]}", FLUSH, SENTENCES[1], FLUSH]), seed=3))
    assert close(first + rest, np.concatenate(expected))


def test_the_whole_at_once(server, talker):
    """As SGLang-Omni's clients send their configuration."""
    wanted = {"session": {**CONFIG, "response_format": "wav", "stream_audio": False}}
    with Stream(server, **wanted) as client:
        client.send("input.text", text=TEXT)
        client.send("input.done")
        assert client.receive()["format"] == "wav"
        assert client.receive() == server.speak(TEXT, response_format="wav", stream=False).content
        assert client.receive()["type"] == "audio.done"


@pytest.mark.parametrize(
    "message, param",
    [
        ({"type": "input.text"}, "text"),
        ({"type": "input.text", "text": 3}, "text"),
        ({"type": "nothing"}, "type"),
        ({}, "type"),
        ({"type": "session.config", "voice": "nobody"}, "voice"),
        ({"type": "session.config", "seed": -1}, "seed"),
        ({"type": "session.config", "temperature": -1.0}, "temperature"),
        ({"type": "session.config", "session": 3}, None),
        ({"type": "session.config", "model": "gpt-5"}, "model"),
    ],
)
def test_what_is_wrong_is_told_and_the_connection_goes_on(server, message, param):
    with Stream(server) as client:
        client.connection.send(json.dumps(message))
        told = client.receive()
        assert told["type"] == "error" and told["error"]["param"] == param and told["message"], told
        client.send("input.commit")
        client.send("input.done")
        assert client.receive() == {"type": "session.done", "total_sentences": 0}


@pytest.mark.parametrize(
    "message, words",
    [
        ('{"type": "input.text", "text": "Hello."}', "first message must be session.config"),
        ('{"type": "session.config", "voice": "nobody"}', "no voice"),
        ('{"type": "session.config", "temperature": NaN}', "temperature must be"),
        ('{"type": "session.config", "top_p": 7}', "top_p must be"),
        ("[]", "JSON object"),
        ("{", "JSON object"),
        (b"\0" * 99, "JSON object, sent as text"),
    ],
)
def test_a_connection_that_is_not_configured_ends(server, message, words):
    with connect(server.url.replace("http", "ws") + "/v1/audio/speech/stream") as connection:
        connection.send(message)
        assert words in json.loads(connection.recv(HANGS))["message"]
        with pytest.raises(ConnectionClosed) as closed:
            connection.recv(HANGS)
        assert closed.value.rcvd.code == 1008


def test_what_waits_is_bounded(server):
    with Stream(server) as client:
        for _ in range(3):
            client.send("input.text", text="x" * 9000)
        assert "characters may wait" in client.receive()["message"]
    with Stream(server) as client, pytest.raises(ConnectionClosed):  # while it sends or behind that
        for _ in range(100):
            client.send("input.text", text="x")
            client.send("input.done")
        while True:
            client.receive()
    server.idle()


def test_a_server_without_room_says_so_and_the_next_text_is_spoken(talker, voices):
    with Server(talker, voices=str(voices), max_waiting=0) as server, Stream(server) as client:
        others = [raw(server, body(LONG * 30)) for _ in range(4)]
        until(lambda: server.metric("dia_requests_running") == 4)
        client.send("input.text", text=TEXT)
        client.send("input.done")
        _, (told, ended) = client.text()
        assert told["error"]["code"] == "queue_full" and told["retry_after"] >= 1
        assert ended["total_sentences"] == 0
        for each in others:
            each.close()
        server.idle()
        client.send("input.text", text=TEXT)
        client.send("input.done")
        assert client.text()[1][-1]["total_sentences"] == 1


def test_a_client_that_leaves_frees_its_slot(server):
    with Stream(server) as client:
        client.send("input.text", text=SENTENCES[0] * 4)
        client.receive()
    server.idle()
    until(lambda: not server.app.state.service.sessions)


@pytest.mark.parametrize("stream_audio", [True, False])
def test_a_client_that_leaves_after_its_last_message_frees_its_slot(server, stream_audio):
    aborted = r'dia_requests_total\{outcome="aborted"\}'
    before = server.metric(aborted)
    with Stream(server, **CONFIG, stream_audio=stream_audio) as client:
        client.send("input.text", text=SENTENCES[0] * 60)
        client.send("session.close")
        until(lambda: server.metric("dia_requests_running") == 1)
        leave(client.connection)
    server.idle()
    until(lambda: not server.app.state.service.sessions)
    assert server.metric(aborted) == before + 1


def test_a_client_that_reads_nothing_any_more_is_left(server, monkeypatch):
    monkeypatch.setattr("dia_engine.server.speech.socket.RECEIVE_TIMEOUT", 1.0)
    monkeypatch.setattr("dia_engine.server.speech.socket.CLOSE_TIMEOUT", 0.1)
    with Stream(server, **CONFIG | {"sample_rate": 96_000}) as client:  # whose library reads a few messages ahead
        client.send("input.text", text=SENTENCES[0] * 200)
        client.send("input.done")
        until(lambda: server.app.state.service.sessions)
        until(lambda: not server.app.state.service.sessions)
        leave(client.connection)  # else its library waits ten seconds for a closing handshake
    server.idle()


def test_a_text_that_is_too_long_is_refused_before_it_is_looked_at(server, monkeypatch):
    looked_at = []
    monkeypatch.setattr(
        "dia_engine.server.speech.arriving.whole_sentences", lambda text, most: looked_at.append(len(text)) or 0
    )
    with Stream(server) as client:
        client.send("input.text", text="a " * 15_000)
        assert "characters may wait" in client.receive()["message"]
    assert not looked_at


def test_a_key_is_needed_where_there_are_keys(talker, voices):
    with (
        Server(talker, voices=str(voices), api_key=("secret",)) as server,
        connect(server.url.replace("http", "ws") + "/v1/audio/speech/stream") as connection,
    ):
        assert json.loads(connection.recv(HANGS))["error"]["code"] == "invalid_api_key"
