"""ElevenLabs' interface: dialogues over HTTP and WebSockets."""

import base64
import contextlib
import json
import time

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from dia_engine import FLUSH
from dia_engine.server.speech.dialogue import DialogueWriter, script
from dia_engine.server.speech.socket import IdleTimer
from dia_engine.server.voices.voice import Prompt, continued, tagged, together
from tests.server.helpers import HANGS, SENTENCES, close, leave, times_received, until

TURNS = [("Can you count?", "s1"), ("Five six seven.", "s2")]
DIALOGUE = {"inputs": [{"text": text, "voice_id": voice} for text, voice in TURNS], "seed": 3}
SPOKEN = "[S1] Can you count? [S2] Five six seven."


@pytest.mark.parametrize("path", ["/v1/text-to-dialogue", "/v1/text-to-dialogue/stream"])
def test_a_dialogue_is_a_script(server, talker, path):
    answer = server.client.post(path, params={"output_format": "pcm_16000"}, json=DIALOGUE)
    assert answer.status_code == 200, answer.text
    assert close(answer.content, talker.generate(SPOKEN, seed=3))


def test_a_text_in_one_voice(server, talker):
    content = {"text": "Can you count?", "seed": 3, "voice_settings": {"stability": 1}}
    answer = server.client.post("/v1/text-to-speech/default", params={"output_format": "pcm_16000"}, json=content)
    assert close(answer.content, talker.generate("[S1] Can you count?", seed=3))
    for name, kind in (("mp3_44100_128", "audio/mpeg"), ("ulaw_8000", "audio/basic"), ("opus_48000_64", "audio/ogg")):
        answer = server.client.post(
            "/v1/text-to-speech/default/stream", params={"output_format": name}, json={"text": "Hello."}
        )
        assert answer.headers["content-type"] == kind and len(answer.content) > 1000


@pytest.mark.parametrize(
    "content, query, message",
    [
        ({"inputs": []}, {}, "inputs"),
        ({"inputs": [{"text": "x"}]}, {}, "voice_id"),
        ({"inputs": [{"text": " ", "voice_id": "s1"}]}, {}, "characters"),
        ({"inputs": [{"text": "x", "voice_id": each} for each in ("s1", "s2", "default")]}, {}, "at most two voices"),
        ({"inputs": [{"text": "x", "voice_id": "nobody"}]}, {}, "no voice 'nobody'"),
        (DIALOGUE, {"output_format": "mp3"}, "output_format must be one of"),
        (DIALOGUE | {"seed": -1}, {}, "seed must be in"),
    ],
)
def test_mistakes(server, content, query, message):
    answer = server.client.post("/v1/text-to-dialogue", params=query, json=content)
    assert answer.status_code == 400 and message in answer.json()["error"]["message"], answer.text


def test_scripts_of_turns():
    assert script([("Hello.", "a"), ("[laughs] Hi!", "b")]) == "[S1] Hello. [S2] (laughs) Hi!"
    assert script([("A.", "a"), ("B.", "a"), ("C.", "b"), ("D.", "a")]) == "[S1] A. B. [S2] C. [S1] D."
    assert script([("[S1] A. [S2] B.", "a")]) == "[S1] A. [S2] B."
    assert script([("[whispers] A. [laughs", "a"), (" ", "b")]) == "[S1] [whispers] A. [laughs"
    assert tagged(" A.") == "[S1] A." and tagged("A. [S2] B.") == "A. [S2] B."


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_a_script_is_the_same_in_whatever_pieces_it_comes(size):
    turns = [(" [S2] Hello. [laughs]  Hi, [you] ", "a"), ("[Sighs] No.[", "b"), ("So ", "a"), ("it is.", "a")]
    writer, parts = DialogueWriter(), []
    for text, voice in turns:
        parts += [writer.add(text[start : start + size], voice) for start in range(0, len(text), size)]
    written = "".join([*parts, writer.finish()])
    assert written == "[S2] Hello. (laughs)  Hi, [you] [S2] (sighs) No.[ [S1] So it is."
    assert writer.voices == ["a", "b"]


def test_a_speaker_who_goes_on_has_no_second_tag():
    assert continued("[S1] Said.", "[S1] Goes on. [S2] Other.") == "Goes on. [S2] Other."
    assert continued("[S1] Said.", "[S2] Other.") == "[S2] Other."
    assert continued("Said.", "[S1] Goes on.") == "[S1] Goes on."
    assert continued("[S1] Said.", "[S1] ") == "[S1] "


def test_two_voices_are_one_prompt(server):
    import torch

    first, second = Prompt(torch.ones(3, 4), "[S1] One."), Prompt(torch.zeros(2, 4), "[S1] Two.")
    both = together(first, second)
    assert both.transcript == "[S1] One. [S2] Two."
    assert torch.equal(both.codes[:3], first.codes) and torch.equal(both.codes[3:], second.codes)
    turns = [{"text": "Can you count?", "voice_id": "alloy"}, {"text": "Five.", "voice_id": "nova"}]
    answer = server.client.post("/v1/text-to-dialogue", json={"inputs": turns})
    assert answer.status_code == 200, answer.text
    mixed = {"inputs": [{"text": "A.", "voice_id": "alloy"}, {"text": "B.", "voice_id": "s2"}]}
    assert "without a prompt" in server.client.post("/v1/text-to-dialogue", json=mixed).text


class Socket:
    """A client of a socket for dialogues."""

    def __init__(self, server, path="/v1/text-to-dialogue/multi-stream-input", query="output_format=pcm_16000&seed=3"):
        self.connecting = connect(server.url.replace("http", "ws") + f"{path}?{query}", open_timeout=HANGS)

    def __enter__(self):
        self.connection = self.connecting.__enter__()
        return self

    def __exit__(self, *error):
        self.connecting.__exit__(*error)

    def send(self, **message):
        self.connection.send(json.dumps(message))

    def receive(self):
        return json.loads(self.connection.recv(HANGS))

    def until_final(self, name="is_final"):
        """Audio by context, and the messages without any."""
        audio, others = {}, []
        while not others or not others[-1].get(name):
            message = self.receive()
            if message.get("audio"):
                identity = message.get("context_id") or message["contextId"]
                audio[identity] = audio.get(identity, b"") + base64.b64decode(message["audio"])
            else:
                others.append(message)
        return audio, others


def test_a_dialogue_over_a_socket(server, talker):
    with Socket(server) as client:
        client.send(context_id="c", voices=["s1", "s2"])
        client.send(context_id="c", inputs=[{"text": "Can you ", "voice_id": "s1"}])
        client.send(context_id="c", inputs=[{"text": "count?", "voice_id": "s1"}])
        client.send(
            context_id="c", inputs=[{"text": "Five six seven.", "voice_id": "s2", "new_turn": True}], flush=True
        )
        client.send(context_id="c", keep_alive=True)
        client.send(context_id="c", close_context=True)
        audio, others = client.until_final()
    assert close(audio["c"], talker.generate(SPOKEN, seed=3))
    assert others == [{"is_final_audio_for_turn": True, "context_id": "c"}, {"is_final": True, "context_id": "c"}]


def test_contexts_run_side_by_side_and_one_text_follows_another(server, talker):
    with Socket(server) as client:
        for name in ("a", "b"):
            client.send(context_id=name, voices=["default"])
            client.send(context_id=name, inputs=[{"text": "Hello.", "voice_id": "default"}], flush=True)
            client.send(context_id=name, inputs=[{"text": "Can you count?", "voice_id": "default"}])
        client.send(close_socket=True)
        audio, finals = {}, 0
        while finals < 2:
            found, _ = client.until_final()
            finals += 1
            for name, data in found.items():
                audio[name] = audio.get(name, b"") + data
        expected = [talker.generate(f"[S1] {text}", seed=3) for text in ("Hello.", "Can you count?")]
        for name in ("a", "b"):
            assert close(audio[name], np.concatenate(expected))
        with pytest.raises(ConnectionClosed):
            client.receive()


@pytest.mark.parametrize("path", ["/v1/text-to-dialogue", "/v1/text-to-speech/default"])
def test_the_audio_of_a_context_is_one_wav(server, path):
    with Socket(server, f"{path}/multi-stream-input", "output_format=wav_16000&seed=3") as client:
        for _ in range(2):
            text = {"inputs": [{"text": "Hello.", "voice_id": "default"}]} if "dialogue" in path else {"text": "Hello."}
            client.send(context_id="c", flush=True, **text)
        client.send(context_id="c", close_context=True)
        audio, _ = client.until_final("is_final" if "dialogue" in path else "isFinal")
    assert audio["c"].startswith(b"RIFF") and audio["c"].count(b"RIFF") == 1
    half = (len(audio["c"]) - 44) // 2
    assert audio["c"][44 : 44 + half] == audio["c"][44 + half :]


def test_a_client_that_leaves_after_its_last_message_frees_its_slots(server):
    aborted = r'dia_requests_total\{outcome="aborted"\}'
    before = server.metric(aborted)
    with Socket(server) as client:
        for name in ("a", "b"):
            client.send(context_id=name, voices=["default"])
            client.send(context_id=name, inputs=[{"text": SENTENCES[0] * 60, "voice_id": "default"}], flush=True)
        client.send(close_socket=True)
        until(lambda: server.metric("dia_requests_running") == 2)
        leave(client.connection)
    until(lambda: not server.app.state.service.sessions)
    assert server.metric(aborted) == before + 2


def test_a_text_over_a_socket_in_the_older_shape(server, talker):
    with Socket(server, "/v1/text-to-speech/default/multi-stream-input") as client:
        client.send(text=" ", voice_settings={}, context_id="c")
        client.send(text="Can you count?", context_id="c", flush=True)
        client.send(context_id="c", close_context=True)
        audio, others = client.until_final("isFinal")
    assert close(audio["c"], talker.generate("[S1] Can you count?", seed=3))
    assert others[-1] == {"isFinal": True, "contextId": "c"}


@pytest.mark.parametrize(
    "message, words",
    [
        ("{", "JSON object"),
        ("[]", "JSON object"),
        ('{"inputs": [{"text": 1}]}', "must be strings"),
        ('{"inputs": "x"}', "list of objects"),
        ('{"voices": "x"}', "list of voice ids"),
        ('{"context_id": 5, "inputs": []}', "context_id"),
        (json.dumps({"inputs": [{"text": "x" * 30_000}]}), "characters may wait"),
        ("[" * 100_000, "JSON object"),
    ],
)
def test_a_malformed_message_is_told_and_ends_the_connection(server, message, words):
    with Socket(server) as client:
        client.connection.send(message)
        error = client.receive()
        assert error["code"] == 400 and words in error["message"]
        with pytest.raises(ConnectionClosed):
            client.receive()


def test_an_unknown_voice_ends_its_context_alone(server):
    with Socket(server) as client:
        client.send(context_id="bad", inputs=[{"text": "Hello.", "voice_id": "nobody"}], flush=True)
        error = client.receive()
        assert error["context_id"] == "bad" and "no voice" in error["message"]
        client.send(context_id="good", inputs=[{"text": "Hello.", "voice_id": "default"}])
        client.send(context_id="good", close_context=True)
        audio, _ = client.until_final()
        assert audio["good"]


def test_times_of_a_text_count_from_the_text(server, monkeypatch):
    times = times_received(server, monkeypatch)
    with Socket(server, "/v1/text-to-speech/default/multi-stream-input") as client:
        sent = time.perf_counter()
        client.send(text="Can you count?", context_id="c")
        client.send(context_id="c", close_context=True)
        client.until_final("isFinal")
    assert len(times) == 1 and times[0] > sent


def test_a_socket_that_closes_frees_its_slots(server):
    with Socket(server) as client:
        client.send(context_id="c", inputs=[{"text": "Can you count? " * 8, "voice_id": "default"}], flush=True)
        client.receive()
    server.idle()
    with Socket(server, query="output_format=ape") as client:
        assert "output_format" in client.receive()["message"]


def test_speaking_begins_with_the_first_sentence_and_reads_on(server, talker):
    """As `astream` speaks it; and one request speaks all of it, in one voice."""
    requests = server.metric("dia_requests_total")
    with Socket(server, "/v1/text-to-speech/default/multi-stream-input") as client:
        client.send(text=SENTENCES[0], context_id="c")
        audio = client.receive()["audio"]  # before the context is closed, or anything flushed
        client.send(text=SENTENCES[1][:10], context_id="c")
        client.send(text=SENTENCES[1][10:], context_id="c")
        client.send(context_id="c", close_context=True)
        rest, _ = client.until_final("isFinal")
    expected = list(talker.stream(iter([f"[S1] {SENTENCES[0]}", FLUSH, SENTENCES[1], FLUSH]), seed=3))
    assert close(base64.b64decode(audio) + rest["c"], np.concatenate(expected))
    assert server.metric("dia_requests_total") == requests + 1


def test_another_voice_begins_another_request(server):
    requests = server.metric("dia_requests_total")
    with Socket(server) as client:
        client.send(context_id="c", inputs=[{"text": SENTENCES[0], "voice_id": "s1"}])
        client.receive()
        client.send(context_id="c", inputs=[{"text": "Five six.", "voice_id": "s2"}])
        client.send(context_id="c", close_context=True)
        _, others = client.until_final()
    assert [bool(each.get("is_final_audio_for_turn")) for each in others] == [True, True, False]
    assert server.metric("dia_requests_total") == requests + 2


def test_a_text_that_is_not_ended_ends_by_itself(server, monkeypatch):
    """A client that stands still does not hold a place for ever."""
    monkeypatch.setattr(IdleTimer.__init__, "__defaults__", (0.2,))
    with Socket(server, "/v1/text-to-speech/default/multi-stream-input") as client:
        client.send(text=SENTENCES[0] + "And ", context_id="c")
        audio, _ = client.until_final("isFinal")
        assert audio["c"]
    server.idle()


def test_a_page_of_another_site_opens_no_socket(server):
    url = server.url.replace("http", "ws") + "/v1/text-to-dialogue/multi-stream-input"
    for origin, is_taken in (("http://elsewhere.example", False), ("http://[", False), (server.url, True)):
        with connect(url, additional_headers={"Origin": origin}) as connection:
            if is_taken:
                connection.send(json.dumps({"close_socket": True}))
                with pytest.raises(ConnectionClosed):
                    connection.recv(HANGS)
            else:
                assert json.loads(connection.recv(HANGS))["code"] == 403


def test_texts_that_wait_are_counted(server):
    with Socket(server) as client:
        with contextlib.suppress(ConnectionClosed):  # it may be told, and the connection closed, while more is sent
            for _ in range(200):
                client.send(context_id="c", inputs=[{"text": "Hello. ", "voice_id": "default"}], flush=True)
        while "texts may wait" not in client.receive().get("message", ""):
            pass
        with pytest.raises(ConnectionClosed):
            client.receive()
    server.idle()
