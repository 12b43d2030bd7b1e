"""A server as what is measured: streams of OpenAI's speech route, as samples of pcm; and a server to measure.

For `load`, `http_clients` and `streams`. Any server of that route that streams pcm can be measured; what the engine's
own can do besides (seeds, limits, its slots) is asked of it as extra fields, which others ignore.
"""

import http.client
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any
from urllib.parse import SplitResult, urlsplit

import numpy as np

from .clients import Script
from .command import MeasurementError
from .versions import ROOT

RATE = 24_000
READY_SECONDS, LONGEST = 600.0, 600.0  # to load a model; for an answer
READ_BYTES = 65_536
LISTENING = re.compile(r"listening on (http://[^\s,]+),")


class Served:
    """A server. As many streams at a time as it runs; a response's first bytes are its first audio."""

    sample_rate = RATE

    def __init__(self, url: str, *, voice: str = "default", api_key: str = "", whole: bool = False):
        """`whole`: audio is not sent before all of it is made.

        Raises:
            ValueError: no address of a server.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc or not _has_port(parts):
            raise ValueError(f"the server's address must be such as http://127.0.0.1:8000, got {url}")
        self._secure, self._place, self._path = parts.scheme == "https", parts.netloc, parts.path.rstrip("/")
        self._voice, self._whole = voice, whole
        self._headers = {"Content-Type": "application/json", "Authorization": f"Bearer {api_key or 'none'}"}

    def get(self, path: str) -> Any:
        """A JSON answer.

        Raises:
            OSError, ValueError: there is none.
        """
        with closing(self._connection()) as connection:
            connection.request("GET", self._path + path, headers=self._headers)
            answer = connection.getresponse()
            content = answer.read()
        if answer.status != 200:
            raise ValueError(f"{path} answers {answer.status}: {content[:200].decode('utf-8', 'replace')}")
        return json.loads(content)

    def stream(self, script: Script) -> Iterator[np.ndarray]:
        """Samples of a response as they come.

        Raises:
            OSError: it was refused, or broke off.
        """
        body: dict[str, Any] = {"input": script.text, "voice": self._voice, "response_format": "pcm"}
        body |= {"seed": script.seed, "stream": not self._whole}
        if script.max_tokens is not None:
            body["max_tokens"] = script.max_tokens
        with closing(self._connection()) as connection:
            connection.request("POST", f"{self._path}/v1/audio/speech", json.dumps(body), self._headers)
            answer = connection.getresponse()
            if answer.status != 200:
                raise OSError(f"status {answer.status}")
            yield from _samples(answer)

    def _connection(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        return kind(self._place, timeout=LONGEST)


def _has_port(parts: SplitResult) -> bool:
    """Whether the port is a number, or left out."""
    try:
        return parts.port != 0
    except ValueError:
        return False


def _samples(answer: http.client.HTTPResponse) -> Iterator[np.ndarray]:
    """16-bit samples of a body as float32; a part may end inside one."""
    left = b""
    while part := answer.read1(READ_BYTES):
        data = left + part
        even = len(data) // 2 * 2
        left = data[even:]
        yield np.frombuffer(data[:even], "<i2").astype(np.float32) / 32767


@contextmanager
def started_server(options: Mapping[str, Any], more: Sequence[str] = ()) -> Iterator[str]:
    """A server of this checkout on a free port -> its address, once it is ready.

    Args:
        options: of `dia-engine serve`, by name; None for what is left out.
        more: options as words of its command line.

    Raises:
        MeasurementError: it has ended, or is not ready in time.
    """
    command = [sys.executable, "-m", "dia_engine", "serve", "--port", "0", "--log-format", "json"]
    for name, value in options.items():
        command += [] if value is None else [f"--{name}", str(value)]
    command += more
    with tempfile.TemporaryDirectory() as voices, tempfile.TemporaryFile("w+") as log:
        command += ["--voices", voices]
        process = subprocess.Popen(command, cwd=ROOT, env=dict(os.environ), stderr=log, text=True)
        try:
            yield _ready(process, log)
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _ready(process: subprocess.Popen, log: Any) -> str:
    end = time.monotonic() + READY_SECONDS
    while time.monotonic() < end and process.poll() is None:
        log.seek(0)
        found = LISTENING.search(log.read())  # warnings of libraries may be before it
        if found and _is_healthy(found[1]):
            return found[1]
        time.sleep(0.05)
    log.seek(0)
    lines = log.read().splitlines()
    raise MeasurementError(f"the server is not ready: {lines[-1] if lines else 'it said nothing'}")


def _is_healthy(url: str) -> bool:
    try:
        return bool(Served(url).get("/health"))
    except (OSError, ValueError):
        return False
