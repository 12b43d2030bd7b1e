"""A server in a thread, and a client."""

import json
import re
import socket
import threading
import time
from contextlib import suppress

import httpx
import numpy as np

from dia_engine.files.wav_stream import pcm16
from dia_engine.server.app import build_app
from dia_engine.server.listener import Listener, bound_socket
from dia_engine.server.settings import Settings

TEXT = "[S1] Can you count?"
LONG = "[S1] Can you count? [S2] Five six seven eight nine. " * 2
SENTENCES = "Can you count five six seven eight nine? ", "Hello, my little robot. Can you count five six seven?"
HANGS = 60  # seconds after which a test that waits gives up


class Server:
    """A server of an engine, as a context. It speaks without a voice unless told, which is quicker."""

    def __init__(self, engine, **settings):
        self.settings = Settings(**{"model": "talker", "port": 0, **settings})
        self.socket = bound_socket(self.settings)
        self.url = "http://{}:{}".format(*self.socket.getsockname())
        self.app = build_app(self.settings, engine)
        self.listener = Listener(self.app, self.settings)
        self.thread = threading.Thread(target=self.listener.run, args=([self.socket],), daemon=True)

    def __enter__(self):
        self.thread.start()
        self.client = httpx.Client(base_url=self.url, timeout=HANGS)
        until(lambda: self.status() != 503)
        self.loop = self.listener._loop
        return self

    def __exit__(self, *error):
        self.client.close()
        self.listener.should_exit = True
        self.thread.join(HANGS)

    def status(self):
        try:
            return self.client.get("/health").status_code
        except httpx.ConnectError:
            return 503

    def speak(self, text=TEXT, **fields):
        return self.client.post("/v1/audio/speech", json=body(text, **fields))

    def stream(self, text=TEXT, **fields):
        return self.client.stream("POST", "/v1/audio/speech", json=body(text, **fields))

    def metric(self, name):
        """The sum over a metric's labels."""
        lines = self.client.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if re.match(rf"{name}(?:\{{|\s)", line))

    def idle(self):
        """Wait until no request runs or waits, here and in the engine."""
        engine = self.app.state.service.engine
        until(lambda: not self.metric("dia_requests_running") + self.metric("dia_requests_waiting"))
        until(lambda: not engine.active_requests)


def body(text=TEXT, **fields):
    """Of a request for pcm at the engine's rate without a voice; None leaves a field out."""
    plain = {"input": text, "voice": "default", "response_format": "pcm", "sample_rate": 16_000, "seed": 3}
    return {name: value for name, value in {**plain, **fields}.items() if value is not None}


def raw(server, content, first=b""):
    """A connection on which a request for speech has been sent, behind what comes first."""
    connection = socket.create_connection(server.socket.getsockname())
    data = json.dumps(content).encode()
    head = f"POST /v1/audio/speech HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}"
    connection.sendall(first + head.encode() + b"\r\n\r\n" + data)
    return connection


def leave(connection):
    """End a WebSocket without a word. A thread of its library reads: where that waits, a closed socket stays open."""
    with suppress(OSError):  # the server was faster, and that thread has closed it
        connection.socket.shutdown(socket.SHUT_RDWR)


def times_received(server, monkeypatch):
    """When requests came in, by the server's reckoning, as they begin."""
    service, times = server.app.state.service, []
    begin = service.begin

    def noted(*arguments, received, **options):
        times.append(received)
        return begin(*arguments, received=received, **options)

    monkeypatch.setattr(service, "begin", noted)
    return times


def until(condition):
    """Wait for a condition; fail after a minute."""
    end = time.monotonic() + HANGS
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.01)


def close(data, audio):
    """Whether 16-bit samples are those of audio, but for a rounding."""
    found, wanted = np.frombuffer(data, "<i2").astype(int), np.frombuffer(pcm16(audio), "<i2").astype(int)
    return len(found) == len(wanted) and np.abs(found - wanted).max() <= 1


def samples(data):
    """16-bit samples of bytes."""
    return np.frombuffer(data, "<i2").astype(np.float32) / 32767
