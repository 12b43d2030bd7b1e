"""The examples that need a server and no package of a vendor."""

import io
import os
import runpy
import shutil
import subprocess

import pytest
import soundfile

from tests.helpers import ROOT
from tests.server.helpers import Server


@pytest.mark.parametrize(("name", "made"), [("openai_http.py", "openai.pcm"), ("elevenlabs_http.py", "elevenlabs.mp3")])
def test_an_example(server, tmp_path, monkeypatch, capsys, name, made):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIA_URL", server.url)
    runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
    data = (tmp_path / made).read_bytes()
    raw = {"samplerate": 24_000, "channels": 1, "subtype": "PCM_16", "format": "RAW"} if made.endswith(".pcm") else {}
    samples, rate = soundfile.read(io.BytesIO(data), **raw)
    assert 2 < len(samples) / rate < 5 and samples.std() > 0.02
    assert capsys.readouterr().out.startswith(made)


@pytest.mark.parametrize("name", ["openai_http.py", "elevenlabs_http.py"])
def test_an_example_tells_what_the_server_answers(server, monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIA_URL", f"{server.url}/nowhere")
    with pytest.raises(SystemExit, match="404: "):
        runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl_with_a_key_and_twice(talker, voices, tmp_path):
    with Server(talker, voices=str(voices), api_key=("secret",)) as server:
        environment = {**os.environ, "DIA_URL": server.url, "DIA_API_KEY": "secret", "no_proxy": "127.0.0.1"}
        for _ in range(2):
            done = subprocess.run(
                ["sh", ROOT / "examples" / "curl.sh"], cwd=tmp_path, env=environment, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
            assert '"deleted":true' in done.stdout
        found = server.client.get("/v1/audio/voices").json()["voices"]
    assert "mine" not in [voice["name"] for voice in found]
    assert (tmp_path / "curl.mp3").stat().st_size and (tmp_path / "voice.wav").stat().st_size
