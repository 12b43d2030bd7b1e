"""ElevenLabs' interface: dialogues over HTTP and WebSockets."""

import base64
import json

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from dia_engine.files.wav_stream import pcm16
from dia_engine.server.routes.elevenlabs import script
from dia_engine.server.voices.voice import Prompt, continued, tagged, together
from tests.server.helpers import HANGS

TURNS = [("Can you count?", "s1"), ("Five six seven.", "s2")]
DIALOGUE = {"inputs": [{"text": text, "voice_id": voice} for text, voice in TURNS], "seed": 3}
SPOKEN = "[S1] Can you count? [S2] Five six seven."


def close(data, audio):
    found, wanted = np.frombuffer(data, "<i2").astype(int), np.frombuffer(pcm16(audio), "<i2").astype(int)
    return len(found) == len(wanted) and np.abs(found - wanted).max() <= 1


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
    assert script([("Hello.", 0), ("[laughs] Hi!", 1)]) == "[S1] Hello. [S2] (laughs) Hi!"
    assert script([("A.", 0), ("B.", 0), ("C.", 1)]) == "[S1] A. B. [S2] C."
    assert script([("[S1] A. [S2] B.", 0)]) == "[S1] A. [S2] B."
    assert script([("[whispers] A.", 0)]) == "[S1] [whispers] A."
    assert tagged(" A.") == "[S1] A." and tagged("A. [S2] B.") == "A. [S2] B."


def test_a_speaker_who_goes_on_has_no_second_tag():
    prompt = Prompt(np.zeros((3, 4), np.int64), "[S1] Said.")
    assert continued(prompt, "[S1] Goes on. [S2] Other.") == "Goes on. [S2] Other."
    assert continued(prompt, "[S2] Other.") == "[S2] Other."
    assert continued(None, "[S1] Alone.") == "[S1] Alone."
    assert continued(prompt, "[S1] ") == "[S1] "


def test_two_voices_are_one_prompt(server):
    import torch

    first, second = Prompt(torch.ones(3, 4), "[S1] One."), Prompt(torch.zeros(2, 4), "[S1] Two.")
    both = together(first, second)
    assert both.transcript == "[S1] One. [S2] Two." and both.codes.shape == (5, 4)
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


def test_a_socket_that_closes_frees_its_slots(server):
    with Socket(server) as client:
        client.send(context_id="c", inputs=[{"text": "Can you count? " * 8, "voice_id": "default"}], flush=True)
        client.receive()
    server.idle()
    with Socket(server, query="output_format=ape") as client:
        assert "output_format" in client.receive()["message"]
