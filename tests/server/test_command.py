"""The command: it listens at once, is ready when it has spoken, and ends in order."""

import asyncio
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import suppress

import httpx
import pytest

from dia_engine.cli import main
from dia_engine.engine import Engine
from dia_engine.server.lifecycle import Startup
from dia_engine.server.logs import is_not_cut_off
from dia_engine.server.settings import Settings
from dia_engine.server.speech.service import SpeechService
from tests.helpers import ROOT
from tests.server.helpers import HANGS, body, until

DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")


def start(*options, **environment):
    command = [sys.executable, "-m", "dia_engine", "serve", "--port", "0", "--log-format", "json", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def health(url):
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=HANGS) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_it_starts_says_so_and_ends_with_status_0(tmp_path):
    server = start("--model", "talker", DIA_SERVE_VOICES=str(tmp_path), DIA_SERVE_HOST="0.0.0.0", DIA_SERVE_SLOTS="2")
    try:
        first = json.loads(server.stderr.readline())
        (address,) = re.findall(r"http://0\.0\.0\.0:(\d+)", first["message"])
        url = f"http://127.0.0.1:{address}"
        lines = [json.loads(server.stderr.readline()) for _ in range(2)]
        assert "without permission" in lines[0]["message"]
        assert lines[1]["level"] == "warning" and "--api-key" in lines[1]["message"]
        until(lambda: health(url) == 200)
        server.send_signal(signal.SIGTERM)
        assert server.wait(HANGS) == 0
        rest = [json.loads(line) for line in server.stderr.read().splitlines()]
        assert any(line["message"].startswith("ready after") for line in rest)
    finally:
        server.kill()
        server.stderr.close()


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_ends_it_in_one_line(tmp_path):
    server = start("--model", str(tmp_path / "none"), "--voices", str(tmp_path))
    output = server.communicate(timeout=HANGS)[1]
    assert server.returncode == 2
    assert output.splitlines()[-1].startswith("dia-engine: error: ") and "none" in output.splitlines()[-1]
    assert "Traceback" not in output


def test_a_container_finds_its_server_healthy(server):
    """Wherever that listens, and whatever proxy the container was told of."""
    (command,) = re.findall(r"^HEALTHCHECK .*?CMD (\[.+?\])$", DOCKERFILE.replace("\\\n", ""), re.MULTILINE)
    python, *arguments = json.loads(command)
    assert python == "python"
    environment = {**os.environ, "DIA_SERVE_PORT": server.url.rpartition(":")[2], "http_proxy": "http://127.0.0.1:1"}
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, timeout=HANGS)
    assert done.returncode == 0, done.stderr
    environment["DIA_SERVE_PORT"] = "1"
    assert subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, timeout=HANGS).returncode


def test_a_port_in_use_and_a_bad_setting_are_one_line(server, capsys):
    port = server.socket.getsockname()[1]
    for options, words in ((["--port", str(port)], "cannot listen"), (["--slots", "0"], "slots must be at least 1")):
        assert main(["serve", "--model", "talker", *options]) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
        assert line.startswith("dia-engine: error: ") and words in line


SAID = "[S1] Can you count? [S2] Five six seven eight nine."


def running(folder, *options):
    """A server of the talker that is ready, and its address."""
    server = start("--model", "talker", "--voices", str(folder), *options)
    (url,) = re.findall(r"http://127\.0\.0\.1:\d+", json.loads(server.stderr.readline())["message"])
    threading.Thread(target=server.stderr.read, daemon=True).start()  # or it would wait for a reader
    return server, url


def killed(server):
    server.kill()
    assert server.wait(HANGS) == -signal.SIGKILL
    server.stderr.close()


def whole_voices(folder):
    """Start a server on a folder, speak with each voice that it lists, and end it -> what it lists, by id."""
    server, url = running(folder)
    try:
        until(lambda: health(url) == 200)
        left = list((folder / "talker").rglob("*"))
        assert not [path for path in left if path.name.startswith(".") or path.suffix == ".partial"], "half a voice"
        with httpx.Client(base_url=url, timeout=HANGS) as client:
            kept = {voice["id"]: voice for voice in client.get("/v1/audio/voices").json()["voices"]}
            for name in {path.parent.name for path in left if path.name == "voice.json"}:
                answer = client.post("/v1/audio/speech", json=body("Can you sing?", voice=name))
                assert answer.status_code == 200 and answer.content, (name, answer.text)
    finally:
        killed(server)
    return kept


@pytest.mark.slow
def test_a_server_that_is_killed_in_an_upload_leaves_no_half_voice(server, tmp_path):
    """Several clients upload without a pause; the server is killed at several moments of that."""
    recording = server.speak(SAID, response_format="wav", stream=False).content
    told = set()

    def upload(url):
        with httpx.Client(base_url=url, timeout=HANGS) as client, suppress(httpx.TransportError):
            while True:
                data = {"name": "mine", "ref_text": SAID, "consent": "yes"}
                answer = client.post("/v1/audio/voices", data=data, files={"audio_sample": ("a.wav", recording)})
                told.add(answer.json()["id"])

    for delay in (0.0, 0.013, 0.031, 0.057):
        process, url = running(tmp_path)
        until(lambda url=url: health(url) == 200)
        before, clients = len(told), [threading.Thread(target=upload, args=(url,), daemon=True) for _ in range(4)]
        for client in clients:
            client.start()
        until(lambda before=before: len(told) > before + 2)
        time.sleep(delay)
        killed(process)
        for client in clients:
            client.join(HANGS)
        kept = whole_voices(tmp_path)
        assert told <= set(kept), "a client was told of a voice that is not there"
        assert all(kept[name]["ref_text"] == SAID for name in told)


@pytest.mark.slow
def test_a_server_that_is_killed_in_a_mint_leaves_no_half_voice(tmp_path):
    for wanted in (1, 4, 8):
        process, _ = running(tmp_path, "--mint")
        until(lambda wanted=wanted: len(list((tmp_path / "talker").glob("[!.]*"))) >= wanted)
        killed(process)
        whole_voices(tmp_path)


SIGNALED = """
import asyncio, os, signal, sys, threading, time
import uvicorn
from dia_engine.engine import Engine
from dia_engine.server.command import serve
from dia_engine.server.lifecycle import Startup
from dia_engine.server.listener import Listener
from dia_engine.server.settings import Settings

def signal_now(number):
    os.kill(os.getpid(), number)

def hold():
    time.sleep(10)
    print("waited", flush=True)

{program}

serve(Settings(model="talker", port=0, voices=sys.argv[1]))
"""
BEFORE_ITS_LOOP = """
def load(self):
    signal_now(signal.SIGTERM)
    return real(self)
real, uvicorn.Config.load, Startup.begin = uvicorn.Config.load, load, lambda self: None
"""
WHILE_IT_LOADS = """
def load(*_, **__):
    signal_now(signal.SIGTERM)
    hold()
Engine.load = load
"""
TWICE = """
def begin(self):
    asyncio.get_running_loop().run_in_executor(None, work, self._service)
def work(service):
    signal_now(signal.SIGTERM)
    while service.state != "draining":
        time.sleep(0.001)
    signal_now(signal.{second})
    hold()
Startup.begin = begin
"""
TWICE_AT_ITS_END = """
def begin(self):
    asyncio.get_running_loop().run_in_executor(None, work)
def work():
    signal_now(signal.SIGTERM)
    served.wait()
    signal_now(signal.SIGINT)
    hold()
async def serve_and_tell(self, sockets=None):
    await real(self, sockets)
    served.set()
served, real, Startup.begin, Listener.serve = threading.Event(), Listener.serve, begin, serve_and_tell
"""


@pytest.mark.parametrize(
    "program, status",
    [
        (BEFORE_ITS_LOOP, 0),
        (WHILE_IT_LOADS, 0),
        (TWICE.format(second="SIGTERM"), 143),
        (TWICE.format(second="SIGINT"), 130),
        (TWICE_AT_ITS_END, 130),
    ],
    ids=["before its loop", "while it loads", "twice", "twice, with Ctrl-C", "twice, at its end"],
)
def test_a_signal_ends_it_without_waiting_for_threads(warm_python, tmp_path, program, status):
    """The threads here wait longer than the test has patience: nothing that they print may be seen."""
    ended = warm_python.run(SIGNALED.format(program=program), tmp_path)
    assert ended.returncode == status and not ended.stdout, ended
    assert b"Traceback" not in ended.stderr


def test_a_load_that_nobody_waits_for_closes_its_engine(monkeypatch, tmp_path):
    going, closed = threading.Event(), threading.Event()

    class Loaded:
        max_slots = 1

        def prepare(self, slots):
            assert going.wait(HANGS)

        def close(self):
            closed.set()

    monkeypatch.setattr(Engine, "load", lambda *_, **__: Loaded())

    async def run():
        startup = Startup(SpeechService(Settings(model="talker", voices=str(tmp_path))), None)
        startup.begin()
        await asyncio.sleep(0)
        await startup.end()

    asyncio.run(run())
    assert not closed.is_set()
    going.set()
    assert closed.wait(HANGS)


def test_requests_that_are_cut_off_leave_no_trace_in_the_log():
    def record(error):
        return logging.makeLogRecord({"msg": "in ASGI application", "exc_info": (type(error), error, None)})

    assert not is_not_cut_off(record(asyncio.CancelledError())) and is_not_cut_off(record(ValueError("a bug")))
    assert is_not_cut_off(logging.makeLogRecord({"msg": "it starts"}))
