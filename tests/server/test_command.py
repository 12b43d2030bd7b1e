"""The command: it listens at once, is ready when it has spoken, and ends in order."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from dia_engine.cli import main
from tests.helpers import ROOT
from tests.server.helpers import HANGS, until


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


def test_a_port_in_use_and_a_bad_setting_are_one_line(server, capsys):
    port = server.socket.getsockname()[1]
    for options, words in ((["--port", str(port)], "cannot listen"), (["--slots", "0"], "slots must be at least 1")):
        assert main(["serve", "--model", "talker", *options]) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
        assert line.startswith("dia-engine: error: ") and words in line
